"""The comparison that detects a leak, on a few small rows (TRAP-06, field note 14)."""

import numpy as np

from models.scoring.leaks import compare

NAN = np.nan
ALL_ROWS = np.array([True, True, True])
ROWS = np.array([[1.0, 2.0], [3.0, NAN], [5.0, 6.0]])


def test_the_same_rows_pass():
    comparison = compare(ROWS, ROWS.copy(), ALL_ROWS, ALL_ROWS, 1e-9)
    assert (comparison.rows_compared, comparison.rows_different, comparison.max_abs_difference) == (3, 0, 0.0)
    assert comparison.passed


def test_differences_within_the_tolerance_pass():
    comparison = compare(ROWS, ROWS + 1e-10, ALL_ROWS, ALL_ROWS, 1e-9)
    assert comparison.passed
    assert 0 < comparison.max_abs_difference < 1e-9


def test_one_changed_value_is_one_different_row():
    recomputed = ROWS.copy()
    recomputed[2, 1] += 0.25
    comparison = compare(ROWS, recomputed, ALL_ROWS, ALL_ROWS, 1e-9)
    assert (comparison.rows_different, comparison.max_abs_difference, comparison.passed) == (1, 0.25, False)


def test_a_number_instead_of_a_nan_is_a_difference():
    recomputed = ROWS.copy()
    recomputed[1, 1] = 4.0
    comparison = compare(ROWS, recomputed, ALL_ROWS, ALL_ROWS, 1e-9)
    assert (comparison.rows_different, comparison.max_abs_difference) == (1, np.inf)


def test_a_row_on_one_side_only_is_a_difference():
    comparison = compare(ROWS, ROWS, ALL_ROWS, np.array([True, True, False]), 1e-9)
    assert (comparison.rows_compared, comparison.rows_different, comparison.max_abs_difference) == (3, 1, np.inf)


def test_a_comparison_without_rows_does_not_pass():
    assert not compare(ROWS, ROWS, ~ALL_ROWS, ~ALL_ROWS, 1e-9).passed


def test_rows_of_any_shape_are_compared_along_their_last_axis():
    stored = np.zeros((3, 4, 2))
    all_rows = np.ones((3, 4), dtype=bool)
    recomputed = stored.copy()
    recomputed[0, 1] = 1.0
    assert compare(stored, recomputed, all_rows, all_rows, 1e-9).rows_different == 1
