"""Fixtures that run the real command line as its own process, and one small simulated night that several tests read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

REPOSITORY = Path(__file__).parents[2]
SMALL = {  # one epoch: these tests are about the night, not about the fit
    "NIGHTLY_PROFILES__DEMO_STOCKS__TRAIN__EPOCHS": "1",
    "NIGHTLY_PROFILES__DEMO_PERPETUALS__TRAIN__EPOCHS": "1",
    "NIGHTLY_PROFILES__SECONDS__TRAIN__EPOCHS": "1",
}
Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., tuple[int, str]]
Contents = Callable[..., dict[str, pa.Table]]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts ``nightgraph`` as a process group of its own, with the small settings and a fresh Prefect home."""
    home = tmp_path_factory.mktemp("prefect")
    environment = {**os.environ, **SMALL, "PREFECT_HOME": str(home), "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}

    def start_process(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=REPOSITORY,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start_process


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the same small settings in this process."""
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def nightgraph(start: Start) -> Run:
    """Runs ``nightgraph`` to its end; returns its exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        process = start(*arguments)
        printed, _ = process.communicate(timeout=900)
        return process.returncode, printed

    return run


@pytest.fixture(scope="session")
def contents() -> Contents:
    """Reads the tables of a warehouse, for comparison."""
    return read_contents


def read_contents(path: Path, where: str = "true") -> dict[str, pa.Table]:
    """Every row of every raw and store table, in one order, without ``step_runs``, which has wall times."""
    with duckdb.connect(str(path), read_only=True) as con:
        con.execute("SET TimeZone='UTC'")
        names = con.execute(
            "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE schema_name IN ('raw', 'store') "
            "AND table_name NOT IN ('step_runs', 'migrations') ORDER BY 1"
        ).fetchall()
        return {name: con.execute(f"FROM {name} WHERE {where} ORDER BY ALL").to_arrow_table() for (name,) in names}


@pytest.fixture(scope="session")
def night(nightgraph: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The warehouse file after the simulated night of 2024-06-28 for both demo universes."""
    path = tmp_path_factory.mktemp("night") / "warehouse.duckdb"
    code, printed = nightgraph("night", "--as-of", "2024-06-28", "--warehouse", str(path))
    assert code == 0, printed[-5000:]
    return path
