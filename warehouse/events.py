"""Writing events of an exchange in bulk: only new events are stored, each once."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.tables import append, read_query


def append_events(con: duckdb.DuckDBPyConnection, rows: pa.Table, *, source: str, venue: str, **stamps: object) -> int:
    """How many of ``rows`` were new and are written; an event that is stored already stays as it is.

    ``rows`` have the columns of tasks/markets/event_rows.py; ``fetched_at`` and ``run_id`` are columns of ``rows`` or
    come from ``stamps``.
    """
    if not rows.num_rows:
        return 0
    span = pc.min_max(rows["ts"]).as_py()
    con.register("arriving", rows)
    try:
        new = read_query(con, "new_events", source=source, venue=venue, start=span["min"], end=span["max"])
    finally:
        con.unregister("arriving")
    return append(con, "store.events", new, source=source, venue=venue, **stamps)
