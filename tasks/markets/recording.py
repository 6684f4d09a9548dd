"""The data behind a tape: bars, dividends, splits and funding settlements of one symbol at a time, as arrays.

All instants are datetime64[us] in UTC, oldest first; every other array is float64. A recording also contains data after
the night's clock; the tape cuts it off.
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
    """One symbol's bars, (t,) each; ``ts`` are their opens, ``closes`` their closes."""

    ts: np.ndarray
    closes: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    turnover: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Stock:
    """A stock's daily bars, its dividends (t,) in dollars a share and its splits (t,) in new shares per old share.

    Both are 0 on other days. Prices are as traded, or adjusted for splits that are then not listed here.
    """

    bars: Bars
    dividends: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, eq=False)
class Perpetual:
    """A perpetual's bars by interval ('1h', '1d'), and its funding rates with their settlement times."""

    bars: dict[str, Bars]
    funding_ts: np.ndarray
    funding_rate: np.ndarray


class Recording(Protocol):
    """A recorded or simulated market."""

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that it has data of: yahoo, bybit."""

    def check_night(self, provider: str, as_of: date) -> None:
        """Raises NightOutOfRangeError unless it has all bars that had closed by the end of ``as_of``."""

    def perpetuals(self) -> Sequence[str]:
        """The symbols of its perpetuals."""

    def stock(self, symbol: str) -> Stock:
        """One stock. Raises KeyError for a symbol that it does not have."""

    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual. Raises KeyError for a symbol that it does not have."""
