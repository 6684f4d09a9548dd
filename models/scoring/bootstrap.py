"""Moving-block bootstrap intervals of a mean score over dependent days.

Künsch (1989); percentile intervals. Neighbouring days share most of their label, so days are not independent: a block
must be longer than the label. Seeds are resampled too, so an interval includes the randomness of the fit as well as
that of the days.

Glossary: s seeds · t days · r draws. Scores (s, t) are any numbers whose mean is the measure, 1 and 0 for an accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def resampled_means(scores: Sequence[np.ndarray], block_bars: int, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """The mean of each of ``scores`` [(s, t)] in every draw, (len(scores), r).

    Within a draw all scores use the same days, so their differences are paired. Raises ValueError for scores over
    different days, and for blocks longer than the days.
    """
    days = scores[0].shape[1]
    if any(s.ndim != 2 or s.shape[1] != days for s in scores):
        raise ValueError(f"scores must be (seeds, days) over the same days, got {[s.shape for s in scores]}")
    if not 1 <= block_bars <= days:
        raise ValueError(f"a block of {block_bars} days does not fit in {days} days")
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, days - block_bars + 1, size=(draws, -(-days // block_bars)))
    resampled_days = (starts[:, :, None] + np.arange(block_bars)).reshape(draws, -1)[:, :days]
    means = []
    for score in scores:
        seeds = rng.integers(0, len(score), size=(draws, len(score)))
        by_draw = np.stack([by_day[resampled_days].mean(axis=1) for by_day in score.astype(np.float64)])  # (s, r)
        means.append(np.take_along_axis(by_draw.T, seeds, axis=1).mean(axis=1))
    return np.stack(means)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central interval that holds the share ``level`` of ``draws`` (r,)."""
    low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
