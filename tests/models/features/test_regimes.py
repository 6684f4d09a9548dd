"""Volatility regimes equal numbers computed by hand; trailing volatilities do not depend on later returns."""

from __future__ import annotations

import numpy as np

from models.features.regimes import (
    REGIMES,
    UNKNOWN_REGIME,
    assign_regimes,
    future_volatility,
    tercile_thresholds,
    trailing_volatility,
)

RETURNS = np.array([np.nan, 3.0, -4.0, 0.0, 5.0, 12.0])


def test_trailing_volatility_is_the_root_mean_square_of_the_returns_up_to_the_session() -> None:
    expected = np.sqrt([np.nan, np.nan, (9 + 16) / 2, 16 / 2, 25 / 2, (25 + 144) / 2])
    np.testing.assert_allclose(trailing_volatility(RETURNS, n_sessions=2), expected)


def test_future_volatility_is_the_root_mean_square_of_the_returns_after_the_session() -> None:
    expected = np.sqrt([(9 + 16) / 2, 16 / 2, 25 / 2, (25 + 144) / 2, np.nan, np.nan])
    np.testing.assert_allclose(future_volatility(RETURNS, n_sessions=2), expected)


def test_the_volatility_of_a_series_shorter_than_the_window_is_nan() -> None:
    n_sessions = len(RETURNS) + 1
    assert np.isnan(trailing_volatility(RETURNS, n_sessions)).all()
    assert np.isnan(future_volatility(RETURNS, n_sessions)).all()
    assert len(future_volatility(RETURNS, n_sessions)) == len(RETURNS)


def test_a_later_return_never_changes_a_trailing_volatility() -> None:
    cut = 4
    changed = RETURNS.copy()
    changed[cut:] = 100.0
    assert trailing_volatility(changed, 2)[:cut].tobytes() == trailing_volatility(RETURNS, 2)[:cut].tobytes()


def test_tercile_thresholds_divide_the_volatilities_into_thirds() -> None:
    np.testing.assert_allclose(tercile_thresholds(np.arange(1.0, 8.0)), [3.0, 5.0])


def test_a_volatility_equal_to_a_threshold_is_in_the_calmer_regime() -> None:
    calm, normal, turbulent = range(len(REGIMES))
    volatility = np.array([3.0, 3.1, 5.0, 5.1, np.nan])
    expected = [calm, normal, normal, turbulent, UNKNOWN_REGIME]
    assert assign_regimes(volatility, thresholds=np.array([3.0, 5.0])).tolist() == expected
