"""Volatility regimes of one price series: the trailing regime and the future regime.

Glossary: t sessions, oldest first; n_sessions: the number of sessions of a window.

A regime is the tercile of the root mean square of ``n_sessions`` daily log returns: 0 calm, 1 normal, 2 turbulent. The
two thresholds between the terciles come from a training span. The future regime is a label: it is known only at the
close of session t + n_sessions.
"""

from __future__ import annotations

import numpy as np

REGIMES = ("calm", "normal", "turbulent")
UNKNOWN_REGIME = -1


def trailing_volatility(returns: np.ndarray, n_sessions: int) -> np.ndarray:
    """Root mean square of the log returns (t,) of the sessions t − n_sessions + 1 to t, (t,).

    NaN where one of these returns is NaN, and for the first n_sessions − 1 sessions.
    """
    out = np.full(len(returns), np.nan)
    if len(returns) >= n_sessions:
        windows = np.lib.stride_tricks.sliding_window_view(returns, n_sessions)
        out[n_sessions - 1 :] = np.sqrt(np.mean(windows**2, axis=-1))
    return out


def future_volatility(returns: np.ndarray, n_sessions: int) -> np.ndarray:
    """Root mean square of the log returns (t,) of the sessions t + 1 to t + n_sessions, (t,).

    NaN where one of these returns is NaN, and for the last ``n_sessions`` sessions.
    """
    trailing = trailing_volatility(returns, n_sessions)
    return np.concatenate([trailing[n_sessions:], np.full(min(n_sessions, len(returns)), np.nan)])


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
