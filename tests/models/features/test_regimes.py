"""Volatility regimes against numbers by hand; trailing values do not depend on later returns."""

from __future__ import annotations

import numpy as np

from models.features.regimes import UNKNOWN, future_volatility, regimes, terciles, trailing_volatility

RETURNS = np.array([np.nan, 3.0, -4.0, 0.0, 5.0, 12.0])


def test_trailing_volatility_is_the_root_mean_square_up_to_the_bar_and_future_volatility_that_after_it() -> None:
    np.testing.assert_allclose(trailing_volatility(RETURNS, 2), np.sqrt([np.nan, np.nan, 12.5, 8, 12.5, 84.5]))
    np.testing.assert_allclose(future_volatility(RETURNS, 2), np.sqrt([12.5, 8, 12.5, 84.5, np.nan, np.nan]))


def test_the_volatility_of_a_series_shorter_than_the_window_is_nan() -> None:
    assert np.isnan(trailing_volatility(RETURNS, 7)).all()
    assert np.isnan(future_volatility(RETURNS, 7)).all()
    assert len(future_volatility(RETURNS, 7)) == len(RETURNS)


def test_a_later_return_never_changes_a_trailing_volatility() -> None:
    later = RETURNS.copy()
    later[4:] = 100.0
    assert trailing_volatility(later, 2)[:4].tobytes() == trailing_volatility(RETURNS, 2)[:4].tobytes()


def test_terciles_divide_into_thirds_and_a_value_on_a_threshold_is_in_the_calmer_regime() -> None:
    thresholds = terciles(np.arange(1.0, 8.0))
    np.testing.assert_allclose(thresholds, [3.0, 5.0])
    volatility = np.array([3.0, 3.1, 5.0, 5.1, np.nan])
    assert regimes(volatility, thresholds).tolist() == [0, 1, 1, 2, UNKNOWN]
