"""Events in bulk: days of Bybit's trades and open interest into the warehouse, and any rows of it as a network reads
them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.graphs.events import EVENT_KINDS
from models.graphs.market_stream import BUILDERS, EVENT_VALUES, MARKET_ROW
from models.hashing import short_hash
from models.sessions import midnight_after
from tasks.errors import NoPricesError
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_archive import TradeArchive
from tasks.markets.bybit_frames import LEAST, MOST, MOST_RATE
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

VENUE = "bybit"
QUANTITIES = {
    "trade": ("price", "size"),
    "liquidation": ("price", "size"),
    "book": ("bid", "ask", "bid_size", "ask_size"),
    "open_interest": ("open_interest",),
}


@dataclass(frozen=True)
class ArchiveJob:
    """What to fetch: the trades of these symbols of a universe and UTC days, from ``rest`` their hourly open interest;
    and the ``source`` to write them as."""

    warehouse: Warehouse
    archive: TradeArchive
    source: str
    universe: str
    wanted: Sequence[tuple[date, str]]
    rest: Bybit | None = None


def store_archived_events(
    job: ArchiveJob, on_progress: Callable[[int, int, str], None] = lambda *_: None
) -> dict[tuple[date, str], int]:
    """How many events of each day and symbol were new: none that the stream, or an earlier run, has brought.

    Live ones are received as they are written, recorded ones when their day was over, but after the universe's newest
    published night: none of either slips in behind a night that has looked. A day that the archive lacks is left out,
    and NoPricesError tells them all in the end; what else ``TradeArchive.trades`` raises ends it, and what came before
    that stays.
    """
    new: dict[tuple[date, str], int] = {}
    missing: list[str] = []
    for k, (day, symbol) in enumerate(job.wanted):
        on_progress(k, len(job.wanted), f"{symbol} {day}")
        try:
            new[day, symbol] = _store_day(job, symbol, day)
        except NoPricesError as error:
            logger.warning("%s", error)
            missing.append(f"{symbol} {day}")
        else:
            logger.info("%s %s: %d new events", symbol, day, new[day, symbol])
    on_progress(len(job.wanted), len(job.wanted), "")
    if missing:
        raise NoPricesError(
            f"the archive has no trades of {', '.join(missing)}, the other {len(new)} files are stored; a day is there "
            "from the next morning on, and only for symbols that traded"
        )
    return new


def archived_by(source: str) -> str:
    """``run_id`` of the archive's rows."""
    return short_hash(f"events|{source}|{VENUE}")


def _store_day(job: ArchiveJob, symbol: str, day: date) -> int:
    of, stored = {"source": job.source, "venue": VENUE, "run_id": archived_by(job.source)}, 0
    begins, interest = midnight_after(day) - timedelta(days=1), []
    if job.rest is not None:
        interest.append(job.rest.open_interest(symbol, begins, midnight_after(day)))
    for table in chain(job.archive.trades(symbol, day), interest):
        with job.warehouse.write(f"events of {symbol} on {day}") as con:
            stored += append_events(con, table, **of, fetched_at=_received(con, job, day))
    return stored


def _received(con: Any, job: ArchiveJob, day: date) -> datetime:
    """When rows that are written now count as received; asked for under the lock that every night's look waits for."""
    if job.source == "live":
        return datetime.now(UTC)
    seen = read_query(con, "newest_published_clock", source=job.source, universe=job.universe)["clock"][0].as_py()
    return midnight_after(day) if seen is None else max(midnight_after(day), seen + timedelta(microseconds=1))


def readable_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """``market_rows`` without those that no event can be made of, whose number is told."""
    rows = market_rows(table, symbols)
    known = readable(rows)
    if not known.all():
        first = rows[~known][0]
        logger.warning(
            "%d of %d stored events cannot be read and are left out; the first is one of %s at %s",
            *((~known).sum(), len(rows), symbols[first["symbol"]], first["t"].astype("datetime64[us]")),
        )
    return rows[known]


def readable(rows: np.ndarray) -> np.ndarray:
    """True (e,) where a row has the measures of its kind, each a number that a feature can hold."""
    known = (rows["t"] >= 0) & np.isin(rows["kind"], [EVENT_KINDS.index(kind) for kind in BUILDERS])
    for kind, names in QUANTITIES.items():
        for name in names:
            lowest = 0.0 if name in ("bid_size", "ask_size") else LEAST
            known &= (rows["kind"] != EVENT_KINDS.index(kind)) | ((rows[name] >= lowest) & (rows[name] < MOST))
    return known & (np.abs(rows["rate"]) <= MOST_RATE)


def market_rows(table: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Rows of MARKET_ROW (e,) of a table of EVENT_ROWS, in its order. The key is a hash of what makes an event one."""
    rows = np.zeros(table.num_rows, MARKET_ROW)
    ts = table["ts"].cast(pa.timestamp("us")).to_numpy()
    rows["t"] = ts.astype(np.int64)
    settles = table["next_ts"].cast(pa.timestamp("us")).to_numpy()
    rows["next_t"] = np.where(np.isnat(settles), ts, settles).astype(np.int64)
    rows["key"] = _keys(table)
    rows["kind"] = pc.index_in(table["kind"], pa.array(EVENT_KINDS)).fill_null(-1).to_numpy()
    rows["symbol"] = pc.index_in(table["symbol"], pa.array(list(symbols))).to_numpy()
    rows["side"] = np.where(pc.equal(table["side"], "sell").fill_null(False).to_numpy(), -1.0, 1.0)
    for name in EVENT_VALUES:
        if name != "side":
            rows[name] = table[name].fill_null(0.0).to_numpy()
    return rows


def _keys(table: pa.Table) -> np.ndarray:
    """64 bits (e,) of kind, symbol, time and id: the same on every machine and in every run."""
    parts = [table["kind"], table["symbol"], table["ts"].cast(pa.int64()).cast(pa.string()), table["event_id"]]
    return pd.util.hash_array(pc.binary_join_element_wise(*parts, " ").to_numpy().astype(object))
