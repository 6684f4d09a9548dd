"""Rows of date D do not depend on data after D: with the tape cut at D, every number up to D is the same.

A tape is a folder of recorded market data; a night is the run for one as-of date.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tests.end_to_end.command_line import RunCommand

pytestmark = pytest.mark.slow
RunNight = Callable[[Path, date], Path]
UNIVERSES = ("demo_stocks", "demo_crypto")
CUT_DATES = sorted(date(2024, 4, 1) + timedelta(days=d) for d in random.Random(20240628).sample(range(80), 3))
LAST_DATE = date(2024, 6, 28)
TS_COLUMNS = {  # by relation: the column with the time of a row
    "features": "ts",
    "graph_snapshots": "as_of",
    "graph_edges": "as_of",
    "predictions": "ts",
    "equity_curves": "ts",
}


def copy_tape_until(tape: Path, last: date, folder: Path) -> Path:
    """Writes a copy of the tape without the data after the UTC date ``last`` to ``folder``, and returns ``folder``."""
    end = (last + timedelta(days=1)).isoformat()
    for name, condition in {
        "yahoo/bars_1d": f"date < DATE '{end}'",
        "bybit/klines_60": f"ts < TIMESTAMPTZ '{end} 00:00:00+00'",
        "bybit/klines_D": f"ts < TIMESTAMPTZ '{last} 00:00:00+00'",
        "bybit/funding": f"ts <= TIMESTAMPTZ '{end} 00:00:00+00'",
    }.items():
        target = folder / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        duckdb.execute(f"COPY (FROM '{tape}/{name}.parquet' WHERE {condition}) TO '{target}' (FORMAT parquet)")
    return folder


def read_rows(warehouse: Path, relation: str, last: date) -> pa.Table:
    """Rows of a relation dated up to the end of ``last``, without the column run_id."""
    with duckdb.connect(str(warehouse), read_only=True) as con:
        con.execute("SET TimeZone='UTC'")
        return con.execute(
            f"SELECT * EXCLUDE (run_id) FROM {relation} WHERE {TS_COLUMNS[relation]} < $end ORDER BY ALL",
            {"end": last + timedelta(days=1)},
        ).to_arrow_table()


@pytest.fixture(scope="module")
def run_night(nightgraph: RunCommand, tmp_path_factory: pytest.TempPathFactory) -> RunNight:
    """``run_night(tape, as_of)`` runs a recorded night of the demo universes and returns its new warehouse file."""

    def run(tape: Path, as_of: date) -> Path:
        path = tmp_path_factory.mktemp("truncation") / "w.duckdb"
        universe_options = [word for name in UNIVERSES for word in ("--universe", name)]
        code, printed = nightgraph(
            *("night", "--source", "recorded", "--tape", str(tape), "--as-of", str(as_of)),
            *universe_options,
            *("--warehouse", str(path)),
        )
        assert code == 0, printed[-3000:]
        return path

    return run


@pytest.fixture(scope="module")
def full_night(run_night: RunNight, shared_data: Path) -> Path:
    """The warehouse after one night on the whole tape at the last date."""
    return run_night(shared_data / "tape", LAST_DATE)


@pytest.mark.parametrize("last", CUT_DATES, ids=str)
def test_every_number_up_to_a_date_is_the_same_with_the_tape_cut_there(
    last: date, run_night: RunNight, full_night: Path, shared_data: Path, tmp_path: Path
) -> None:
    cut_tape_file = run_night(copy_tape_until(shared_data / "tape", last, tmp_path / "tape"), last)
    for relation in TS_COLUMNS:
        expected = read_rows(full_night, relation, last)
        actual = read_rows(cut_tape_file, relation, last)
        assert len(actual) > 0, relation
        assert actual.equals(expected), f"{relation}: rows up to {last} differ with the tape cut there"
    # signals exist only for the as-of date, so they are compared with a night of the same date on the whole tape
    full_tape_file = run_night(shared_data / "tape", last)
    query = "SELECT * FROM signals ORDER BY ALL"
    with (
        duckdb.connect(str(cut_tape_file), read_only=True) as cut_con,
        duckdb.connect(str(full_tape_file), read_only=True) as full_con,
    ):
        assert cut_con.execute(query).to_arrow_table().equals(full_con.execute(query).to_arrow_table())
