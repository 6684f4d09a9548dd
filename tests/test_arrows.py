"""The import contracts between the packages: import-linter accepts the repository and refuses forbidden imports.

The contracts are in pyproject.toml: flows → tasks → models | warehouse, and further limits within packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "models", "warehouse")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The result of `lint-imports`, the last command of `make check`, in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_repository(tmp_path: Path) -> Path:
    """A folder with a copy of the packages and of their import contracts, which tests may change."""
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_repository_keeps_its_import_contracts(copied_repository: Path) -> None:
    result = lint_imports(copied_repository)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "forbidden_import"),
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
def test_a_forbidden_import_is_refused(copied_repository: Path, file: str, forbidden_import: str) -> None:
    with (copied_repository / file).open("a") as module:
        module.write(f"\n{forbidden_import}\n")
    result = lint_imports(copied_repository)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout
