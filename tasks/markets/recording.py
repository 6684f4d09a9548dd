"""A market as arrays of one symbol each: bars, dividends, splits and funding settlements.

A ``Tape`` (tape.py) answers the requests of the real clients from a recorded or simulated market. All times are
datetime64[us] in UTC, oldest first; every other array is float64. The market also contains data after the night's clock
(a night is the run for one date); the tape leaves these data out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

import numpy as np

OHLC = ("open", "high", "low", "close")


@dataclass(frozen=True, eq=False)
class Bars:
    """One symbol's bars, arrays (t,). ``ts`` are the open times, ``close_times`` the close times.

    ``turnover`` is None if it is not recorded.
    """

    ts: np.ndarray
    close_times: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    turnover: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Stock:
    """A stock's daily bars, dividends (t,) in dollars per share, and splits (t,) in new shares per old share.

    A dividend or split is given at its ex-date; on other days both are 0. Prices are not adjusted for the splits that
    ``splits`` contains. They can be adjusted for other splits.
    """

    bars: Bars
    dividends: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, eq=False)
class Perpetual:
    """A perpetual's bars by interval ('1h', '1d'), its funding rates (s,) and their settlement times (s,)."""

    bars: dict[str, Bars]
    funding_ts: np.ndarray
    funding_rate: np.ndarray


class Recording(Protocol):
    """A recorded or simulated market."""

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers whose data it contains, of yahoo and bybit."""

    def check_night(self, provider: str, as_of: date) -> None:
        """Raises NightOutOfRangeError unless it has all bars of ``provider`` that closed by the end of ``as_of``."""

    def perpetuals(self) -> Sequence[str]:
        """The symbols of its perpetuals."""

    def stock(self, symbol: str) -> Stock:
        """One stock. Raises KeyError for a symbol that it does not have."""

    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual. Raises KeyError for a symbol that it does not have."""
