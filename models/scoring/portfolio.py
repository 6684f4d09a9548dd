"""From views to target weights: w_i = s_i·c_i / Σ|s_j·c_j|, then the limits (HYB-24, TGN-38).

Glossary: n assets, d decisions, w sessions of a correlation window.
Filters come before the division (a view that is too old or too unsure is no view); caps come after it, and what a cap
takes away stays in cash: nothing is redistributed, so a cap can only lower exposure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numba import njit

HOUR = np.timedelta64(1, "h")
FLAT = 1e-12  # root mean square of centred returns below this is rounding, not movement
DECIMALS = 6  # of a correlation: sums round differently on another machine, and no limit must flip on that


@dataclass(frozen=True)
class Limits:
    """Risk limits; weights and exposures are fractions of equity.

    ``max_correlated_exposure`` bounds Σ|w| over an asset and those that win and lose with it: s_i·s_j·ρ_ij at or above
    ``correlation_threshold``, ρ over the last ``correlation_sessions`` sessions. ``max_staleness_hours`` is the age of
    a view at the decision. After equity falls ``drawdown_trigger`` below its peak the book is flat for
    ``cooldown_sessions``, then the peak starts anew (see simulate). Defaults are the source's; its ``min_confidence``
    of 0.6 is out of reach for a three-class forecast of daily returns, so a run chooses its own.
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
        below = [f.name for f in fields(self) if not getattr(self, f.name) > 0]
        if below:
            raise ValueError(f"limits must be above zero: {', '.join(below)} of {self}")


def last_seen(seen: np.ndarray, closes: np.ndarray, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each decision and asset: the bar of its last view, −1 for none, and that bar's age in hours, inf for none.

    ``seen`` (t, n) True where an asset has a view; ``closes`` (t,) datetime64 when each bar closes; ``decisions`` (d,)
    bar positions. Both results are (d, n).
    """
    bar = np.where(seen, np.arange(len(seen))[:, None], -1)
    last = np.maximum.accumulate(bar, axis=0)[decisions]
    age = (closes[decisions][:, None] - closes[last]) / HOUR
    return last, np.where(last < 0, np.inf, age)


def correlation(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation of returns (w, n) → (n, n), to six decimals; 0 for an asset without movement.

    An asset with a NaN is taken to move with every other (1): no limit is off because a history is short.
    """
    centred = returns - returns.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    moves = norm > FLAT * np.sqrt(len(returns))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=moves)
    rho, unknown = np.round(_gram(unit), DECIMALS), np.isnan(norm)
    rho[unknown], rho[:, unknown] = 1.0, 1.0
    return rho


@njit(cache=True)
def _gram(unit):
    """unitᵀ·unit. By hand, because it is small and asked for thousands of times: on a busy machine the threads of a
    matrix library wait for each other a hundred times longer than the product takes."""
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
    (w, n) of the last sessions, NaN where an asset was not there. Within a correlated group every member is scaled by
    the tightest group it belongs to, so the result does not depend on any order and no group exceeds its limit.
    """
    usable = (confidence >= limits.min_confidence) & (age_hours <= limits.max_staleness_hours)
    conviction = np.where(usable, side * np.where(usable, confidence, 0.0), 0.0)
    total = np.abs(conviction).sum()
    if total == 0:
        return np.zeros(len(side))
    weight = np.clip(conviction / total, -limits.max_position, limits.max_position)
    together = (
        np.sign(weight)[:, None] * np.sign(weight)[None, :] * correlation(returns) >= limits.correlation_threshold
    )
    np.fill_diagonal(together, True)
    group = together @ np.abs(weight)
    room = np.minimum(1.0, limits.max_correlated_exposure / np.maximum(group, limits.max_correlated_exposure))
    weight *= np.where(together, room[None, :], 1.0).min(axis=1)
    return weight * (limits.max_leverage / max(np.abs(weight).sum(), limits.max_leverage))


def decide(
    side: np.ndarray, confidence: np.ndarray, age_hours: np.ndarray, closes: np.ndarray, limits: Limits, first: int = 0
) -> np.ndarray:
    """Target weights of decisions ``first`` and after, (d − first, n), from views (d, n) at every decision.

    ``closes`` (d, n) adjusted prices at the decisions, NaN where an asset has no bar: it is taken at its last price, so
    one missing bar does not lose its correlations for a whole window. Decision k sees rows ≤ k only.
    """
    span = limits.correlation_sessions
    returns = session_returns(closes)
    weights = np.zeros((len(side) - first, side.shape[1]))
    for row, k in enumerate(range(first, len(side))):
        seen = returns[max(k + 1 - span, 0) : k + 1]
        window = seen if len(seen) == span else np.full((1, side.shape[1]), np.nan)
        weights[row] = target_weights(side[k], confidence[k], age_hours[k], window, limits)
    return weights


def session_returns(closes: np.ndarray) -> np.ndarray:
    """Simple returns between rows of prices (d, n), (d, n); a missing price is the last one, the first return NaN."""
    row = np.maximum.accumulate(np.where(np.isnan(closes), 0, np.arange(len(closes))[:, None]), axis=0)
    held = np.take_along_axis(closes, row, axis=0)
    returns = np.full(closes.shape, np.nan)
    returns[1:] = held[1:] / held[:-1] - 1.0
    return returns
