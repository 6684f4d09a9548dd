"""Risk factors for position sizes, from the state of a temporal graph network's memories (TGN-34 to TGN-37).

Pure functions. Glossary: n assets · w numbers of a memory · t snapshots, oldest first. Factors lie in [0, 1] and
multiply a position; an undefined value is NaN, never 0.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def freshness(last_update_us: Array, now_us: int, half_life_us: float) -> Array:
    """Confidence (n,) in memories last updated at ``last_update_us`` (n,): 1 when just updated, ½ after the half-life.

    NaN for times of 0 or less, which mean that there was no update. Raises ValueError for an update after ``now_us``.
    """
    last = np.asarray(last_update_us, dtype=np.float64)
    _require_positive("half_life_us", half_life_us)
    if (last > now_us).any():
        raise ValueError(
            f"asset {int((last > now_us).argmax())} was updated after now, {now_us} us; pass the later time"
        )
    return np.where(last > 0, 0.5 ** ((now_us - last) / half_life_us), np.nan)


def event_rate_risk(events: Array, usual_events: Array, high: float = 3.0, low: float = 1 / 3) -> tuple[Array, Array]:
    """Volatility and liquidity factors (n,) from the event counts of a period and the usual counts of such a period.

    Both factors are 1 between ``low`` and ``high`` times the usual count. Above, volatility may rise, and the
    volatility factor falls as high · usual ÷ events. Below, liquidity is missing, and the liquidity factor falls as
    events ÷ (low · usual). NaN where the usual count is 0. Raises ValueError unless 0 < low < 1 < high.
    """
    if not 0 < low < 1 < high:
        raise ValueError(f"low is {low} and high {high}; give 0 < low < 1 < high")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(events, dtype=np.float64) / np.asarray(usual_events, dtype=np.float64)
        ratio = np.where(np.isfinite(ratio), ratio, np.nan)
        return np.minimum(1.0, high / ratio), np.minimum(1.0, ratio / low)


def correlation_stability(correlation: Array) -> Array:
    """Factor (n,) from correlation matrices (t, n, n): 1 when an asset's correlations are constant, 0 when they vary as
    much as numbers in [−1, 1] can.

    One minus the mean, over the asset's pairs, of the standard deviation over time. NaN correlations are ignored; NaN
    with fewer than two snapshots or no pair.
    """
    rho = np.asarray(correlation, dtype=np.float64)
    n = rho.shape[1]
    is_known = np.isfinite(rho)
    count = is_known.sum(axis=0)
    filled = np.where(is_known, rho, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(is_known, rho - mean, 0.0) ** 2
    spread = np.sqrt(squares.sum(axis=0) / np.maximum(count, 1))
    pairs = (count >= 2) & ~np.eye(n, dtype=bool)
    with np.errstate(invalid="ignore"):
        mean_spread = np.where(pairs, spread, 0.0).sum(axis=1) / np.where(pairs.any(axis=1), pairs.sum(axis=1), np.nan)
    return 1.0 - np.clip(mean_spread, 0.0, 1.0)


def memory_divergence(recent: Array, old: Array) -> Array:
    """The distance (1 − cosine) ÷ 2, (n,), between memories (n, w) now and before: 0 same direction, 1 opposite.

    High values indicate a change of regime. NaN where either memory is all zeros. Raises ValueError for shapes that
    differ.
    """
    recent = np.asarray(recent, dtype=np.float64)
    old = np.asarray(old, dtype=np.float64)
    if recent.shape != old.shape:
        raise ValueError(f"recent is {recent.shape} and old {old.shape}; give memories of the same assets")
    lengths = np.linalg.norm(recent, axis=1) * np.linalg.norm(old, axis=1)
    cosine = (recent * old).sum(axis=1) / np.where(lengths > 0, lengths, np.nan)
    return (1 - np.clip(cosine, -1.0, 1.0)) / 2


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; give a number above 0")
