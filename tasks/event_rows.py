"""Stored events as rows of MARKET_ROW, the form that a network's event builder takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.graphs.events import EVENT_KINDS
from models.graphs.market_stream import BUILDERS, EVENT_VALUES, MARKET_ROW
from tasks.markets.bybit_frames import MAX_RATE, MAX_VALUE, MIN_VALUE

logger = logging.getLogger(__name__)

VALUES_BY_KIND = {  # columns that an event of the kind must fill
    "trade": ("price", "size"),
    "liquidation": ("price", "size"),
    "book": ("bid", "ask", "bid_size", "ask_size"),
    "open_interest": ("open_interest",),
}


def readable_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """``market_rows`` without the rows that no event can be built from; a warning states their number."""
    rows = market_rows(table, symbols)
    readable = is_readable(rows)
    if not readable.all():
        first = rows[~readable][0]
        logger.warning(
            "%d of %d stored events cannot be read and are left out; the first is one of %s at %s",
            *((~readable).sum(), len(rows), symbols[first["symbol"]], first["t"].astype("datetime64[us]")),
        )
    return rows[readable]


def is_readable(rows: np.ndarray) -> np.ndarray:
    """True (e,) where a row of MARKET_ROW has every value that its kind needs, within the range of a feature."""
    readable = (rows["t"] >= 0) & np.isin(rows["kind"], [EVENT_KINDS.index(kind) for kind in BUILDERS])
    for kind, names in VALUES_BY_KIND.items():
        for name in names:
            lowest = 0.0 if name in ("bid_size", "ask_size") else MIN_VALUE
            readable &= (rows["kind"] != EVENT_KINDS.index(kind)) | ((rows[name] >= lowest) & (rows[name] < MAX_VALUE))
    return readable & (np.abs(rows["rate"]) <= MAX_RATE)


def market_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Rows of MARKET_ROW (e,) of a table of EVENT_ROWS, in its order; ``key`` is the hash of an event's identity."""
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
    """64-bit hashes (e,) of kind, symbol, time and id: the same on every machine and in every run."""
    parts = [table["kind"], table["symbol"], table["ts"].cast(pa.int64()).cast(pa.string()), table["event_id"]]
    return pd.util.hash_array(pc.binary_join_element_wise(*parts, " ").to_numpy().astype(object))
