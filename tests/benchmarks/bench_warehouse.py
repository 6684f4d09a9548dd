"""Speed of loading 1.25 million bars into the warehouse, compared with plain DuckDB.

``pytest tests/benchmarks/bench_warehouse.py -m benchmark -s``. A night, the run for one as-of date, replaces the last
bars of every symbol and publishes a copy of the warehouse for its readers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from tests.benchmarks.contest import contest
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
from warehouse.publish import publish_copy
from warehouse.tables import replace_slice, upsert

N_SYMBOLS = 130
N_BARS = 9_600
KEY = ("source", "universe", "symbol", "interval", "ts")
STAMPS = {"interval": "1d", "fetched_at": datetime(2024, 6, 29, tzinfo=UTC), "run_id": "run"}
SLICE = {"source": "recorded", "universe": "us_stocks"}


@pytest.fixture(scope="module")
def bars() -> pa.Table:
    """Random daily bars, N_BARS of each of N_SYMBOLS symbols."""
    rng = np.random.default_rng(7)
    ts = np.datetime64("1990-01-02T14:30", "us") + np.arange(N_BARS) * np.timedelta64(1, "D")
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (N_SYMBOLS, N_BARS)), axis=1)).ravel()
    symbols = pa.array([f"S{k}" for k in range(N_SYMBOLS)]).take(pa.array(np.repeat(np.arange(N_SYMBOLS), N_BARS)))
    return pa.table(
        {
            "symbol": symbols,
            "ts": pa.array(np.tile(ts, N_SYMBOLS), pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            **dict.fromkeys(("open", "high", "low", "close"), close),
            "volume": rng.uniform(1e5, 1e7, len(close)),
        }
    )


@pytest.mark.benchmark
def test_loading_a_history_takes_at_most_five_times_as_long_as_plain_duckdb(bars: pa.Table, tmp_path: Path) -> None:
    warehouse = Warehouse.from_url(tmp_path / "warehouse.duckdb")
    migrate(warehouse)
    plain = duckdb.connect(str(tmp_path / "plain.duckdb"))
    plain.execute("SET TimeZone = 'UTC'")
    night_bars = bars.filter(pa.compute.greater_equal(bars["ts"], bars["ts"][-10]))  # the last 10 of every symbol

    def load() -> None:
        with warehouse.write("load") as con:
            replace_slice(con, "store.bars", bars, **SLICE, **STAMPS)

    def merge_night() -> None:
        with warehouse.write("night") as con:
            upsert(con, "store.bars", night_bars, KEY, **SLICE, **STAMPS)

    def plain_load() -> None:
        plain.execute(
            "CREATE OR REPLACE TABLE bars AS SELECT 'recorded' AS source, 'us_stocks' AS universe, * FROM bars_rows"
        )
        plain.execute("CHECKPOINT")

    def plain_merge() -> None:
        plain.execute(
            "MERGE INTO bars USING (SELECT 'recorded' AS source, 'us_stocks' AS universe, * FROM night_rows) AS night"
            " USING (source, universe, symbol, ts) WHEN MATCHED THEN UPDATE WHEN NOT MATCHED THEN INSERT"
        )
        plain.execute("CHECKPOINT")

    def read_view() -> None:
        with warehouse.read() as con:
            con.execute(
                "SELECT symbol, ts, open, close, total_return FROM bars WHERE source = 'recorded'"
            ).to_arrow_table()

    def publish() -> None:
        publish_copy(warehouse, **SLICE)

    plain.register("bars_rows", bars)
    plain.register("night_rows", night_bars)
    writers = {"replace_slice": load, "CREATE TABLE AS": plain_load}
    writers |= {"upsert of 10 bars each": merge_night, "MERGE of the same": plain_merge}
    write_times = contest(writers, rounds=3)
    with warehouse.write("finish a night") as con:
        night_row = (
            "'2024-06-28', 'recorded', 'us_stocks', 'run', now(), '{}', '0', 'published', NULL, NULL, NULL, NULL, now()"
        )
        con.execute(f"INSERT INTO store.nights VALUES ({night_row})")
    read_times = contest({"view with total returns": read_view, "publish_copy": publish}, rounds=3)

    for times in (write_times, read_times):
        times.report(f"{len(bars):,} bars")
    print(f"\nreplace_slice / CREATE TABLE AS = {write_times.ratio('replace_slice', 'CREATE TABLE AS'):.2f}")
    print(f"upsert / MERGE = {write_times.ratio('upsert of 10 bars each', 'MERGE of the same'):.2f}")
    assert write_times.best("replace_slice") < 5 * write_times.best("CREATE TABLE AS")
