"""The one shape in which every source of events hands them over: one row an event, null where its kind has no such
measure. It is the shape of the warehouse's ``events`` without what the warehouse adds.
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
    """A table of EVENT_ROWS from dicts that name what their kind has; ``ts`` and ``next_ts`` as microseconds UTC."""
    return pa.Table.from_pylist(rows, EVENT_ROWS)


def event_columns(kind: str, rows: int, **columns: Any) -> pa.Table:
    """A table of EVENT_ROWS from whole columns of one kind; those not given are null."""
    given = {"kind": pa.repeat(kind, rows), **columns}
    missing = {field.name: pa.nulls(rows, field.type) for field in EVENT_ROWS if field.name not in given}
    return pa.table({name: (given | missing)[name] for name in EVENT_ROWS.names}).cast(EVENT_ROWS)
