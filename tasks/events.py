"""Events in bulk: recorded or archived ones into the warehouse, and the warehouse's as a network reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.graphs.events import KINDS, Events
from models.graphs.market_stream import MARKET_ROW, MEASURES, MarketEvents
from tasks.markets.bybit_archive import TradeArchive
from tasks.markets.recorded_events import RecordedEvents
from warehouse.connect import Warehouse
from warehouse.events import append_events

VENUE = "bybit"


def store_recorded_events(warehouse: Warehouse, folder: Path) -> dict[str, int]:
    """How many rows of each venue of a recording were new, as source recorded; received when the recording ended."""
    recorded = RecordedEvents(folder)
    return {
        venue: _store(warehouse, "recorded", venue, [recorded.events(venue)], recorded.received.astype(datetime))
        for venue in recorded.venues()
    }


def store_archived_trades(
    warehouse: Warehouse, archive: TradeArchive, symbol: str, day: date, received: datetime
) -> int:
    """How many trades of one symbol and UTC day in Bybit's archive were new, as source live: none that the stream has.

    Raises what ``TradeArchive.trades`` does; blocks written before that stay.
    """
    return _store(warehouse, "live", VENUE, archive.trades(symbol, day), received)


def _store(warehouse: Warehouse, source: str, venue: str, tables: Iterable[pa.Table], received: datetime) -> int:
    run_id = hashlib.sha256(f"events|{source}|{venue}".encode()).hexdigest()[:16]
    stored = 0
    for table in tables:
        with warehouse.write(f"events of {venue}") as con:
            stamps = {"source": source, "venue": venue, "run_id": run_id}
            stored += append_events(con, table, **stamps, fetched_at=received.replace(tzinfo=UTC))
    return stored


def load_events(
    warehouse: Warehouse, source: str, venue: str, symbols: Sequence[str], start: datetime, end: datetime
) -> Events:
    """All events of ``symbols`` in [start, end) between ``market_nodes(symbols)``, by time."""
    keys: dict[str, object] = {"source": source, "venue": venue, "symbols": list(symbols)}
    table = warehouse.query("events_between", start=start, end=end, **keys)
    return MarketEvents(symbols)(market_rows(table, symbols))


def market_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Rows of MARKET_ROW (e,) of a table of EVENT_ROWS, in its order. The key is a hash of what makes an event one."""
    rows = np.zeros(table.num_rows, MARKET_ROW)
    ts = table["ts"].cast(pa.timestamp("us")).to_numpy()
    rows["t"] = ts.astype(np.int64)
    settles = table["next_ts"].cast(pa.timestamp("us")).to_numpy()
    rows["next_t"] = np.where(np.isnat(settles), ts, settles).astype(np.int64)
    rows["key"] = _keys(table)
    rows["kind"] = pc.index_in(table["kind"], pa.array(KINDS)).to_numpy()
    rows["symbol"] = pc.index_in(table["symbol"], pa.array(list(symbols))).to_numpy()
    rows["side"] = np.where(pc.equal(table["side"], "sell").fill_null(False).to_numpy(), -1.0, 1.0)
    for name in MEASURES:
        if name != "side":
            rows[name] = table[name].fill_null(0.0).to_numpy()
    return rows


def _keys(table: pa.Table) -> np.ndarray:
    """64 bits (e,) of kind, symbol, time and id: the same on every machine and in every run."""
    parts = [table["kind"], table["symbol"], table["ts"].cast(pa.int64()).cast(pa.string()), table["event_id"]]
    return pd.util.hash_array(pc.binary_join_element_wise(*parts, " ").to_numpy().astype(object))
