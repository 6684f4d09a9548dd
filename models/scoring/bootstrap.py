"""Intervals of a mean score over days that hang together, from blocks of them drawn again.

Künsch (1989), moving blocks; percentile intervals. Neighbouring days share most of their label, so a day is not a
draw of its own: a block must be longer than the label. Seeds are drawn again too, so an interval holds the luck of the
fit beside that of the days.

Glossary: s seeds · t days · r draws. Scores (s, t) are any numbers whose mean is the measure, 1 and 0 for an accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def resampled_means(scores: Sequence[np.ndarray], block_bars: int, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """The mean of each of ``scores`` [(s, t)] in every draw, (len(scores), r).

    All meet the same days in a draw, so their differences are paired. Raises ValueError for scores over different days
    or blocks that do not fit in them.
    """
    days = scores[0].shape[1]
    if any(s.ndim != 2 or s.shape[1] != days for s in scores):
        raise ValueError(f"scores must be (seeds, days) over the same days, got {[s.shape for s in scores]}")
    if not 1 <= block_bars <= days:
        raise ValueError(f"a block of {block_bars} days does not fit in {days} days")
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, days - block_bars + 1, size=(draws, -(-days // block_bars)))
    drawn = (starts[:, :, None] + np.arange(block_bars)).reshape(draws, -1)[:, :days]
    means = []
    for score in scores:
        seeds = rng.integers(0, len(score), size=(draws, len(score)))
        by_draw = np.stack([one[drawn].mean(axis=1) for one in score.astype(np.float64)])  # (s, r)
        means.append(np.take_along_axis(by_draw.T, seeds, axis=1).mean(axis=1))
    return np.stack(means)


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of ``draws`` (r,)."""
    low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
