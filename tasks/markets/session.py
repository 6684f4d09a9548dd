"""Opens the market that a night reads: the live services, a recorded tape, or the simulator.

The clients are the same for all three; with a tape or the simulator, ``Tape`` answers their requests.

A provider is a market's data service, named in the column ``provider`` of warehouse/seeds/universes.csv: yahoo, bybit,
binance. To add one, for example a folder of CSV files:

1. Write a client, tasks/markets/<provider>.py, that returns one symbol's rows, oldest first, as pyarrow tables:
   bars        symbol, interval ('1d', '1h', '1s'), ts (open, timestamp[us, UTC]), open, high, low, close,
               close_adjusted, volume, turnover (float64; turnover null where unknown); ts in [start, end) and no bar
               that had not closed at the night's clock
   actions     optional: symbol, ts (open of the ex-date's bar), kind ('dividend', 'split'), value
   funding     optional: symbol, ts (settlement), rate
   events      optional: EVENT_ROWS, see event_rows.py
   Yahoo.daily_bars, Bybit.klines and RecordedEvents.bars are examples. It raises UnknownSymbolError for a symbol it
   does not have, NoPricesError where it has no bar in the span, MalformedAnswerError or TapeMalformedError for data of
   another shape, and OutageError for a failure that may pass; see tasks/errors.py. These cost the one symbol;
   ForbiddenError ends the whole ingest.
2. Add the client to ``Market`` here, and create it in ``_open_live``, ``_open_tape`` or both. For a provider that has
   only recordings, add it to the OnlyRecordedError check in ``open_market``.
3. For a tape, name its file in ``recorded.FILES`` and its first and last day in ``RecordedMarket.check_night``.
4. Call it in tasks/fetch.py, where a symbol's rows are requested by provider: a dict of tables by raw table
   ("bars", "corporate_actions", "funding_rates"), and "events".
5. List its universes and their members in warehouse/seeds/universes.csv and universe_members.csv.
"""

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
from tasks.markets.recorded import RecordedMarket
from tasks.markets.recorded_events import PROVIDER as BINANCE
from tasks.markets.recorded_events import RecordedEvents
from tasks.markets.recording import Recording
from tasks.markets.retry_policy import NO_RETRY
from tasks.markets.simulated import SimulatedMarket
from tasks.markets.tape import Tape
from tasks.markets.yahoo import Yahoo

logger = logging.getLogger(__name__)

SOURCES = ("live", "recorded", "simulated")
PROBES = ("https://api.bybit.com/v5/market/time", "https://query2.finance.yahoo.com/")
PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Market:
    """The clients of a night. They never return a bar that had not closed at ``clock`` (UTC).

    ``binance`` is a recording that is not cut at the clock: callers limit the span that they request. It is None unless
    binance is one of the requested providers.
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
    """Yields the market of the night ``as_of``; its connections are closed at the end of the block.

    ``clock`` defaults to the end of ``as_of``, or to now where that is earlier and the source is live. A tape must have
    the night for each of ``providers`` (yahoo, bybit, binance); if none is given, for at least one provider. Raises
    UnknownSourceError, OnlyRecordedError, NightOutOfRangeError, NoNetworkError or TapeError before any request.
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
        market = _open_live(as_of, clock or min(midnight_after(as_of), now), now)
    else:
        market = _open_tape(source, as_of, tape, providers, clock or midnight_after(as_of))
    try:
        yield market
    finally:
        market.yahoo.close()
        market.bybit.close()


def _open_live(as_of: date, clock: datetime, now: datetime) -> Market:
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


def _open_tape(source: str, as_of: date, folder: Path | None, providers: tuple[str, ...], clock: datetime) -> Market:
    recording: Recording
    if source == "simulated":
        recording = SimulatedMarket(as_of)
    elif folder is None:
        raise TapeMissingError("source recorded needs a tape: give the folder that holds it (--tape)")
    else:
        recording = RecordedMarket(folder)
    if providers:
        for provider in providers:
            recording.check_night(provider, as_of)
    else:
        _check_any_provider(recording, as_of)
    tape = Tape(recording, clock)
    binance = recording.events if isinstance(recording, RecordedMarket) and BINANCE in providers else None
    yahoo = Yahoo(clock, tape.session(), NO_RETRY)
    bybit = Bybit(clock, tape.session(), NO_RETRY)
    return Market(source, clock, yahoo, bybit, binance)


def _check_any_provider(recording: Recording, as_of: date) -> None:
    """Raises the last provider's NightOutOfRangeError unless at least one provider of the recording has the night."""
    errors = []
    for provider in recording.providers:
        try:
            recording.check_night(provider, as_of)
        except NightOutOfRangeError as error:
            errors.append(error)
    if len(errors) == len(recording.providers):
        raise errors[-1]
