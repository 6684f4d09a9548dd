"""Bulk writes of an exchange's events (trades, books, funding, …) to ``store.events``: each event is stored once."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.tables import append, read_query


def append_events(con: duckdb.DuckDBPyConnection, rows: pa.Table, *, source: str, venue: str, **stamps: object) -> int:
    """Writes the new events among ``rows`` and returns their number; a stored event is never changed.

    An event is new when no row of this ``source`` and ``venue`` has its kind, symbol, ts and event_id. ``rows`` has the
    columns of tasks/markets/event_rows.py. ``fetched_at`` and ``run_id`` are columns of ``rows``, or one value for all
    rows in ``stamps``. Raises RowsRefusedError when rows do not fit the table; then no row is written.
    """
    if not rows.num_rows:
        return 0
    ts_range = pc.min_max(rows["ts"]).as_py()
    con.register("arriving", rows)
    try:
        new_rows = read_query(con, "new_events", source=source, venue=venue, start=ts_range["min"], end=ts_range["max"])
    finally:
        con.unregister("arriving")
    return append(con, "store.events", new_rows, source=source, venue=venue, **stamps)
