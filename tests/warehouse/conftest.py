"""Fixtures: a migrated warehouse for each test, and functions that write rows to it.

A night is the run for one as-of date. Bars are daily and flat: open, high, low and close are equal.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.tables import append, replace_slice

REPOSITORY = Path(__file__).parents[2]
TS_TYPE = pa.timestamp("us", tz="UTC")
CLOCK = datetime(2024, 6, 29, tzinfo=UTC)
SLICE = {"source": "recorded", "universe": "us_stocks"}


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a migrated DuckDB file without nights, which other fixtures copy."""
    path = tmp_path_factory.mktemp("template") / "warehouse.duckdb"
    migrate(Warehouse.from_url(path))
    return path


@pytest.fixture
def warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    """The test's own migrated warehouse; it waits at most 5 s for its lock."""
    path = tmp_path / "warehouse.duckdb"
    shutil.copyfile(migrated_file, path)
    return Warehouse(path, lock_timeout_s=5.0)


def utc_instant(text: str) -> datetime:
    """The aware UTC instant of an ISO 8601 text without a time zone."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def add_bars(warehouse: Warehouse) -> Callable[..., None]:
    """add_bars({ts: close}, symbol=…, table=…, **columns): appends a flat bar per ts to ``store.bars`` or ``table``."""

    def add(closes: dict[str, float], symbol: str = "AAA", table: str = "store.bars", **columns: object) -> None:
        close_column = list(closes.values())
        rows = pa.table(
            {
                "ts": pa.array([utc_instant(ts) for ts in closes], TS_TYPE),
                **dict.fromkeys(("open", "high", "low", "close"), close_column),
                "volume": [1.0] * len(closes),
            }
        )
        constants = {"interval": "1d", "fetched_at": CLOCK, "run_id": "run", **SLICE, "symbol": symbol, **columns}
        with warehouse.write("add bars") as con:
            append(con, table, rows, **constants)

    return add


@pytest.fixture
def add_actions(warehouse: Warehouse) -> Callable[..., None]:
    """add_actions({ts: value}, symbol=…, kind=…, **columns): appends corporate actions, by default dividends."""

    def add(values: dict[str, float], symbol: str = "AAA", kind: str = "dividend", **columns: object) -> None:
        rows = pa.table({"ts": pa.array([utc_instant(ts) for ts in values], TS_TYPE), "value": list(values.values())})
        constants = {"kind": kind, "fetched_at": CLOCK, "run_id": "run", **SLICE, "symbol": symbol, **columns}
        with warehouse.write("add actions") as con:
            append(con, "store.corporate_actions", rows, **constants)

    return add


@pytest.fixture
def add_night(warehouse: Warehouse) -> Callable[..., None]:
    """add_night(date, published=…, **columns): writes a night of two models with one signal each, for symbol AAA.

    The champion is ``winner``, the challenger ``loser``.
    """

    def add(night: date, published: bool = True, **columns: object) -> None:
        key = {"night": night, **SLICE, **columns}
        constants = {**key, "run_id": f"{key['source']}-{key['universe']}-{night}"}
        night_row = {"clock": CLOCK, "settings": "{}", "settings_hash": "0", "state": "running"}
        signal = {
            "symbol": "AAA",
            "as_of": CLOCK,
            "for_session": date(2024, 7, 1),
            "side": "LONG",
            "label_3": "BUY",
            "label_5": "BUY",
            "confidence": 0.7,
            "expected_volatility": 0.01,
            "weight": 0.05,
            "close": 100.0,
        }
        registry = pa.table(
            {
                "role": ["champion", "challenger"],
                "model": ["winner", "loser"],
                "trial_ids": pa.array([["t1"], ["t2"]]),
                "reason": ["best", "second"],
            }
        )
        signals = pa.Table.from_pylist([{**signal, "model": model} for model in ("winner", "loser")])
        returns = pa.array([[(1, 0.002), (5, 0.01)]] * 2, pa.map_(pa.int32(), pa.float64()))
        with warehouse.write("add night") as con:
            nights = pa.Table.from_pylist([{**night_row, "published_at": CLOCK if published else None}])
            replace_slice(con, "store.nights", nights, **constants)
            append(con, "store.model_registry", registry, **constants)
            append(con, "store.signals", signals.append_column("expected_return", returns), **constants)

    return add


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen]]:
    """start_python(code, *arguments): starts a Python process; it is killed at the end of the test."""
    processes = []

    def start(code: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
