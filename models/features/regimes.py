"""Volatility regimes of one price series: the trailing regime and the future regime.

Glossary: t sessions, oldest first; bars: the number of sessions of a window.

A regime is the tercile of the root mean square of ``bars`` daily log returns: 0 calm, 1 normal, 2 turbulent. The two
thresholds between the terciles come from a training span. The future regime is a label: it is known only at the close
of session t + bars.
"""

from __future__ import annotations

import numpy as np

REGIMES = ("calm", "normal", "turbulent")
UNKNOWN_REGIME = -1


def trailing_volatility(returns: np.ndarray, bars: int) -> np.ndarray:
    """Root mean square of the log returns (t,) of the sessions t − bars + 1 to t, (t,).

    NaN where one of these returns is NaN, and for the first bars − 1 sessions.
    """
    out = np.full(len(returns), np.nan)
    if len(returns) >= bars:
        windows = np.lib.stride_tricks.sliding_window_view(returns, bars)
        out[bars - 1 :] = np.sqrt(np.mean(windows**2, axis=-1))
    return out


def future_volatility(returns: np.ndarray, bars: int) -> np.ndarray:
    """Root mean square of the log returns (t,) of the sessions t + 1 to t + bars, (t,).

    NaN where one of these returns is NaN, and for the last ``bars`` sessions.
    """
    return np.concatenate([trailing_volatility(returns, bars)[bars:], np.full(min(bars, len(returns)), np.nan)])


def tercile_thresholds(volatility: np.ndarray) -> np.ndarray:
    """The two ascending thresholds that divide the volatilities of a training span into thirds, (2,).

    Both are NaN if a volatility is NaN.
    """
    return np.quantile(volatility, (1 / 3, 2 / 3))


def assign_regimes(volatility: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The regime of each volatility, an index of REGIMES; int64 of the same shape.

    UNKNOWN_REGIME for NaN. A volatility equal to a threshold belongs to the calmer regime.
    """
    return np.where(np.isnan(volatility), UNKNOWN_REGIME, np.searchsorted(thresholds, volatility, side="left"))
