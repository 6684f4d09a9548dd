"""Bulk writes of the forecasts that a network makes on a live stream: each forecast is stored once."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from warehouse.tables import append, read_query


def append_forecasts(
    con: duckdb.DuckDBPyConnection, rows: pa.Table, *, source: str, universe: str, model: str, **stamps: object
) -> int:
    """Writes the new forecasts among ``rows`` and returns their number; a stored forecast is never changed.

    ``rows`` must contain each key (symbol, ts, horizon_bars) once. A forecast is new when its key is not stored for
    this source, universe and model. ``stamps`` are columns with one value for all rows.
    """
    keys = {"source": source, "universe": universe, "model": model}
    con.register("arriving", rows)
    try:
        new_rows = read_query(con, "new_stream_forecasts", **keys)
    finally:
        con.unregister("arriving")
    return append(con, "store.stream_forecasts", new_rows, **keys, **stamps)
