"""EVENT_ROWS, the table that every source of events returns: one row an event, null in columns its kind does not have.

It has the columns of the warehouse's ``events`` without those that the warehouse adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from models.panel import TS_TYPE

VALUE_COLUMNS = ("price", "size", "bid", "ask", "bid_size", "ask_size", "rate", "open_interest")
EVENT_ROWS = pa.schema(
    [("kind", pa.string()), ("symbol", pa.string()), ("ts", TS_TYPE), ("event_id", pa.string()), ("side", pa.string())]
    + [(name, pa.float64()) for name in VALUE_COLUMNS]
    + [("next_ts", TS_TYPE)]
)


def event_rows(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of EVENT_ROWS from dicts with the columns of their kind; ``ts`` and ``next_ts`` in microseconds UTC."""
    return pa.Table.from_pylist(rows, EVENT_ROWS)


def event_columns(kind: str, rows: int, **columns: Any) -> pa.Table:
    """A table of EVENT_ROWS with ``rows`` events of one kind; columns that are not passed are null."""
    nulls = {field.name: pa.nulls(rows, field.type) for field in EVENT_ROWS}
    arrays = {**nulls, "kind": pa.repeat(kind, rows), **columns}
    return pa.table({name: arrays[name] for name in EVENT_ROWS.names}).cast(EVENT_ROWS)
