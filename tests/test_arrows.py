"""The arrows between the rooms: import-linter passes the house as it is, and refuses a planted back arrow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ROOMS = ("flows", "tasks", "models", "warehouse")


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    """What `lint-imports`, the last command of `make check`, says of a house."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=house, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The rooms and their contracts, to plant faults in."""
    for room in ROOMS:
        shutil.copytree(HOUSE / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOUSE / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_house_keeps_its_arrows(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("warehouse/errors.py", "import tasks.night"),
        ("models/panel.py", "import warehouse.errors"),
        ("models/layers/s4d.py", "import models.zoo"),
        ("tasks/night.py", "import flows.settings"),
        ("tasks/markets/bybit.py", "import prefect"),
        ("flows/ingest.py", "import torch"),
        ("models/layers/kernels/simd.py", "import models.layers.errors"),
        ("models/graphs/rolling.py", "import models.layers.kernels.simd"),
        ("tasks/night.py", "import tasks.live.job"),
        ("models/layers/checks.py", "import models.layers.mamba"),
    ],
)
def test_a_planted_back_arrow_is_refused(copy: Path, file: str, line: str) -> None:
    with (copy / file).open("a") as planted:
        planted.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout
