"""Labels: log returns from the next open on, realised volatility, and five classes.

Glossary: t bars, n assets, h horizons.

A decision is made at the close of bar t. Its position is entered at the open of bar t + 1 and exited at the open of bar
t + 1 + horizon, where bars are counted on the panel's grid. The opens are adjusted for dividends and splits by the
total-return index: adjusted open = index · open / close. A label is not known before its ``end``: a training set must
purge every row whose label had not ended when the test window began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.features.indicators import FeatureError, log_returns, log_total_return_index
from models.panel import Panel

CLASS_NAMES = ("STRONG_SELL", "SELL", "HOLD", "BUY", "STRONG_BUY")
UNKNOWN_CLASS = -1
CLASS_THRESHOLD = 0.25  # both thresholds are in units of trailing volatility · √(class horizon)
STRONG_CLASS_THRESHOLD = 1.0


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of every bar and asset.

    ``returns`` (t, n, h): log return from the open of bar t + 1 to that of bar t + 1 + horizon; NaN if the asset lacks
    bar t or one of these two. ``volatility`` (t, n): root mean square of the one-bar log returns of the bars t + 1 to
    t + class horizon; NaN if the asset lacks bar t or one of these returns. ``class_5`` (t, n) int8: an index of
    CLASS_NAMES, or UNKNOWN_CLASS without a return or a trailing volatility. ``end`` (t, h) datetime64[us], UTC: the
    open of bar t + 1 + horizon, NaT if the grid ends before it.
    """

    horizons: tuple[int, ...]
    returns: np.ndarray
    volatility: np.ndarray
    class_5: np.ndarray
    end: np.ndarray

    def slice_bars(self, start: int, stop: int) -> Labels:
        """Labels of the bars at positions [start, stop)."""
        bars = slice(start, stop)
        return replace(
            self,
            returns=self.returns[bars],
            volatility=self.volatility[bars],
            class_5=self.class_5[bars],
            end=self.end[bars],
        )


def compute_labels(bars: Panel, trailing_volatility: np.ndarray, horizons: Sequence[int], class_horizon: int) -> Labels:
    """Labels of ``bars`` at ``horizons``, which are distinct numbers of bars, each at least 1.

    Volatility and classes are those of ``class_horizon``, which is one of the horizons. ``trailing_volatility`` (t, n)
    is the volatility per bar known at the close of bar t: the feature ``volatility_60``. The class thresholds are
    ±0.25 and ±1 times trailing volatility · √(class horizon). A return equal to a threshold belongs to the class nearer
    to HOLD. Raises FeatureError for invalid horizons and for a trailing volatility of another shape than (t, n).
    """
    horizons = tuple(int(h) for h in horizons)
    if not horizons or min(horizons) < 1 or len(set(horizons)) < len(horizons):
        raise FeatureError(f"horizons {horizons} must be distinct numbers of bars, each at least 1")
    if class_horizon not in horizons:
        raise FeatureError(f"class horizon {class_horizon} is not one of the horizons {horizons}")
    if trailing_volatility.shape != bars.mask.shape:
        raise FeatureError(f"trailing volatility {trailing_volatility.shape} does not fit bars {bars.mask.shape}")
    log_adjusted_open = log_total_return_index(bars) + np.log(bars.column("open") / bars.column("close"))
    log_entry = np.where(bars.mask, _lead(log_adjusted_open, 1), np.nan)
    returns = np.stack([_lead(log_adjusted_open, 1 + h) - log_entry for h in horizons], axis=-1)
    realised_volatility = _realised_volatility(log_returns(bars), class_horizon)
    class_returns = returns[:, :, horizons.index(class_horizon)]
    return Labels(
        horizons=horizons,
        returns=returns,
        volatility=np.where(bars.mask, realised_volatility, np.nan),
        class_5=_classify_returns(class_returns, trailing_volatility * np.sqrt(class_horizon)),
        end=np.stack([_lead(bars.ts, 1 + h) for h in horizons], axis=-1),
    )


def _lead(x: np.ndarray, n_bars: int) -> np.ndarray:
    """At position t the value x[t + n_bars] along the first axis; NaN, or NaT for times, after the end of x."""
    out = np.full_like(x, np.datetime64("NaT") if x.dtype.kind == "M" else np.nan)
    out[: max(len(x) - n_bars, 0)] = x[n_bars:]
    return out


def _realised_volatility(returns: np.ndarray, horizon: int) -> np.ndarray:
    """Root mean square of the one-bar log returns (t, n) of the bars t + 1 to t + horizon, (t, n).

    The mean is not subtracted: the mean of a few bars is noise, and the mean of one bar is the return itself.
    """
    squares = returns**2
    total = np.zeros_like(returns)
    for n_bars in range(1, horizon + 1):
        total += _lead(squares, n_bars)
    return np.sqrt(total / horizon)


def _classify_returns(returns: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Class of each of ``returns`` (t, n) by the thresholds in units of ``scale`` (t, n); (t, n) int8.

    UNKNOWN_CLASS where the return or the scale is NaN.
    """
    classes_above_hold = np.zeros(returns.shape, dtype=np.int8)  # negative: classes below HOLD
    with np.errstate(invalid="ignore"):
        for threshold in (CLASS_THRESHOLD * scale, STRONG_CLASS_THRESHOLD * scale):
            classes_above_hold += (returns > threshold).astype(np.int8) - (returns < -threshold).astype(np.int8)
    classes = classes_above_hold + np.int8(CLASS_NAMES.index("HOLD"))
    return np.where(np.isnan(returns) | np.isnan(scale), np.int8(UNKNOWN_CLASS), classes)
