"""How far to trust a forecast made from memory, for position sizes (inventory TGN-34 to 37). Pure functions.

Glossary: n assets · w numbers of a memory · t snapshots, oldest first. Factors lie in [0, 1] and multiply a position;
NaN comes back where a question has no answer, never 0.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def freshness(last_update_us: Array, now_us: int, half_life_us: float) -> Array:
    """Confidence (n,) in memories last updated at ``last_update_us`` (n,): 1 when just updated, ½ after the half-life.

    NaN for times of 0 or less, which stand for never. Raises ValueError for an update that is yet to come.
    """
    last = np.asarray(last_update_us, dtype=np.float64)
    _positive("half_life_us", half_life_us)
    if (last > now_us).any():
        raise ValueError(
            f"asset {int((last > now_us).argmax())} was updated after now, {now_us} us; pass the later time"
        )
    return np.where(last > 0, 0.5 ** ((now_us - last) / half_life_us), np.nan)


def event_rate_risk(events: Array, usual_events: Array, high: float = 3.0, low: float = 1 / 3) -> tuple[Array, Array]:
    """What event counts (n,) of a while say against the usual count of such a while (n,): volatility and liquidity
    factors, both 1 between ``low`` and ``high`` times the usual.

    Above, volatility threatens and its factor falls as high · usual ÷ events. Below, liquidity is missing and its
    factor falls as events ÷ (low · usual). NaN where the usual count is 0.
    """
    if not 0 < low < 1 < high:
        raise ValueError(f"low is {low} and high {high}; give 0 < low < 1 < high")
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.asarray(events, dtype=np.float64) / np.asarray(usual_events, dtype=np.float64)
        times = np.where(np.isfinite(times), times, np.nan)
        return np.minimum(1.0, high / times), np.minimum(1.0, times / low)


def correlation_stability(correlation: Array) -> Array:
    """Factor (n,) from correlation matrices (t, n, n): 1 when each asset's correlations stay, 0 when they vary as much
    as numbers in [−1, 1] can.

    One minus the mean standard deviation over time of its pairs; NaN pairs are left out, NaN with fewer than two
    snapshots or no pair.
    """
    given = np.asarray(correlation, dtype=np.float64)
    n = given.shape[1]
    known = np.isfinite(given)
    count = known.sum(axis=0)
    filled = np.where(known, given, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1)
    variance = np.where(known, given - mean, 0.0) ** 2
    spread = np.sqrt(variance.sum(axis=0) / np.maximum(count, 1))
    pairs = (count >= 2) & ~np.eye(n, dtype=bool)
    with np.errstate(invalid="ignore"):
        total = np.where(pairs, spread, 0.0).sum(axis=1) / np.where(pairs.any(axis=1), pairs.sum(axis=1), np.nan)
    return 1.0 - np.clip(total, 0.0, 1.0)


def memory_divergence(recent: Array, old: Array) -> Array:
    """How far memories (n, w) have turned from what they were: (1 − cosine) ÷ 2, (n,), 0 the same way, 1 the opposite.

    High values say that the regime has changed. NaN where either memory is all zeros.
    """
    recent, old = np.asarray(recent, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if recent.shape != old.shape:
        raise ValueError(f"recent is {recent.shape} and old {old.shape}; give memories of the same assets")
    lengths = np.linalg.norm(recent, axis=1) * np.linalg.norm(old, axis=1)
    cosine = (recent * old).sum(axis=1) / np.where(lengths > 0, lengths, np.nan)
    return (1 - np.clip(cosine, -1.0, 1.0)) / 2


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; give a number above 0")
