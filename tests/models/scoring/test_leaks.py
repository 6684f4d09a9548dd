"""The comparison that finds a leak, on rows small enough to see (TRAP-06, field note 14)."""

import numpy as np

from models.scoring.leaks import compare

NAN = np.nan
HERE = np.array([True, True, True])
ROWS = np.array([[1.0, 2.0], [3.0, NAN], [5.0, 6.0]])


def test_the_same_rows_pass():
    found = compare(ROWS, ROWS.copy(), HERE, HERE, 1e-9)
    assert (found.rows_compared, found.rows_different, found.max_abs_difference) == (3, 0, 0.0)
    assert found.passed


def test_differences_within_the_tolerance_pass():
    found = compare(ROWS, ROWS + 1e-10, HERE, HERE, 1e-9)
    assert found.passed
    assert 0 < found.max_abs_difference < 1e-9


def test_one_changed_value_is_one_different_row():
    again = ROWS.copy()
    again[2, 1] += 0.25
    found = compare(ROWS, again, HERE, HERE, 1e-9)
    assert (found.rows_different, found.max_abs_difference, found.passed) == (1, 0.25, False)


def test_a_number_where_there_was_none_is_a_difference():
    again = ROWS.copy()
    again[1, 1] = 4.0
    found = compare(ROWS, again, HERE, HERE, 1e-9)
    assert (found.rows_different, found.max_abs_difference) == (1, np.inf)


def test_a_row_on_one_side_only_is_a_difference():
    found = compare(ROWS, ROWS, HERE, np.array([True, True, False]), 1e-9)
    assert (found.rows_compared, found.rows_different, found.max_abs_difference) == (3, 1, np.inf)


def test_nothing_to_compare_is_no_pass():
    assert not compare(ROWS, ROWS, ~HERE, ~HERE, 1e-9).passed


def test_rows_of_any_shape_are_compared_along_their_last_axis():
    square = np.zeros((3, 4, 2))
    there = np.ones((3, 4), dtype=bool)
    moved = square.copy()
    moved[0, 1] = 1.0
    assert compare(square, moved, there, there, 1e-9).rows_different == 1
