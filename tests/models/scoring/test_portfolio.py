"""Target weights of given signals under the risk limits.

Tests HYB-24, HYB-27, TGN-38, TRAP-07 and TRAP-12 (ids: .github/sources.md).
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from models.scoring.portfolio import (
    CORRELATION_DECIMALS,
    Limits,
    correlation,
    decide_weights,
    latest_signals,
    session_returns,
    target_weights,
)
from models.sessions import HOUR

LOOSE_LIMITS = Limits(max_position=1.0, max_correlated_exposure=1.0, min_confidence=0.01, max_staleness_hours=1.0)
N_SESSIONS = LOOSE_LIMITS.correlation_sessions


def uncorrelated_returns(n: int) -> np.ndarray:
    """Returns (N_SESSIONS, n) of uncorrelated assets: one asset moves at a time."""
    return np.eye(n)[np.arange(N_SESSIONS) % n]


def compute_weights(
    direction: ArrayLike,
    confidence: ArrayLike,
    limits: Limits = LOOSE_LIMITS,
    age_hours: ArrayLike | None = None,
    returns: np.ndarray | None = None,
) -> np.ndarray:
    """Target weights, (n,); by default the signals have age 0 and the assets are uncorrelated."""
    direction = np.array(direction)
    confidence = np.array(confidence, dtype=float)
    age_hours = np.zeros(len(direction)) if age_hours is None else np.array(age_hours, dtype=float)
    returns = uncorrelated_returns(len(direction)) if returns is None else returns
    return target_weights(direction, confidence, age_hours, returns, limits)


def test_defaults_are_the_limits_of_the_source_article() -> None:
    limits = Limits()
    assert limits.max_position == 0.05
    assert limits.max_correlated_exposure == 0.15
    assert limits.max_staleness_hours == 1.0
    assert limits.min_confidence == 0.6
    assert limits.drawdown_trigger == 0.10
    assert limits.max_leverage == 3.0


def test_weights_are_proportional_to_direction_times_confidence() -> None:
    np.testing.assert_allclose(compute_weights([1, -1, 0], [0.6, 0.4, 0.9]), [0.6, -0.4, 0.0])


def test_the_weight_that_a_cap_removes_stays_in_cash() -> None:
    limits = replace(LOOSE_LIMITS, max_position=0.3)
    np.testing.assert_allclose(compute_weights([1, 1, 1], [0.8, 0.1, 0.1], limits), [0.3, 0.1, 0.1])


def test_a_signal_below_the_minimum_confidence_is_ignored() -> None:
    """MAM-24, S4-39, TGN-31."""
    limits = replace(LOOSE_LIMITS, min_confidence=0.6)
    np.testing.assert_allclose(compute_weights([1, 1, -1], [0.6, 0.59, 0.6], limits), [0.5, 0.0, -0.5])


def test_typical_three_class_confidences_give_no_position_at_the_source_articles_minimum() -> None:
    direction = [1, -1, 1]
    confidence = [0.45, 0.41, 0.5]
    assert not compute_weights(direction, confidence, replace(LOOSE_LIMITS, min_confidence=0.6)).any()
    assert compute_weights(direction, confidence, replace(LOOSE_LIMITS, min_confidence=0.40)).all()


def test_a_signal_older_than_the_limit_is_ignored() -> None:
    np.testing.assert_allclose(compute_weights([1, 1, 1], [0.5, 0.5, 0.5], age_hours=[0, 1, 1.5]), [0.5, 0.5, 0.0])


def test_without_any_signal_everything_is_cash() -> None:
    assert compute_weights([0, 1], [0.9, np.nan]).tolist() == [0.0, 0.0]


def test_correlated_positions_in_one_direction_share_their_limit() -> None:
    common = np.random.default_rng(0).normal(size=60)
    returns = np.column_stack([common, common, np.random.default_rng(1).normal(size=60)])
    limits = replace(LOOSE_LIMITS, max_correlated_exposure=0.15)
    # the weights before this limit are 0.4, 0.4 and 0.2: the two correlated assets share 0.15, the third one has 0.15
    np.testing.assert_allclose(
        compute_weights([1, 1, 1], [0.8, 0.8, 0.4], limits, returns=returns), [0.075, 0.075, 0.15]
    )


def test_opposite_positions_in_correlated_assets_form_no_group() -> None:
    common = np.random.default_rng(0).normal(size=60)
    limits = replace(LOOSE_LIMITS, max_correlated_exposure=0.5)
    hedged = compute_weights([1, -1], [0.5, 0.5], limits, returns=np.column_stack([common, common]))
    np.testing.assert_allclose(hedged, [0.5, -0.5])
    same_bet = compute_weights([1, -1], [0.5, 0.5], limits, returns=np.column_stack([common, -common]))
    np.testing.assert_allclose(same_bet, [0.25, -0.25])


def test_the_leverage_limit_scales_all_weights() -> None:
    np.testing.assert_allclose(
        compute_weights([1, -1], [0.6, 0.4], replace(LOOSE_LIMITS, max_leverage=0.5)), [0.3, -0.2]
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    max_position=st.floats(0.01, 0.6),
    max_correlated_exposure=st.floats(0.01, 0.6),
)
def test_no_limit_is_exceeded_and_no_limit_raises_a_weight(
    seed: int, n: int, max_position: float, max_correlated_exposure: float
) -> None:
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(N_SESSIONS, 2))
    returns = factors @ rng.normal(size=(2, n)) + 0.3 * rng.normal(size=(N_SESSIONS, n))
    direction = rng.integers(-1, 2, n)
    confidence = rng.uniform(0, 1, n)
    limits = replace(LOOSE_LIMITS, max_position=max_position, max_correlated_exposure=max_correlated_exposure)
    unlimited = compute_weights(direction, confidence, LOOSE_LIMITS, returns=returns)
    limited = compute_weights(direction, confidence, limits, returns=returns)
    assert (np.abs(limited) <= np.abs(unlimited) + 1e-12).all()
    assert (limited * unlimited >= 0).all()
    assert np.abs(limited).max() <= max_position + 1e-12
    rho = np.round(np.corrcoef(returns.T).reshape(n, n), CORRELATION_DECIMALS)
    for i in np.flatnonzero(limited):
        is_in_group = np.sign(limited[i]) * np.sign(limited) * rho[i] >= limits.correlation_threshold
        is_in_group[i] = True
        assert np.abs(limited[is_in_group]).sum() <= max_correlated_exposure + 1e-9


@given(seed=st.integers(0, 2**32 - 1))
def test_reordered_assets_have_the_same_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 6
    returns = rng.normal(size=(N_SESSIONS, 1)) + 0.5 * rng.normal(size=(N_SESSIONS, n))
    direction = rng.integers(-1, 2, n)
    confidence = rng.uniform(0, 1, n)
    order = rng.permutation(n)
    limits = replace(LOOSE_LIMITS, max_position=0.2, max_correlated_exposure=0.15)
    original = compute_weights(direction, confidence, limits, returns=returns)
    shuffled = compute_weights(direction[order], confidence[order], limits, returns=returns[:, order])
    np.testing.assert_allclose(shuffled, original[order], rtol=1e-12)


def test_correlation_equals_that_of_numpy() -> None:
    returns = np.random.default_rng(2).normal(size=(N_SESSIONS, 4))
    np.testing.assert_allclose(correlation(returns), np.corrcoef(returns.T), atol=10**-CORRELATION_DECIMALS)


def test_correlation_is_one_for_an_asset_with_a_nan_and_zero_for_a_constant_asset() -> None:
    returns = np.random.default_rng(2).normal(size=(N_SESSIONS, 4))
    first, with_nan, constant, last = range(4)
    returns[3, with_nan] = np.nan
    returns[:, constant] = 0.01
    rho = correlation(returns)
    assert (rho[with_nan] == 1).all() and (rho[:, with_nan] == 1).all()
    assert not rho[[first, constant, last], constant].any()
    expected = np.corrcoef(returns[:, first], returns[:, last])[0, 1]
    assert rho[first, last] == pytest.approx(expected, abs=10**-CORRELATION_DECIMALS)


def test_session_returns_replace_a_missing_price_by_the_last_one() -> None:
    prices = np.array([[np.nan, 10.0], [100.0, np.nan], [110.0, 11.0]])
    np.testing.assert_allclose(session_returns(prices), [[np.nan, np.nan], [np.nan, 0.0], [0.1, 0.1]])


def test_latest_signals_have_the_bar_and_its_age_in_hours() -> None:
    close_times = np.datetime64("2024-01-01T01:00", "us") + np.arange(4) * HOUR
    has_signal = np.array([[True, False, False], [False, True, False], [False, True, False], [True, False, False]])
    bar, age_hours = latest_signals(has_signal, close_times, decisions=np.array([2, 3]))
    assert bar.tolist() == [[0, 2, -1], [3, 2, -1]]
    assert age_hours.tolist() == [[2, 0, np.inf], [0, 1, np.inf]]


def test_later_rows_and_the_argument_first_do_not_change_the_weights_of_a_decision() -> None:
    rng = np.random.default_rng(3)
    shape = (90, 5)
    prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (90, 1)) + rng.normal(0, 0.01, shape), axis=0))
    direction = rng.integers(-1, 2, shape)
    confidence = rng.uniform(0, 1, shape)
    age_hours = np.zeros(shape)
    limits = replace(LOOSE_LIMITS, max_correlated_exposure=0.15)
    whole = decide_weights(direction, confidence, age_hours, prices, limits)
    truncated = decide_weights(direction[:70], confidence[:70], age_hours[:70], prices[:70], limits)
    assert (whole[:70] == truncated).all()
    assert (decide_weights(direction, confidence, age_hours, prices, limits, first=65) == whole[65:]).all()


def test_assets_are_treated_as_correlated_until_the_window_is_full() -> None:
    """The window of a decision with the number k contains k returns, because the first row of prices has none."""
    shape = (N_SESSIONS + 10, 2)
    prices = 100 * np.exp(np.cumsum(np.random.default_rng(4).normal(0, 0.02, shape), axis=0))
    limits = replace(LOOSE_LIMITS, max_correlated_exposure=0.5)
    weight = decide_weights(np.ones(shape), np.ones(shape), np.zeros(shape), prices, limits)
    np.testing.assert_allclose(weight[N_SESSIONS - 1], [0.25, 0.25])
    np.testing.assert_allclose(weight[N_SESSIONS], [0.5, 0.5])


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_leverage"):
        Limits(max_leverage=0.0)
