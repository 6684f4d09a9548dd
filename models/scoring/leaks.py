"""Leak check: stored values against the same values recomputed without later data. Any difference is a leak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """The number of rows compared, the number that differ, and the largest difference of any value.

    A row that exists on one side only differs by infinity.
    """

    rows_compared: int
    rows_different: int
    max_abs_difference: float

    @property
    def passed(self) -> bool:
        """True when at least one row was compared and none differs."""
        return self.rows_different == 0 and self.rows_compared > 0


def compare(
    stored: np.ndarray,
    recomputed: np.ndarray,
    stored_mask: np.ndarray,
    recomputed_mask: np.ndarray,
    tolerance: float,
) -> Comparison:
    """The comparison of the rows of ``stored`` and ``recomputed`` (..., c) by their last axis.

    A row differs if one of its values differs by more than ``tolerance``; two NaN are equal, a NaN and a number differ.
    ``stored_mask`` and ``recomputed_mask`` (...) bool are True where the row exists.
    """
    in_either = stored_mask | recomputed_mask
    in_both = stored_mask & recomputed_mask
    a = stored[in_both]
    b = recomputed[in_both]
    with np.errstate(invalid="ignore"):
        distance = np.where(a == b, 0.0, np.abs(a - b))  # equal infinities have distance 0, not NaN
    distance = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isnan(distance), np.inf, distance))
    unmatched = int(in_either.sum() - in_both.sum())
    largest = np.inf if unmatched else float(distance.max(initial=0.0))
    return Comparison(int(in_either.sum()), int((distance > tolerance).any(axis=-1).sum()) + unmatched, largest)
