"""What ingest requires of a provider, the service or the recording that a universe's rows come from.

The column ``provider`` of warehouse/seeds/universes.csv names it: yahoo, bybit, binance. To add one, for example a
folder of CSV files, write a subclass of Provider in a file of this folder and register it in session.py:

CLIENTS      a service with a live market: ``Client(until, session, retry_policy)``. For a recorded or simulated night
             ``session`` is a tape's, which has to answer the client's requests (tape.py, recorded.py, simulated.py).
RECORDINGS   files only, read in recorded nights: ``Recording(folder, until)``. Live and simulated nights are refused.

Neither may return a row that was not known at the instant ``until`` (UTC).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import date, datetime

import pyarrow as pa


class Provider(ABC):
    """One symbol's rows at a time. Ingest calls ``fetch`` from several threads."""

    @abstractmethod
    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """The symbol's rows in [start, end) by raw table, oldest first.

        bars               symbol, interval ('1d', '1h', '1s'), ts (the bar's open, timestamp[us, UTC]), open, high,
                           low, close, close_adjusted, volume, turnover (float64, turnover null where unknown)
        corporate_actions  optional: symbol, ts (open of the ex-date's bar), kind ('dividend', 'split'), value
        funding_rates      optional: symbol, ts (settlement), rate
        events             optional: the columns of EVENT_ROWS, see event_rows.py

        Raises UnknownSymbolError for a symbol that the provider does not have, NoPricesError where it has no bar in the
        span, MalformedAnswerError or TapeMalformedError for data of another shape, OutageError for a failure that may
        pass: each costs this symbol only. ForbiddenError ends the whole ingest.
        """

    def instruments(self, symbols: Iterable[str]) -> pa.Table | None:
        """The trading rules of the symbols as rows of raw.instruments; None where the provider has none."""
        return None

    def check_night(self, as_of: date) -> None:  # noqa: B027 (a client leaves it to its tape)
        """Raises NightOutOfRangeError for a night that a recording does not cover."""

    def close(self) -> None:  # noqa: B027 (files have no connection)
        """Closes the connections."""
