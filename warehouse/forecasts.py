"""A stream's forecasts in bulk: each is written once, however often it is made."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from warehouse.tables import append, read_query


def append_forecasts(
    con: duckdb.DuckDBPyConnection, rows: pa.Table, *, source: str, universe: str, model: str, **stamps: object
) -> int:
    """How many of ``rows``, which have each key once, were new and are written; one that is there stays as it is."""
    keys = {"source": source, "universe": universe, "model": model}
    con.register("arriving", rows)
    try:
        new = read_query(con, "new_stream_forecasts", **keys)
    finally:
        con.unregister("arriving")
    return append(con, "store.stream_forecasts", new, **keys, **stamps)
