"""Writing a stream's forecasts in bulk: each is written once, however often it is made."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from warehouse.tables import append, read_query


def append_forecasts(
    con: duckdb.DuckDBPyConnection, rows: pa.Table, *, source: str, universe: str, model: str, **stamps: object
) -> int:
    """How many of ``rows`` were new and are written; a forecast that is stored already stays as it is.

    ``rows`` contain each key (symbol, ts, horizon_bars) once.
    """
    keys = {"source": source, "universe": universe, "model": model}
    con.register("arriving", rows)
    try:
        new = read_query(con, "new_stream_forecasts", **keys)
    finally:
        con.unregister("arriving")
    return append(con, "store.stream_forecasts", new, **keys, **stamps)
