"""The comparison that detects a leak, on three rows of two values.

Tests TRAP-06 (ids: .github/sources.md) and field note 14.
"""

import numpy as np

from models.scoring.leaks import Comparison, compare

NAN = np.nan
TOLERANCE = 1e-9
ALL_ROWS = np.array([True, True, True])
ROWS = np.array([[1.0, 2.0], [3.0, NAN], [5.0, 6.0]])


def test_equal_rows_pass() -> None:
    comparison = compare(ROWS, ROWS.copy(), ALL_ROWS, ALL_ROWS, TOLERANCE)
    assert comparison.passed
    assert comparison == Comparison(rows_compared=3, rows_different=0, max_abs_difference=0.0)


def test_differences_within_the_tolerance_pass() -> None:
    comparison = compare(ROWS, ROWS + 1e-10, ALL_ROWS, ALL_ROWS, TOLERANCE)
    assert comparison.passed
    assert 0 < comparison.max_abs_difference < TOLERANCE


def test_one_changed_value_is_one_different_row() -> None:
    recomputed = ROWS.copy()
    recomputed[2, 1] += 0.25
    comparison = compare(ROWS, recomputed, ALL_ROWS, ALL_ROWS, TOLERANCE)
    assert not comparison.passed
    assert comparison == Comparison(rows_compared=3, rows_different=1, max_abs_difference=0.25)


def test_a_number_instead_of_a_nan_is_a_difference() -> None:
    recomputed = ROWS.copy()
    recomputed[1, 1] = 4.0
    comparison = compare(ROWS, recomputed, ALL_ROWS, ALL_ROWS, TOLERANCE)
    assert comparison == Comparison(rows_compared=3, rows_different=1, max_abs_difference=np.inf)


def test_a_row_that_was_not_recomputed_is_a_difference() -> None:
    comparison = compare(ROWS, ROWS, ALL_ROWS, np.array([True, True, False]), TOLERANCE)
    assert comparison == Comparison(rows_compared=3, rows_different=1, max_abs_difference=np.inf)


def test_a_comparison_without_rows_does_not_pass() -> None:
    assert not compare(ROWS, ROWS, ~ALL_ROWS, ~ALL_ROWS, TOLERANCE).passed


def test_rows_of_any_shape_are_compared_along_their_last_axis() -> None:
    stored = np.zeros((3, 4, 2))
    all_rows = np.ones((3, 4), dtype=bool)
    recomputed = stored.copy()
    recomputed[0, 1] = 1.0
    assert compare(stored, recomputed, all_rows, all_rows, TOLERANCE).rows_different == 1
