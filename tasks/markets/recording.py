"""What stands behind a tape: bars, dividends, splits and settlements of one symbol at a time, as arrays.

All instants are datetime64[us] in UTC, oldest first; every other array is float64. A recording knows its own future:
the tape that plays it cuts it at the clock.
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
    """One symbol's bars, (t,) each; ``ts`` is when they open, ``closes`` when they have closed."""

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
    """A stock's daily bars, its dividends (t,) in dollars a share and its splits (t,) in new shares for an old one.

    Both are 0 on other days. Prices are as traded, or adjusted for splits that are then not listed here.
    """

    bars: Bars
    dividends: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, eq=False)
class Perpetual:
    """A perpetual's bars by interval ('1h', '1d'), and its funding rates with the times they settled."""

    bars: dict[str, Bars]
    funding_ts: np.ndarray
    funding_rate: np.ndarray


class Recording(Protocol):
    """A recorded or simulated market."""

    @property
    def providers(self) -> tuple[str, ...]:
        """The markets it can stand in for: yahoo, bybit, binance."""

    def check_night(self, provider: str, as_of: date) -> None:
        """Returns when it holds what had closed by the end of ``as_of``, else raises NightOutOfRangeError."""

    def perpetuals(self) -> Sequence[str]:
        """Symbols of its perpetuals."""

    def stock(self, symbol: str) -> Stock:
        """One stock; KeyError when it has none of that name."""

    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual; KeyError when it has none of that name."""
