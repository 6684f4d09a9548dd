"""Target weights from trading signals: w_i = s_i·c_i / Σ|s_j·c_j|, then the limits.

Implements HYB-24 and TGN-38 (ids: .github/sources.md).

Glossary: s direction of a signal (−1, 0, 1), c its confidence, w weight, ρ correlation · n assets, t bars, d decisions
(one per session), k sessions of a correlation window.

A signal that is too old or has too little confidence is ignored before the division. Caps are applied after the
division. The part that a cap removes stays in cash and is not redistributed, so a cap only lowers exposure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numba import njit

WHOLE_HOUR = np.timedelta64(1, "h")  # unit "h", not microseconds: numpy truncates a multiple of it to whole hours
MIN_RETURN_RMS = 1e-12  # a root mean square of centred returns up to this is rounding error
CORRELATION_DECIMALS = 6  # sums round differently on another machine, which must not decide about a limit


@dataclass(frozen=True)
class Limits:
    """Risk limits; weights and exposures are fractions of equity.

    ``max_position`` bounds |w| of each asset and ``max_leverage`` bounds Σ|w| of all assets. The correlated group of
    asset i is the asset itself and every asset j with s_i·s_j·ρ_ij ≥ ``correlation_threshold``, where ρ is computed
    over the last ``correlation_sessions`` sessions; ``max_correlated_exposure`` bounds Σ|w| of each group.

    A signal needs a confidence of at least ``min_confidence`` and at the decision an age of at most
    ``max_staleness_hours``. After equity falls by the fraction ``drawdown_trigger`` below its peak, the portfolio holds
    cash for ``cooldown_sessions``; then the peak is reset (see models.scoring.simulate).

    The defaults are the limits of the source article. Three-class forecasts of daily returns seldom reach its
    ``min_confidence`` of 0.6, so each run sets its own. Raises ValueError for a limit that is not above 0.
    """

    max_position: float = 0.05
    max_correlated_exposure: float = 0.15
    correlation_threshold: float = 0.7
    correlation_sessions: int = 60
    max_staleness_hours: float = 1.0
    min_confidence: float = 0.6
    drawdown_trigger: float = 0.10
    cooldown_sessions: int = 20
    max_leverage: float = 3.0

    def __post_init__(self) -> None:
        not_positive = [f.name for f in fields(self) if not getattr(self, f.name) > 0]
        if not_positive:
            raise ValueError(f"limits must be above zero: {', '.join(not_positive)} of {self}")


def latest_signals(
    has_signal: np.ndarray, close_times: np.ndarray, decisions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bar of each asset's latest signal at each decision, (d, n) int64, and its age in hours, (d, n) float64.

    ``has_signal`` (t, n) bool: True where the asset has a signal of that bar. ``close_times`` (t,) datetime64: the
    close of each bar. ``decisions`` (d,): the positions of the bars at whose close a decision is made. A signal of the
    decision's own bar has age 0. Without a signal up to the decision the bar is −1 and the age is inf.
    """
    bar = np.where(has_signal, np.arange(len(has_signal))[:, None], -1)
    latest_bar = np.maximum.accumulate(bar, axis=0)[decisions]
    age_hours = (close_times[decisions][:, None] - close_times[latest_bar]) / WHOLE_HOUR
    return latest_bar, np.where(latest_bar < 0, np.inf, age_hours)


def correlation(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation of returns (k, n), rounded to CORRELATION_DECIMALS, (n, n).

    Every correlation of an asset with constant returns is 0. Every correlation of an asset with a NaN return is 1, so
    that limits also apply to an asset with a short history.
    """
    centred = returns - returns.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    has_movement = norm > MIN_RETURN_RMS * np.sqrt(len(returns))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=has_movement)
    rho = np.round(_gram(unit), CORRELATION_DECIMALS)
    has_nan = np.isnan(norm)
    rho[has_nan] = 1.0
    rho[:, has_nan] = 1.0
    return rho


@njit(cache=True)
def _gram(unit):
    """unitᵀ·unit for ``unit`` (k, n), (n, n).

    The matrix is small and is computed thousands of times. Plain loops avoid a matrix library, whose threads wait for
    each other on a busy machine a hundred times longer than the product takes.
    """
    n_sessions, n = unit.shape
    out = np.zeros((n, n))
    for session in range(n_sessions):
        for i in range(n):
            for j in range(i, n):
                out[i, j] += unit[session, i] * unit[session, j]
    for i in range(n):
        for j in range(i):
            out[i, j] = out[j, i]
    return out


def target_weights(
    direction: np.ndarray, confidence: np.ndarray, age_hours: np.ndarray, returns: np.ndarray, limits: Limits
) -> np.ndarray:
    """Weights of one decision, (n,), signed fractions of equity; Σ|w| ≤ min(1, max_leverage).

    ``direction`` (n,) is −1, 0 or 1. ``confidence`` (n,) lies in [0, 1] and is NaN without a signal. ``age_hours`` (n,)
    is the age of each signal. ``returns`` (k, n) are the simple returns of the last sessions, NaN where unknown.

    A group whose exposure exceeds its limit needs the factor limit ÷ exposure. The weight of each asset is multiplied
    by the smallest factor of the groups that contain it. So no group exceeds its limit, and the result does not depend
    on the order of the assets.
    """
    is_accepted = (confidence >= limits.min_confidence) & (age_hours <= limits.max_staleness_hours)
    conviction = np.where(is_accepted, direction * np.where(is_accepted, confidence, 0.0), 0.0)
    total_conviction = np.abs(conviction).sum()
    if total_conviction == 0:
        return np.zeros(len(direction))
    weight = np.clip(conviction / total_conviction, -limits.max_position, limits.max_position)
    is_correlated = (
        np.sign(weight)[:, None] * np.sign(weight)[None, :] * correlation(returns) >= limits.correlation_threshold
    )
    np.fill_diagonal(is_correlated, True)
    group_exposure = is_correlated @ np.abs(weight)
    max_exposure = limits.max_correlated_exposure
    group_factor = np.minimum(1.0, max_exposure / np.maximum(group_exposure, max_exposure))
    weight *= np.where(is_correlated, group_factor[None, :], 1.0).min(axis=1)
    return weight * (limits.max_leverage / max(np.abs(weight).sum(), limits.max_leverage))


def decide_weights(
    direction: np.ndarray,
    confidence: np.ndarray,
    age_hours: np.ndarray,
    close_prices: np.ndarray,
    limits: Limits,
    first: int = 0,
) -> np.ndarray:
    """Target weights of the decisions from number ``first`` (0-based) on, (d − first, n).

    ``direction``, ``confidence`` and ``age_hours`` (d, n) are those of ``target_weights``, one row per decision.
    ``close_prices`` (d, n) are adjusted prices at the decisions, NaN where an asset has no bar. A missing price is
    replaced by the asset's last price, so that one missing bar does not make all correlations of a window unknown.
    Until ``correlation_sessions`` returns exist, all assets count as correlated. A decision reads no later row.
    """
    n_decisions, n = direction.shape
    window_sessions = limits.correlation_sessions
    returns = session_returns(close_prices)
    weights = np.zeros((n_decisions - first, n))
    for decision in range(first, n_decisions):
        past_returns = returns[max(decision + 1 - window_sessions, 0) : decision + 1]
        is_full = len(past_returns) == window_sessions
        window_returns = past_returns if is_full else np.full((1, n), np.nan)
        weights[decision - first] = target_weights(
            direction[decision], confidence[decision], age_hours[decision], window_returns, limits
        )
    return weights


def session_returns(close_prices: np.ndarray) -> np.ndarray:
    """Simple return of each session on the session before it, (d, n), from ``close_prices`` (d, n).

    A missing price (NaN) is replaced by the asset's last price. NaN up to the asset's first price, inclusive.
    """
    n_sessions = len(close_prices)
    last_priced = np.where(np.isnan(close_prices), 0, np.arange(n_sessions)[:, None])
    last_priced = np.maximum.accumulate(last_priced, axis=0)
    filled_prices = np.take_along_axis(close_prices, last_priced, axis=0)
    returns = np.full(close_prices.shape, np.nan)
    returns[1:] = filled_prices[1:] / filled_prices[:-1] - 1.0
    return returns
