"""From views to target weights: w_i = s_i·c_i / Σ|s_j·c_j|, then the limits (HYB-24, TGN-38).

Glossary: n assets, d decisions, w sessions of a correlation window.
Filters are applied before the division (a view that is too old or has too little confidence is ignored); caps are
applied after it. The part that a cap removes stays in cash and is not redistributed, so a cap only lowers exposure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numba import njit

WHOLE_HOUR = np.timedelta64(1, "h")  # unit "h", not microseconds: numpy truncates a multiple of it to whole hours
FLAT = 1e-12  # root mean square of centred returns below this is rounding error
DECIMALS = 6  # of a correlation: sums round differently on another machine, which must not decide about a limit


@dataclass(frozen=True)
class Limits:
    """Risk limits; weights and exposures are fractions of equity.

    ``max_correlated_exposure`` bounds Σ|w| over an asset and its correlated group: the assets j with s_i·s_j·ρ_ij at or
    above ``correlation_threshold``, ρ over the last ``correlation_sessions`` sessions. ``max_staleness_hours`` bounds
    the age of a view at the decision. After equity falls ``drawdown_trigger`` below its peak the portfolio holds cash
    for ``cooldown_sessions``, then the peak is reset (see simulate). Defaults are those of the source article; its
    ``min_confidence`` of 0.6 is out of reach for three-class forecasts of daily returns, so each run sets its own.
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


def latest_views(has_view: np.ndarray, closes: np.ndarray, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each decision and asset: the bar of the latest view, −1 for none, and that bar's age in hours, inf for none.

    ``has_view`` (t, n) True where an asset has a view; ``closes`` (t,) datetime64 the close of each bar; ``decisions``
    (d,) bar positions. Both results are (d, n).
    """
    bar = np.where(has_view, np.arange(len(has_view))[:, None], -1)
    last = np.maximum.accumulate(bar, axis=0)[decisions]
    age = (closes[decisions][:, None] - closes[last]) / WHOLE_HOUR
    return last, np.where(last < 0, np.inf, age)


def correlation(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation of returns (w, n) → (n, n), rounded to DECIMALS; 0 for an asset without movement.

    The correlations of an asset with a NaN are 1, so that limits also apply to an asset with a short history.
    """
    centred = returns - returns.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    has_movement = norm > FLAT * np.sqrt(len(returns))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=has_movement)
    rho = np.round(_gram(unit), DECIMALS)
    is_unknown = np.isnan(norm)
    rho[is_unknown] = 1.0
    rho[:, is_unknown] = 1.0
    return rho


@njit(cache=True)
def _gram(unit):
    """unitᵀ·unit as plain loops: the matrix is small and computed thousands of times, and on a busy machine the threads
    of a matrix library wait for each other a hundred times longer than the product takes."""
    rows, n = unit.shape
    out = np.zeros((n, n))
    for k in range(rows):
        for i in range(n):
            for j in range(i, n):
                out[i, j] += unit[k, i] * unit[k, j]
    for i in range(n):
        for j in range(i):
            out[i, j] = out[j, i]
    return out


def target_weights(
    side: np.ndarray, confidence: np.ndarray, age_hours: np.ndarray, returns: np.ndarray, limits: Limits
) -> np.ndarray:
    """Weights of one decision, (n,), signed fractions of equity; Σ|w| ≤ min(1, max_leverage).

    ``side`` (n,) −1, 0, 1; ``confidence`` (n,) in [0, 1], NaN = no view; ``age_hours`` (n,) of each view; ``returns``
    (w, n) of the last sessions, NaN where an asset has none. Every asset is scaled by the tightest of the correlated
    groups that contain it, so the result does not depend on the order of the assets and no group exceeds its limit.
    """
    is_usable = (confidence >= limits.min_confidence) & (age_hours <= limits.max_staleness_hours)
    conviction = np.where(is_usable, side * np.where(is_usable, confidence, 0.0), 0.0)
    total = np.abs(conviction).sum()
    if total == 0:
        return np.zeros(len(side))
    weight = np.clip(conviction / total, -limits.max_position, limits.max_position)
    is_correlated = (
        np.sign(weight)[:, None] * np.sign(weight)[None, :] * correlation(returns) >= limits.correlation_threshold
    )
    np.fill_diagonal(is_correlated, True)
    exposure = is_correlated @ np.abs(weight)
    scale = np.minimum(1.0, limits.max_correlated_exposure / np.maximum(exposure, limits.max_correlated_exposure))
    weight *= np.where(is_correlated, scale[None, :], 1.0).min(axis=1)
    return weight * (limits.max_leverage / max(np.abs(weight).sum(), limits.max_leverage))


def decide(
    side: np.ndarray, confidence: np.ndarray, age_hours: np.ndarray, closes: np.ndarray, limits: Limits, first: int = 0
) -> np.ndarray:
    """Target weights of decisions ``first`` and after, (d − first, n), from views (d, n) at every decision.

    ``closes`` (d, n) adjusted prices at the decisions, NaN where an asset has no bar: its last price is used instead,
    so that one missing bar does not make the correlations of a whole window NaN. Decision k reads only rows ≤ k.
    """
    window_sessions = limits.correlation_sessions
    returns = session_returns(closes)
    weights = np.zeros((len(side) - first, side.shape[1]))
    for row, k in enumerate(range(first, len(side))):
        past = returns[max(k + 1 - window_sessions, 0) : k + 1]
        window = past if len(past) == window_sessions else np.full((1, side.shape[1]), np.nan)
        weights[row] = target_weights(side[k], confidence[k], age_hours[k], window, limits)
    return weights


def session_returns(closes: np.ndarray) -> np.ndarray:
    """Simple returns (d, n) between rows of prices (d, n), with a missing price replaced by the last one; the first row
    is NaN."""
    row = np.maximum.accumulate(np.where(np.isnan(closes), 0, np.arange(len(closes))[:, None]), axis=0)
    filled = np.take_along_axis(closes, row, axis=0)
    returns = np.full(closes.shape, np.nan)
    returns[1:] = filled[1:] / filled[:-1] - 1.0
    return returns
