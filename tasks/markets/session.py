"""The market a night reads: the live services, a recorded tape, or the simulator, behind the same two clients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    UnknownSourceError,
)
from tasks.markets.bybit import Bybit
from tasks.markets.recorded import Recorded
from tasks.markets.recorded_events import PROVIDER as BINANCE
from tasks.markets.recorded_events import RecordedEvents
from tasks.markets.recording import Recording
from tasks.markets.retry_policy import NO_RETRY
from tasks.markets.simulated import Simulated
from tasks.markets.tape import Tape
from tasks.markets.yahoo import Yahoo

logger = logging.getLogger(__name__)

SOURCES = ("live", "recorded", "simulated")
PROBES = ("https://api.bybit.com/v5/market/time", "https://query2.finance.yahoo.com/")
PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Market:
    """Both clients at one instant. ``clock`` (UTC): nothing that had not closed by then is ever returned.

    ``binance``: what was recorded of it, which knows no clock; None unless it is asked for.
    """

    source: str
    clock: datetime
    yahoo: Yahoo
    bybit: Bybit
    binance: RecordedEvents | None = None


@contextmanager
def open_market(
    source: str,
    as_of: date,
    tape: Path | None = None,
    *,
    providers: tuple[str, ...] = (),
    clock: datetime | None = None,
) -> Iterator[Market]:
    """The market of the night ``as_of``, open for the block.

    ``clock`` defaults to the end of ``as_of``, or to now where that is earlier and the market is live. A tape must hold
    the night for each of ``providers`` (yahoo, bybit, binance); without them, for any one that it stands in for. Raises
    UnknownSourceError, OnlyRecordedError, NightOutOfRangeError, NoNetworkError or TapeError before anything is asked.
    """
    if source not in SOURCES:
        raise UnknownSourceError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    if tape is not None and source != "recorded":
        raise TapeError(f"a tape ({tape}) goes with source recorded, not {source}")
    if BINANCE in providers and source != "recorded":
        raise OnlyRecordedError(
            f"there is no {source} market of {BINANCE}: it has no client, only recordings; run --source recorded and "
            "give the folder of one with --tape"
        )
    now = datetime.now(UTC)
    if source == "live":
        market = _live(as_of, clock or min(midnight_after(as_of), now), now)
    else:
        market = _on_tape(source, as_of, tape, providers, clock or midnight_after(as_of))
    try:
        yield market
    finally:
        market.yahoo.close()
        market.bybit.close()


def _live(as_of: date, clock: datetime, now: datetime) -> Market:
    today = now.date()
    if not today - timedelta(days=1) <= as_of <= today:
        raise NightOutOfRangeError(
            f"live markets have only the nights of today and yesterday ({today}, UTC), not {as_of}; "
            "earlier nights need --source recorded and a tape"
        )
    for url in PROBES:
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
    return Market("live", clock, Yahoo(clock), Bybit(clock))


def _on_tape(source: str, as_of: date, folder: Path | None, providers: tuple[str, ...], clock: datetime) -> Market:
    recording: Recording
    if source == "simulated":
        recording = Simulated(as_of)
    elif folder is None:
        raise TapeMissingError("source recorded needs a tape: give the folder that holds it (--tape)")
    else:
        recording = Recorded(folder)
    if providers:
        for provider in providers:
            recording.check_night(provider, as_of)
    else:
        _check_any(recording, as_of)
    tape = Tape(recording, clock)
    binance = recording.events if isinstance(recording, Recorded) and BINANCE in providers else None
    return Market(
        source, clock, Yahoo(clock, tape.session(), NO_RETRY), Bybit(clock, tape.session(), NO_RETRY), binance
    )


def _check_any(recording: Recording, as_of: date) -> None:
    """Returns when some provider of the recording has the night; raises the last one's refusal otherwise."""
    refusals = []
    for provider in recording.providers:
        try:
            recording.check_night(provider, as_of)
        except NightOutOfRangeError as error:
            refusals.append(error)
    if len(refusals) == len(recording.providers):
        raise refusals[-1]
