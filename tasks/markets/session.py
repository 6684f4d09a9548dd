"""Opens the provider that a night reads: a live service, a recording, or the simulated market.

A night is the run for one date. Live, recorded and simulated nights use the same clients; in recorded and simulated
nights, a ``Tape`` answers their requests from a folder of recorded data or from the simulated market.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import requests

from models.sessions import midnight_after
from tasks.errors import (
    NightOutOfRangeError,
    NoNetworkError,
    OnlyRecordedError,
    TapeError,
    TapeMissingError,
    UnknownProviderError,
    UnknownSourceError,
)
from tasks.markets.bybit import Bybit
from tasks.markets.provider import Provider
from tasks.markets.recorded import RecordedMarket
from tasks.markets.recorded_events import RecordedEvents
from tasks.markets.retry_policy import NO_RETRY
from tasks.markets.simulated import SimulatedMarket
from tasks.markets.tape import Tape
from tasks.markets.yahoo import Yahoo

logger = logging.getLogger(__name__)

CLIENTS: dict[str, Callable[..., Provider]] = {"yahoo": Yahoo, "bybit": Bybit}
RECORDINGS: dict[str, Callable[[Path, datetime], Provider]] = {"binance": RecordedEvents}
SOURCES = ("live", "recorded", "simulated")
# the live source needs an answer from one of these addresses
PROBE_URLS = ("https://api.bybit.com/v5/market/time", "https://query2.finance.yahoo.com/")
PROBE_TIMEOUT_S = 10.0


@contextmanager
def open_provider(
    name: str, source: str, as_of: date, tape: Path | None = None, clock: datetime | None = None
) -> Iterator[Provider]:
    """Yields the provider ``name`` for the night ``as_of``, and closes its connections at the end of the block.

    ``tape`` is the folder of a recorded night. The provider returns only data that were public at ``clock`` (UTC). The
    default is the end of ``as_of``; for the live source it is the current time if that is earlier.

    Raises UnknownProviderError, UnknownSourceError, OnlyRecordedError, NightOutOfRangeError, NoNetworkError or
    TapeError before any data are requested.
    """
    if source not in SOURCES:
        raise UnknownSourceError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    if tape is not None and source != "recorded":
        raise TapeError(f"a tape ({tape}) needs source recorded, not {source}")
    if name not in CLIENTS and name not in RECORDINGS:
        raise UnknownProviderError(f"unknown provider {name!r}; known: {', '.join([*CLIENTS, *RECORDINGS])}")
    if name in RECORDINGS and source != "recorded":
        raise OnlyRecordedError(
            f"there is no {source} market of {name}: it has no client, only recordings; run --source recorded and "
            "give the folder of one with --tape"
        )
    if source == "live":
        provider = _open_live(name, as_of, clock)
    else:
        provider = _open_recording(name, source, as_of, tape, clock or midnight_after(as_of))
    try:
        yield provider
    finally:
        provider.close()


def _open_live(name: str, as_of: date, clock: datetime | None) -> Provider:
    now = datetime.now(UTC)
    today = now.date()
    if not today - timedelta(days=1) <= as_of <= today:
        raise NightOutOfRangeError(
            f"live markets have only the nights of today and yesterday ({today}, UTC), not {as_of}; "
            "earlier nights need --source recorded and a tape"
        )
    for url in PROBE_URLS:
        try:
            requests.head(url, timeout=PROBE_TIMEOUT_S)
            break
        except requests.exceptions.RequestException as exc:
            logger.info("%s: %s", url, exc)
    else:
        raise NoNetworkError(
            "no market can be reached from this machine, nothing was changed: check the network, or run "
            "--source recorded with a tape, or --source simulated"
        )
    return CLIENTS[name](clock or min(midnight_after(as_of), now))


def _open_recording(name: str, source: str, as_of: date, folder: Path | None, clock: datetime) -> Provider:
    if source == "simulated":
        simulated = SimulatedMarket(as_of)
        simulated.check_night(name, as_of)
        return CLIENTS[name](clock, Tape(simulated, clock).session(), NO_RETRY)
    if folder is None:
        raise TapeMissingError("source recorded needs a tape: give the folder that holds it (--tape)")
    if name in RECORDINGS:
        provider = RECORDINGS[name](folder, clock)
        provider.check_night(as_of)
        return provider
    recorded = RecordedMarket(folder)
    recorded.check_night(name, as_of)
    return CLIENTS[name](clock, Tape(recorded, clock).session(), NO_RETRY)
