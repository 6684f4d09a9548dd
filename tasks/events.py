"""The archive job: downloads days of Bybit's trades and open interest, and stores them as events.

A night is the run for one as-of date; it reads the events received up to its clock.
"""

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
    """What to fetch and where to store it.

    The job fetches the trades of each (UTC day, symbol) in ``files``. With ``rest``, a client of the REST service, it
    also fetches the hourly open interest. Events are stored with ``source``, and nights of ``universe`` read them.
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
    """Number of new events by (day, symbol); an event that is stored already does not count.

    A live event counts as received when it is written. A recorded event counts as received at the end of its day, or
    just after the clock of the universe's newest published night if that is later. So a published night has read every
    event received by its clock. A file that the archive lacks is skipped; after the last file, NoPricesError names all
    skipped files. Any other error of ``TradeArchive.trades`` ends the job; events written before it stay stored.
    """
    n_new: dict[tuple[date, str], int] = {}
    missing: list[str] = []
    for k, (day, symbol) in enumerate(job.files):
        on_progress(k, len(job.files), f"{symbol} {day}")
        try:
            n_new[day, symbol] = _store_day(job, symbol, day)
        except NoPricesError as error:
            logger.warning("%s", error)
            missing.append(f"{symbol} {day}")
        else:
            logger.info("%s %s: %d new events", symbol, day, n_new[day, symbol])
    on_progress(len(job.files), len(job.files), "")
    if missing:
        raise NoPricesError(
            f"the archive has no trades of {', '.join(missing)}, the other {len(n_new)} files are stored; the file "
            "of a day appears the next morning, and only for symbols that traded"
        )
    return n_new


def archive_run_id(source: str) -> str:
    """The ``run_id`` of the rows stored from the archive, whatever the day or symbol."""
    return short_hash(f"events|{source}|{VENUE}")


def _store_day(job: ArchiveJob, symbol: str, day: date) -> int:
    """Stores the events of one symbol and day; returns the number of new ones."""
    stamps = {"source": job.source, "venue": VENUE, "run_id": archive_run_id(job.source)}
    day_end = midnight_after(day)
    open_interest = []
    if job.rest is not None:
        open_interest.append(job.rest.open_interest(symbol, day_end - timedelta(days=1), day_end))
    n_stored = 0
    for table in chain(job.archive.trades(symbol, day), open_interest):
        with job.warehouse.write(f"events of {symbol} on {day}") as con:
            n_stored += append_events(con, table, **stamps, fetched_at=_received_at(con, job, day))
    return n_stored


def _received_at(con: Any, job: ArchiveJob, day: date) -> datetime:
    """The instant at which rows written now count as received.

    Call it under the write lock: a night then starts either before the rows or after all of them.
    """
    if job.source == "live":
        return datetime.now(UTC)
    published = read_query(con, "newest_published_clock", source=job.source, universe=job.universe)["clock"][0].as_py()
    day_end = midnight_after(day)
    return day_end if published is None else max(day_end, published + timedelta(microseconds=1))
