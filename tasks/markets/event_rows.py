"""EVENT_SCHEMA, the columns of the table that every source of events returns: one row per event.

A kind of event (trade, liquidation, book, funding, open_interest) uses some of the value columns; the others are null.
The schema has the columns of the warehouse's table ``events``, except those that the warehouse adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from models.panel import TS_TYPE

VALUE_COLUMNS = ("price", "size", "bid", "ask", "bid_size", "ask_size", "rate", "open_interest")
EVENT_SCHEMA = pa.schema(
    [("kind", pa.string()), ("symbol", pa.string()), ("ts", TS_TYPE), ("event_id", pa.string()), ("side", pa.string())]
    + [(name, pa.float64()) for name in VALUE_COLUMNS]
    + [("next_ts", TS_TYPE)]
)


def event_rows(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of EVENT_SCHEMA from one dict per event.

    A dict has the columns of its event's kind, with ``ts`` and ``next_ts`` in microseconds UTC.
    """
    return pa.Table.from_pylist(rows, EVENT_SCHEMA)


def event_columns(kind: str, n_rows: int, **columns: Any) -> pa.Table:
    """A table of EVENT_SCHEMA with ``n_rows`` events of one kind, from columns (n_rows,).

    Columns that are not passed are null.
    """
    nulls = {field.name: pa.nulls(n_rows, field.type) for field in EVENT_SCHEMA}
    arrays = {**nulls, "kind": pa.repeat(kind, n_rows), **columns}
    return pa.table({name: arrays[name] for name in EVENT_SCHEMA.names}).cast(EVENT_SCHEMA)
