"""Moving-block bootstrap intervals of a mean score over dependent days: Künsch (1989), percentile intervals.

The labels of neighbouring days overlap, so days are not independent: a block must be longer than the label. The seeds
of the fits are resampled as well, so an interval includes the randomness of the fit and the randomness of the days.

Glossary: s seeds of fits · t days · m models · r draws. A score (s, t) is one number per seed and day whose mean is the
measure; for an accuracy it is 1 for a correct prediction and 0 for a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def resampled_means(scores: Sequence[np.ndarray], block_days: int, n_draws: int = 4000, seed: int = 0) -> np.ndarray:
    """The mean of every model's score in every draw, (m, r); ``scores`` has one array (s, t) per model.

    A draw takes the same days from all models, so the differences between models are paired. The number of seeds may
    differ between models. Raises ValueError for scores over different numbers of days, and for ``block_days`` below 1
    or above the number of days.
    """
    n_days = scores[0].shape[1]
    if any(s.ndim != 2 or s.shape[1] != n_days for s in scores):
        raise ValueError(f"scores must be (seeds, days) over the same days, got {[s.shape for s in scores]}")
    if not 1 <= block_days <= n_days:
        raise ValueError(f"a block of {block_days} days does not fit in {n_days} days")
    rng = np.random.default_rng(seed)
    n_blocks = -(-n_days // block_days)  # rounded up
    block_starts = rng.integers(0, n_days - block_days + 1, size=(n_draws, n_blocks))
    resampled_days = (block_starts[:, :, None] + np.arange(block_days)).reshape(n_draws, -1)[:, :n_days]
    means = []
    for score in scores:
        n_seeds = len(score)
        resampled_seeds = rng.integers(0, n_seeds, size=(n_draws, n_seeds))
        seed_means = np.stack([by_day[resampled_days].mean(axis=1) for by_day in score.astype(np.float64)])  # (s, r)
        means.append(np.take_along_axis(seed_means.T, resampled_seeds, axis=1).mean(axis=1))
    return np.stack(means)


def percentile_interval(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The ends of the central interval that contains the share ``level`` of the resampled ``means`` (r,)."""
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
