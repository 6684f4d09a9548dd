"""Volatility regimes: hand numbers, and what a label may and may not know."""

from __future__ import annotations

import numpy as np

from models.features.regimes import UNKNOWN, coming_volatility, regimes, terciles, trailing_volatility

RETURNS = np.array([np.nan, 3.0, -4.0, 0.0, 5.0, 12.0])


def test_trailing_is_the_root_mean_square_up_to_the_bar_and_coming_that_after_it() -> None:
    np.testing.assert_allclose(trailing_volatility(RETURNS, 2), np.sqrt([np.nan, np.nan, 12.5, 8, 12.5, 84.5]))
    np.testing.assert_allclose(coming_volatility(RETURNS, 2), np.sqrt([12.5, 8, 12.5, 84.5, np.nan, np.nan]))


def test_a_series_shorter_than_the_span_has_no_volatility() -> None:
    assert np.isnan(trailing_volatility(RETURNS, 7)).all()
    assert np.isnan(coming_volatility(RETURNS, 7)).all()
    assert len(coming_volatility(RETURNS, 7)) == len(RETURNS)


def test_a_later_return_never_changes_a_trailing_volatility() -> None:
    later = RETURNS.copy()
    later[4:] = 100.0
    assert trailing_volatility(later, 2)[:4].tobytes() == trailing_volatility(RETURNS, 2)[:4].tobytes()


def test_terciles_part_a_span_into_thirds_and_a_threshold_is_of_the_calmer() -> None:
    edges = terciles(np.arange(1.0, 8.0))
    np.testing.assert_allclose(edges, [3.0, 5.0])
    given = np.array([3.0, 3.1, 5.0, 5.1, np.nan])
    assert regimes(given, edges).tolist() == [0, 1, 1, 2, UNKNOWN]
