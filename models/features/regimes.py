"""Volatility regimes of one price series: the trailing regime and the future one.

Glossary: t sessions, h horizon. A regime is the tercile of the root mean square of h daily log returns within a
training span: 0 calm, 1 normal, 2 turbulent. The future regime is a label: it is known only at the close of t + h.
"""

from __future__ import annotations

import numpy as np

REGIMES = ("calm", "normal", "turbulent")
UNKNOWN = -1


def trailing_volatility(returns: np.ndarray, bars: int) -> np.ndarray:
    """Root mean square of the returns of t − bars + 1 … t, (t,); NaN if one of them is NaN or before the series."""
    out = np.full(len(returns), np.nan)
    if len(returns) >= bars:
        windows = np.lib.stride_tricks.sliding_window_view(returns, bars)
        out[bars - 1 :] = np.sqrt(np.mean(windows**2, axis=-1))
    return out


def future_volatility(returns: np.ndarray, bars: int) -> np.ndarray:
    """Root mean square of the returns of t + 1 … t + bars, (t,); NaN if one of them is NaN or after the series."""
    return np.concatenate([trailing_volatility(returns, bars)[bars:], np.full(min(bars, len(returns)), np.nan)])


def terciles(volatility: np.ndarray) -> np.ndarray:
    """The two thresholds that divide a training span's volatilities into thirds, (2,)."""
    return np.quantile(volatility, (1 / 3, 2 / 3))


def regimes(volatility: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The regime 0, 1 or 2 of each volatility, UNKNOWN for NaN; a value on a threshold is in the calmer regime."""
    return np.where(np.isnan(volatility), UNKNOWN, np.searchsorted(thresholds, volatility, side="left"))
