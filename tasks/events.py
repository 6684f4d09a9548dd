"""The archive job: days of Bybit's trades and open interest, downloaded and stored as events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any

from models.hashing import short_hash
from models.sessions import midnight_after
from tasks.errors import NoPricesError
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_archive import TradeArchive
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

VENUE = "bybit"


@dataclass(frozen=True)
class ArchiveJob:
    """What to fetch: the trades of each (UTC day, symbol) in ``files``, with ``rest`` also the hourly open interest.

    ``source`` is the one that the events are stored under, ``universe`` the one whose nights read them.
    """

    warehouse: Warehouse
    archive: TradeArchive
    source: str
    universe: str
    files: Sequence[tuple[date, str]]
    rest: Bybit | None = None


def store_archived_events(
    job: ArchiveJob, on_progress: Callable[[int, int, str], None] = lambda *_: None
) -> dict[tuple[date, str], int]:
    """Number of new events by day and symbol; events that the stream or an earlier run has stored do not count.

    Live events count as received when they are written; recorded ones at the end of their day, but after the clock of
    the universe's newest published night. So no published night misses an event that its clock covers. A day that the
    archive lacks is skipped; after the last file, NoPricesError names all skipped ones. Any other error of
    ``TradeArchive.trades`` ends the job, and the events written before it stay.
    """
    new: dict[tuple[date, str], int] = {}
    missing: list[str] = []
    for k, (day, symbol) in enumerate(job.files):
        on_progress(k, len(job.files), f"{symbol} {day}")
        try:
            new[day, symbol] = _store_day(job, symbol, day)
        except NoPricesError as error:
            logger.warning("%s", error)
            missing.append(f"{symbol} {day}")
        else:
            logger.info("%s %s: %d new events", symbol, day, new[day, symbol])
    on_progress(len(job.files), len(job.files), "")
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
    """Number of new events of one symbol and day."""
    stamps = {"source": job.source, "venue": VENUE, "run_id": archived_by(job.source)}
    day_end = midnight_after(day)
    interest = []
    if job.rest is not None:
        interest.append(job.rest.open_interest(symbol, day_end - timedelta(days=1), day_end))
    stored = 0
    for table in chain(job.archive.trades(symbol, day), interest):
        with job.warehouse.write(f"events of {symbol} on {day}") as con:
            stored += append_events(con, table, **stamps, fetched_at=_received_at(con, job, day))
    return stored


def _received_at(con: Any, job: ArchiveJob, day: date) -> datetime:
    """The instant at which rows written now count as received. Call it under the write lock, which nights wait for."""
    if job.source == "live":
        return datetime.now(UTC)
    published = read_query(con, "newest_published_clock", source=job.source, universe=job.universe)["clock"][0].as_py()
    day_end = midnight_after(day)
    return day_end if published is None else max(day_end, published + timedelta(microseconds=1))
