"""Fixtures that run the command line in a process of its own, and one simulated night that several tests read.

A night is the run for one as-of date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tests.end_to_end.command_line import ReadContents, RunCommand, StartProcess

REPOSITORY = Path(__file__).parents[2]
FAST_SETTINGS = {  # one epoch, because these tests do not check the quality of a fit
    "NIGHTLY_PROFILES__DEMO_STOCKS__TRAIN__EPOCHS": "1",
    "NIGHTLY_PROFILES__DEMO_PERPETUALS__TRAIN__EPOCHS": "1",
    "NIGHTLY_PROFILES__SECONDS__TRAIN__EPOCHS": "1",
}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> StartProcess:
    """A function that starts ``nightgraph`` in a new process group, with FAST_SETTINGS and a separate Prefect home."""
    home = tmp_path_factory.mktemp("prefect")
    environment = {**os.environ, **FAST_SETTINGS, "PREFECT_HOME": str(home), "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}

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
def fast_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets FAST_SETTINGS in this process."""
    for name, value in FAST_SETTINGS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def nightgraph(start: StartProcess) -> RunCommand:
    """A function that runs ``nightgraph`` to its end and returns its exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        process = start(*arguments)
        printed, _ = process.communicate(timeout=900)
        return process.returncode, printed

    return run


@pytest.fixture(scope="session")
def contents() -> ReadContents:
    """The function ``read_contents``."""
    return read_contents


def read_contents(path: Path) -> dict[str, pa.Table]:
    """By table name, all rows of the warehouse file ``path``, ordered by all columns.

    All tables of the schemas raw and store are read, except migrations and step_runs, which contain wall times.
    """
    with duckdb.connect(str(path), read_only=True) as con:
        con.execute("SET TimeZone='UTC'")
        names = con.execute(
            "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE schema_name IN ('raw', 'store') "
            "AND table_name NOT IN ('step_runs', 'migrations') ORDER BY 1"
        ).fetchall()
        return {name: con.execute(f"FROM {name} ORDER BY ALL").to_arrow_table() for (name,) in names}


@pytest.fixture(scope="session")
def night(nightgraph: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The warehouse file after the simulated nights of 2024-06-28 of both demo universes."""
    path = tmp_path_factory.mktemp("night") / "warehouse.duckdb"
    code, printed = nightgraph("night", "--as-of", "2024-06-28", "--warehouse", str(path))
    assert code == 0, printed[-5000:]
    return path
