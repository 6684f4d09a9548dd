"""Stored events as rows of MARKET_ROW, the numpy record type from which networks' events are built.

Glossary: e events.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.graphs.events import EVENT_KINDS
from models.graphs.market_stream import BUILDERS, EVENT_VALUES, MARKET_ROW
from tasks.markets.bybit_frames import MAX_ABS_FUNDING_RATE, MAX_VALUE, MIN_VALUE

logger = logging.getLogger(__name__)

VALUES_BY_KIND = {  # the columns in which an event of the kind must have a value within range
    "trade": ("price", "size"),
    "liquidation": ("price", "size"),
    "book": ("bid", "ask", "bid_size", "ask_size"),
    "open_interest": ("open_interest",),
}


def readable_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """The rows of ``market_rows`` from which an event can be built; a warning states the number of the others."""
    rows = market_rows(table, symbols)
    readable_mask = is_readable(rows)
    if not readable_mask.all():
        first = rows[~readable_mask][0]
        n_unreadable = (~readable_mask).sum()
        symbol = symbols[first["symbol"]]
        logger.warning(
            "%d of %d stored events cannot be read and are left out; the first is one of %s at %s",
            *(n_unreadable, len(rows), symbol, first["t"].astype("datetime64[us]")),
        )
    return rows[readable_mask]


def is_readable(rows: np.ndarray) -> np.ndarray:
    """Boolean mask (e,), True where a row of MARKET_ROW has every value that its kind needs, within range.

    The range is [MIN_VALUE, MAX_VALUE), from 0 for the sizes of a book; rates lie in
    [−MAX_ABS_FUNDING_RATE, MAX_ABS_FUNDING_RATE].
    """
    mask = (rows["t"] >= 0) & np.isin(rows["kind"], [EVENT_KINDS.index(kind) for kind in BUILDERS])
    for kind, names in VALUES_BY_KIND.items():
        for name in names:
            min_value = 0.0 if name in ("bid_size", "ask_size") else MIN_VALUE
            is_in_range = (rows[name] >= min_value) & (rows[name] < MAX_VALUE)
            mask &= (rows["kind"] != EVENT_KINDS.index(kind)) | is_in_range
    return mask & (np.abs(rows["rate"]) <= MAX_ABS_FUNDING_RATE)


def market_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Rows of MARKET_ROW (e,) of a table of EVENT_SCHEMA, in the same order.

    ``t`` and ``next_t`` are epoch microseconds; ``next_t`` is ``t`` where it is null. ``kind`` and ``symbol`` are
    positions in EVENT_KINDS and ``symbols``; an unknown kind is −1. ``side`` is −1 for a sell, otherwise 1. Other
    missing values are 0. ``key`` is a hash of the event's kind, symbol, time and id.
    """
    rows = np.zeros(table.num_rows, MARKET_ROW)
    ts = table["ts"].cast(pa.timestamp("us")).to_numpy()
    rows["t"] = ts.astype(np.int64)
    next_ts = table["next_ts"].cast(pa.timestamp("us")).to_numpy()
    rows["next_t"] = np.where(np.isnat(next_ts), ts, next_ts).astype(np.int64)
    rows["key"] = _keys(table)
    rows["kind"] = pc.index_in(table["kind"], pa.array(EVENT_KINDS)).fill_null(-1).to_numpy()
    rows["symbol"] = pc.index_in(table["symbol"], pa.array(list(symbols))).to_numpy()
    rows["side"] = np.where(pc.equal(table["side"], "sell").fill_null(False).to_numpy(), -1.0, 1.0)
    for name in EVENT_VALUES:
        if name != "side":
            rows[name] = table[name].fill_null(0.0).to_numpy()
    return rows


def _keys(table: pa.Table) -> np.ndarray:
    """64-bit hashes (e,) of kind, symbol, time and id, the same on every machine and in every run."""
    parts = [table["kind"], table["symbol"], table["ts"].cast(pa.int64()).cast(pa.string()), table["event_id"]]
    return pd.util.hash_array(pc.binary_join_element_wise(*parts, " ").to_numpy().astype(object))
