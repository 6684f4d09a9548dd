"""Leak check: stored values are compared with values recomputed without later data. Any difference is a leak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison of stored rows with recomputed rows.

    ``rows_compared``: the number of rows that are stored, recomputed or both. ``rows_different``: the number of rows
    that differ, or are only stored or only recomputed. ``max_abs_difference`` is the largest difference of any value:
    inf if a row is only stored or only recomputed, and if a number is compared with a NaN.
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
    """The comparison of ``stored`` with ``recomputed``, both (..., c): each row has c values.

    A row differs if one of its values differs by more than ``tolerance``. Two NaN are equal; a NaN and a number differ.
    ``stored_mask`` and ``recomputed_mask`` (...) bool are True where the row exists.
    """
    is_in_either = stored_mask | recomputed_mask
    is_in_both = stored_mask & recomputed_mask
    a = stored[is_in_both]
    b = recomputed[is_in_both]
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))  # equal infinities have difference 0, not NaN
    difference = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isnan(difference), np.inf, difference))
    n_unmatched = int(is_in_either.sum() - is_in_both.sum())
    n_changed = int((difference > tolerance).any(axis=-1).sum())
    return Comparison(
        rows_compared=int(is_in_either.sum()),
        rows_different=n_changed + n_unmatched,
        max_abs_difference=np.inf if n_unmatched else float(difference.max(initial=0.0)),
    )
