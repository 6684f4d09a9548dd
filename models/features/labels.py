"""Labels: the return from the next open on, realised volatility, and classes.

Glossary: t bars, n assets, h horizons.

A decision is taken at the close of bar t, so the position is entered at the open of t + 1 and exited at the open of
t + 1 + horizon, both on the panel's grid; opens are adjusted by the total-return index (index · open / close). A label
is known only at its ``end``: training must drop every row whose label had not ended when the test began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.features.indicators import FeatureError, log_returns, log_total_return_index
from models.panel import Panel

CLASS_5 = ("STRONG_SELL", "SELL", "HOLD", "BUY", "STRONG_BUY")
UNKNOWN = -1
WEAK, STRONG = 0.25, 1.0  # class thresholds, in trailing volatilities over the class horizon


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of every bar and asset; unknown where the asset has no bar at t.

    ``returns`` (t, n, h) log, entry at the open of t + 1, exit at the open of t + 1 + horizon, NaN if either bar is
    missing. ``volatility`` (t, n): realised, per bar, over the class horizon after t, NaN if one of its bars is
    missing. ``class_5`` (t, n) int8 in 0..4, UNKNOWN without a return or a trailing volatility. ``end`` (t, h)
    datetime64[us]: the open of bar t + 1 + horizon, NaT if the grid ends before it.
    """

    horizons: tuple[int, ...]
    returns: np.ndarray
    volatility: np.ndarray
    class_5: np.ndarray
    end: np.ndarray

    def rows(self, start: int, stop: int) -> Labels:
        """Labels of bars [start, stop) by position."""
        bars = slice(start, stop)
        return replace(
            self,
            returns=self.returns[bars],
            volatility=self.volatility[bars],
            class_5=self.class_5[bars],
            end=self.end[bars],
        )


def compute_labels(bars: Panel, trailing_volatility: np.ndarray, horizons: Sequence[int], class_horizon: int) -> Labels:
    """Labels of ``bars`` at ``horizons`` (bars ahead, each at least 1); classes at ``class_horizon``, one of them.

    ``trailing_volatility`` (t, n), per bar, is the volatility known at t: the feature ``volatility_60``. The class
    thresholds are ±0.25 and ±1 times volatility · √horizon; a return on a threshold belongs to the milder class. Raises
    FeatureError for invalid horizons, and for a volatility of another shape.
    """
    horizons = tuple(int(h) for h in horizons)
    if not horizons or min(horizons) < 1 or len(set(horizons)) < len(horizons):
        raise FeatureError(f"horizons {horizons} must be distinct numbers of bars, each at least 1")
    if class_horizon not in horizons:
        raise FeatureError(f"class horizon {class_horizon} is not one of the horizons {horizons}")
    if trailing_volatility.shape != bars.mask.shape:
        raise FeatureError(f"trailing volatility {trailing_volatility.shape} does not fit bars {bars.mask.shape}")
    adjusted_open = log_total_return_index(bars) + np.log(bars.column("open") / bars.column("close"))
    entry = np.where(bars.mask, _ahead(adjusted_open, 1), np.nan)
    returns = np.stack([_ahead(adjusted_open, 1 + h) - entry for h in horizons], axis=-1)
    end = np.stack([_ahead(bars.ts, 1 + h) for h in horizons], axis=-1)
    class_return = returns[:, :, horizons.index(class_horizon)]
    return Labels(
        horizons,
        returns,
        np.where(bars.mask, _realised_volatility(log_returns(bars), class_horizon), np.nan),
        _classes(class_return, trailing_volatility * np.sqrt(class_horizon)),
        end,
    )


def _ahead(x: np.ndarray, k: int) -> np.ndarray:
    """x_{t+k} at t along the first axis, NaN or NaT where t + k is after the grid's end."""
    out = np.full_like(x, np.datetime64("NaT") if x.dtype.kind == "M" else np.nan)
    out[: max(len(x) - k, 0)] = x[k:]
    return out


def _realised_volatility(returns: np.ndarray, horizon: int) -> np.ndarray:
    """Root mean square of the returns of bars t + 1 to t + horizon, (t, n).

    About zero and not about their mean, because the mean of a few bars is noise (and of one bar the return itself).
    """
    squares = returns**2
    total = np.zeros_like(returns)
    for k in range(1, horizon + 1):
        total += _ahead(squares, k)
    return np.sqrt(total / horizon)


def _classes(returns: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Classes 0..4 of ``returns`` by the thresholds in units of ``scale``, (t, n) int8; UNKNOWN where either is NaN."""
    steps = np.zeros(returns.shape, dtype=np.int8)
    with np.errstate(invalid="ignore"):
        for threshold in (WEAK * scale, STRONG * scale):
            steps += (returns > threshold).astype(np.int8) - (returns < -threshold).astype(np.int8)
    return np.where(np.isnan(returns) | np.isnan(scale), np.int8(UNKNOWN), steps + np.int8(CLASS_5.index("HOLD")))
