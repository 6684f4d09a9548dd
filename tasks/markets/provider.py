"""The interface of a provider: the service or the recording that a universe's raw rows come from.

The column ``provider`` of warehouse/seeds/universes.csv names it: yahoo, bybit, binance. To add one, for example a
folder of CSV files, write a subclass of Provider in a file of this folder and register it in session.py:

CLIENTS      services with a live market: ``Client(until, session, retry_policy)``. In a recorded or simulated night (a
             night is the run for one date), a tape answers the requests of ``session`` (tape.py, recorded.py,
             simulated.py).
RECORDINGS   providers that have only files: ``Recording(folder, until)``, for example recorded_events.py. They serve
             recorded nights only; live and simulated nights are refused. A folder without their files raises
             TapeMissingError in the constructor or in ``check_night``, which ends the night before anything is written.

No provider returns a row that was not public at the instant ``until`` (UTC): a bar is public once it has closed.
models/sessions.py has the opens and closes of sessions and ``last_session``, models/panel.py the type of ``ts``
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
        """The symbol's rows with a time in [start, end), oldest first, by the name of their raw table.

        bars               symbol, interval ('1d', '1h', '1s'), ts (the bar's open, timestamp[us, UTC]; of a daily bar
                           the session's open), open, high, low, close (adjusted for splits, not for dividends),
                           close_adjusted, volume, turnover (float64; null if unknown). One row per bar. Days without a
                           session and bars without any price are left out.
        corporate_actions  symbol, ts (open of the ex-date's bar), kind and value ('dividend': dollars a share, 'split':
                           new shares per old share). Needed where there are dividends: total returns are computed from
                           these rows and never from ``close_adjusted``. ``recorded.infer_dividends`` finds dividends
                           in a series of adjusted closes.
        funding_rates      optional: symbol, ts (settlement), rate
        events             optional: the columns of EVENT_SCHEMA, see event_rows.py

        Raises UnknownSymbolError for a symbol that the provider does not have, NoPricesError if it has no bar in
        [start, end), MalformedAnswerError or TapeMalformedError for data with an unexpected shape, OutageError for a
        temporary failure. After any of these errors ingest continues without this symbol. ForbiddenError ends the
        ingest.
        """

    def instruments(self, symbols: Iterable[str]) -> pa.Table | None:
        """The trading rules of the symbols, with the columns of raw.instruments; None if the provider has no rules."""
        return None

    def check_night(self, as_of: date) -> None:  # noqa: B027 (clients: their tape checks the night)
        """Raises NightOutOfRangeError if the provider is a recording that does not cover the night ``as_of``.

        It covers a night if the last session up to ``as_of`` is neither before its first bar nor after its last.
        """

    def close(self) -> None:  # noqa: B027 (files have no connection)
        """Closes the connections."""
