"""Risk factors for position sizes, from the state of a temporal graph network's memories.

Implements TGN-34 to TGN-37 (ids: .github/sources.md).

Glossary: n assets · w length of a memory vector · t snapshots, oldest first.

A factor lies in [0, 1] and is meant to multiply a position. A value that is undefined is NaN, never 0.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def freshness(last_update_us: Array, now_us: int, half_life_us: float) -> Array:
    """Freshness (n,) of memories: 1 right after an update, ½ after ``half_life_us``, ¼ after twice that time.

    ``last_update_us`` (n,) and ``now_us`` are microseconds since 1970, UTC. A time of 0 or less means that there was no
    update: its freshness is NaN. Raises ValueError for an update after ``now_us``, and for a half-life of 0 or less.
    """
    last_update = np.asarray(last_update_us, dtype=np.float64)
    if not half_life_us > 0:
        raise ValueError(f"half_life_us is {half_life_us}; give a number above 0")
    if (last_update > now_us).any():
        raise ValueError(
            f"asset {int((last_update > now_us).argmax())} was updated after now, {now_us} us; pass the later time"
        )
    return np.where(last_update > 0, 0.5 ** ((now_us - last_update) / half_life_us), np.nan)


def event_rate_risk(
    n_events: Array, usual_n_events: Array, high: float = 3.0, low: float = 1 / 3
) -> tuple[Array, Array]:
    """Volatility factor (n,) and liquidity factor (n,) from the event counts (n,) of a period and their usual values.

    Let ratio = ``n_events`` ÷ ``usual_n_events``. The volatility factor is 1 up to the ratio ``high`` and
    ``high`` ÷ ratio above it, because many events may mean that volatility rises. The liquidity factor is 1 down to the
    ratio ``low`` and ratio ÷ ``low`` below it, because few events mean that liquidity is missing. Both are NaN where
    the usual count is 0. Raises ValueError unless 0 < low < 1 < high.
    """
    if not 0 < low < 1 < high:
        raise ValueError(f"low is {low} and high {high}; give 0 < low < 1 < high")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(n_events, dtype=np.float64) / np.asarray(usual_n_events, dtype=np.float64)
        ratio = np.where(np.isfinite(ratio), ratio, np.nan)
        return np.minimum(1.0, high / ratio), np.minimum(1.0, ratio / low)


def correlation_stability(correlation: Array) -> Array:
    """Stability factor (n,) of each asset's correlations (t, n, n): 1 when they are constant, 0 when they vary most.

    The factor is 1 − the mean over the asset's pairs of the standard deviation over time, which is at most 1 for
    numbers in [−1, 1]. NaN correlations are ignored, and so is a pair with fewer than two known correlations. NaN for
    an asset whose pairs are all ignored.
    """
    rho = np.asarray(correlation, dtype=np.float64)
    n = rho.shape[1]
    is_known = np.isfinite(rho)
    n_known = is_known.sum(axis=0)
    filled = np.where(is_known, rho, 0.0)
    mean = filled.sum(axis=0) / np.maximum(n_known, 1)
    squares = np.where(is_known, rho - mean, 0.0) ** 2
    deviation = np.sqrt(squares.sum(axis=0) / np.maximum(n_known, 1))
    is_pair = (n_known >= 2) & ~np.eye(n, dtype=bool)
    n_pairs = np.where(is_pair.any(axis=1), is_pair.sum(axis=1), np.nan)
    with np.errstate(invalid="ignore"):
        mean_deviation = np.where(is_pair, deviation, 0.0).sum(axis=1) / n_pairs
    return 1.0 - np.clip(mean_deviation, 0.0, 1.0)


def memory_divergence(recent: Array, old: Array) -> Array:
    """The cosine distance (1 − cosine) ÷ 2, (n,), between the memories (n, w) of two times.

    0 for the same direction, ½ for orthogonal memories, 1 for opposite directions. A high value indicates a change of
    regime. NaN where one of the two memories is all zeros. Raises ValueError for shapes that differ.
    """
    recent = np.asarray(recent, dtype=np.float64)
    old = np.asarray(old, dtype=np.float64)
    if recent.shape != old.shape:
        raise ValueError(f"recent is {recent.shape} and old {old.shape}; give memories of the same assets")
    norm_product = np.linalg.norm(recent, axis=1) * np.linalg.norm(old, axis=1)
    cosine = (recent * old).sum(axis=1) / np.where(norm_product > 0, norm_product, np.nan)
    return (1 - np.clip(cosine, -1.0, 1.0)) / 2
