"""What was stored against the same thing recomputed with the future cut away: any difference came from the future."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """How many rows were compared, how many differ, and the largest difference of any value.

    A row that is there on one side only differs, by infinity.
    """

    rows_compared: int
    rows_different: int
    max_abs_difference: float

    @property
    def passed(self) -> bool:
        """True when nothing differs and there was something to compare."""
        return self.rows_different == 0 and self.rows_compared > 0


def compare(
    stored: np.ndarray, again: np.ndarray, stored_rows: np.ndarray, again_rows: np.ndarray, tolerance: float
) -> Comparison:
    """Rows of ``stored`` and ``again`` (..., c) whose values are further apart than ``tolerance``.

    ``stored_rows`` and ``again_rows`` (...) bool say which rows are there. Two NaN agree; a NaN and a number do not.
    """
    either, both = stored_rows | again_rows, stored_rows & again_rows
    a, b = stored[both], again[both]
    with np.errstate(invalid="ignore"):
        distance = np.where(a == b, 0.0, np.abs(a - b))  # equal infinities are no distance apart
    distance = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isnan(distance), np.inf, distance))
    lone = int(either.sum() - both.sum())
    worst = np.inf if lone else float(distance.max(initial=0.0))
    return Comparison(int(either.sum()), int((distance > tolerance).any(axis=-1).sum()) + lone, worst)
