"""The interface of a provider: the service or the recording that a universe's raw rows come from.

The column ``provider`` of warehouse/seeds/universes.csv names the provider: yahoo, bybit or binance. To add a provider,
for example a folder of CSV files, write a subclass of Provider in a file of this folder and register it in one of two
dicts of tasks/markets/session.py:

CLIENTS      services with a live market: ``Client(until, session, retry_policy)``. In a recorded or simulated
             night (a night is the run for one date) the client sends the same requests, but a tape answers them: a
             transport that returns recorded or simulated responses instead of those of the network (tape.py).
RECORDINGS   providers that have only files: ``Recording(folder, until)``, for example recorded_events.py. They serve
             recorded nights only; open_provider raises OnlyRecordedError for a live or simulated night. The constructor
             or ``check_night`` raises TapeMissingError if the folder lacks the provider's files; the night then ends
             before anything is written.

A provider returns only rows that were public at the instant ``until`` (UTC): a bar is public once it has closed.
models/sessions.py has the opens and closes of trading sessions and ``last_session``, models/panel.py the type of ``ts``
(TS_TYPE), tasks/errors.py the errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import date, datetime

import pyarrow as pa


class Provider(ABC):
    """Returns the raw rows of one symbol per call. Ingest calls ``fetch`` from several threads."""

    @abstractmethod
    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """The symbol's raw tables by name, each with the rows whose time is in [start, end), oldest first.

        bars               symbol, interval ('1d', '1h', '1s'), ts (the bar's open, timestamp[us, UTC]; of a daily bar
                           the trading session's open), and as float64: open, high, low, close (adjusted for splits,
                           not for dividends), close_adjusted (also for dividends), volume (shares or base coins),
                           turnover (quote currency). A number that the provider does not have is null. One row per
                           bar; days without a trading session and bars without any price have no row.
        corporate_actions  symbol, ts (open of the ex-date's bar), kind and value ('dividend': dollars a share, 'split':
                           new shares per old share). Needed where there are dividends: total returns are computed from
                           these rows and never from ``close_adjusted``. ``recorded.infer_dividends`` computes dividends
                           from closes and adjusted closes.
        funding_rates      optional: symbol, ts (settlement), rate (the fraction of the position's value that a long
                           pays to a short; negative if the short pays)
        events             optional: the columns of EVENT_SCHEMA, see event_rows.py

        Raises UnknownSymbolError if the provider does not have the symbol, NoPricesError if the symbol has no bar in
        [start, end), MalformedAnswerError or TapeMalformedError if the data have an unexpected shape, OutageError for a
        temporary failure. After any of these errors ingest continues without this symbol. Raises ForbiddenError if the
        service refuses this machine; that ends the ingest.
        """

    def instruments(self, symbols: Iterable[str]) -> pa.Table | None:
        """The trading rules of the symbols, with the columns of raw.instruments; None if the provider has no rules."""
        return None

    def check_night(self, as_of: date) -> None:  # noqa: B027 (clients: their tape checks the night)
        """Raises NightOutOfRangeError if the provider is a recording that does not cover the night ``as_of``.

        Rule: the date of the last trading session on or before ``as_of`` must lie between the dates of the recording's
        first and last data, both inclusive. By default every night is accepted.
        """

    def close(self) -> None:  # noqa: B027 (files have no connection)
        """Closes the connections."""
