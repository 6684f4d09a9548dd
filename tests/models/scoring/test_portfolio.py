"""Weights and limits on hand-made views (HYB-24, HYB-27, TGN-38, TRAP-07, TRAP-12)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.portfolio import Limits, correlation, decide, last_seen, session_returns, target_weights

WIDE = Limits(max_position=1.0, max_correlated_exposure=1.0, min_confidence=0.01, max_staleness_hours=1.0)
FRESH = np.zeros(4)


def independent(n: int) -> np.ndarray:
    """Returns of n assets, none of them correlated with another: one moves at a time."""
    return np.eye(n)[np.arange(60) % n]


def weights(side, confidence, limits=WIDE, age=None, returns=None):
    n = len(side)
    age = np.zeros(n) if age is None else np.array(age, dtype=float)
    returns = independent(n) if returns is None else returns
    return target_weights(np.array(side), np.array(confidence, dtype=float), age, returns, limits)


def test_defaults_are_the_limits_of_the_source():
    limits = Limits()
    assert (limits.max_position, limits.max_correlated_exposure, limits.max_staleness_hours) == (0.05, 0.15, 1.0)
    assert (limits.min_confidence, limits.drawdown_trigger, limits.max_leverage) == (0.6, 0.10, 3.0)


def test_weights_share_equity_by_side_and_confidence():
    np.testing.assert_allclose(weights([1, -1, 0], [0.6, 0.4, 0.9]), [0.6, -0.4, 0.0])


def test_a_capped_position_leaves_its_rest_in_cash():
    limits = replace(WIDE, max_position=0.3)
    np.testing.assert_allclose(weights([1, 1, 1], [0.8, 0.1, 0.1], limits), [0.3, 0.1, 0.1])


def test_an_unsure_view_is_no_view():
    limits = replace(WIDE, min_confidence=0.6)
    np.testing.assert_allclose(weights([1, 1, -1], [0.6, 0.59, 0.6], limits), [0.5, 0.0, -0.5])


def test_a_three_class_forecast_of_daily_returns_is_flat_at_the_sources_confidence():
    assert not weights([1, -1, 1], [0.45, 0.41, 0.5], replace(WIDE, min_confidence=0.6)).any()
    assert weights([1, -1, 1], [0.45, 0.41, 0.5], replace(WIDE, min_confidence=0.40)).all()


def test_an_old_view_is_no_view():
    np.testing.assert_allclose(weights([1, 1, 1], [0.5, 0.5, 0.5], age=[0, 1, 1.5]), [0.5, 0.5, 0.0])


def test_no_view_at_all_is_all_cash():
    assert weights([0, 1], [0.9, np.nan]).tolist() == [0.0, 0.0]


def test_correlated_positions_of_one_side_share_their_limit():
    both = np.random.default_rng(0).normal(size=60)
    returns = np.column_stack([both, both, np.random.default_rng(1).normal(size=60)])
    limits = replace(WIDE, max_correlated_exposure=0.15)
    # 0.4 and 0.4 in one trade are cut to 0.15 together; the third is its own group and exceeds 0.15 too
    np.testing.assert_allclose(weights([1, 1, 1], [0.8, 0.8, 0.4], limits, returns=returns), [0.075, 0.075, 0.15])


def test_a_hedge_is_not_a_concentration():
    both = np.random.default_rng(0).normal(size=60)
    limits = replace(WIDE, max_correlated_exposure=0.5)
    hedged = weights([1, -1], [0.5, 0.5], limits, returns=np.column_stack([both, both]))
    np.testing.assert_allclose(hedged, [0.5, -0.5])
    doubled = weights([1, -1], [0.5, 0.5], limits, returns=np.column_stack([both, -both]))
    np.testing.assert_allclose(doubled, [0.25, -0.25])


def test_leverage_is_cut_in_proportion():
    np.testing.assert_allclose(weights([1, -1], [0.6, 0.4], replace(WIDE, max_leverage=0.5)), [0.3, -0.2])


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), cap=st.floats(0.01, 0.6), group=st.floats(0.01, 0.6))
def test_no_limit_is_ever_exceeded_and_no_weight_ever_raised(seed, n, cap, group):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(60, 2))
    returns = factor @ rng.normal(size=(2, n)) + 0.3 * rng.normal(size=(60, n))
    side, confidence = rng.integers(-1, 2, n), rng.uniform(0, 1, n)
    limits = replace(WIDE, max_position=cap, max_correlated_exposure=group)
    free, bound = (weights(side, confidence, x, returns=returns) for x in (WIDE, limits))
    assert (np.abs(bound) <= np.abs(free) + 1e-12).all()
    assert (bound * free >= 0).all()
    assert np.abs(bound).max() <= cap + 1e-12
    rho = np.round(np.corrcoef(returns.T).reshape(n, n), 6)
    for i in np.flatnonzero(bound):
        with_it = np.sign(bound[i]) * np.sign(bound) * rho[i] >= 0.7
        with_it[i] = True
        assert np.abs(bound[with_it]).sum() <= group + 1e-9


@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_assets_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    returns = rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 6))
    side, confidence, order = rng.integers(-1, 2, 6), rng.uniform(0, 1, 6), rng.permutation(6)
    limits = replace(WIDE, max_position=0.2, max_correlated_exposure=0.15)
    straight = weights(side, confidence, limits, returns=returns)
    shuffled = weights(side[order], confidence[order], limits, returns=returns[:, order])
    np.testing.assert_allclose(shuffled, straight[order], rtol=1e-12)


def test_correlation_equals_numpys_is_one_for_an_asset_with_a_hole_and_zero_for_one_without_movement():
    returns = np.random.default_rng(2).normal(size=(60, 4))
    np.testing.assert_allclose(correlation(returns), np.corrcoef(returns.T), atol=1e-6)
    returns[3, 1] = np.nan
    returns[:, 2] = 0.01
    rho = correlation(returns)
    assert (rho[1] == 1).all() and (rho[:, 1] == 1).all()
    assert not rho[[0, 2, 3], 2].any()
    assert rho[0, 3] == pytest.approx(np.corrcoef(returns[:, 0], returns[:, 3])[0, 1], abs=1e-6)


def test_session_returns_hold_a_missing_price():
    prices = np.array([[np.nan, 10.0], [100.0, np.nan], [110.0, 11.0]])
    np.testing.assert_allclose(session_returns(prices), [[np.nan, np.nan], [np.nan, 0.0], [0.1, 0.1]])


def test_last_seen_gives_each_assets_bar_and_age():
    hour = np.timedelta64(1, "h")
    closes = np.datetime64("2024-01-01T01:00", "us") + np.arange(4) * hour
    seen = np.array([[True, False, False], [False, True, False], [False, True, False], [True, False, False]])
    bar, age = last_seen(seen, closes, np.array([2, 3]))
    assert bar.tolist() == [[0, 2, -1], [3, 2, -1]]
    assert age.tolist() == [[2, 0, np.inf], [0, 1, np.inf]]


def test_a_decision_sees_nothing_after_it():
    rng = np.random.default_rng(3)
    prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (90, 1)) + rng.normal(0, 0.01, (90, 5)), axis=0))
    side, confidence, age = rng.integers(-1, 2, (90, 5)), rng.uniform(0, 1, (90, 5)), np.zeros((90, 5))
    limits = replace(WIDE, max_correlated_exposure=0.15)
    whole = decide(side, confidence, age, prices, limits)
    cut = decide(side[:70], confidence[:70], age[:70], prices[:70], limits)
    assert (whole[:70] == cut).all()
    assert (decide(side, confidence, age, prices, limits, first=65) == whole[65:]).all()


def test_assets_count_as_correlated_until_there_is_a_whole_window():
    prices = 100 * np.exp(np.cumsum(np.random.default_rng(4).normal(0, 0.02, (70, 2)), axis=0))
    ones = np.ones((70, 2))
    weight = decide(ones, ones, 0 * ones, prices, replace(WIDE, max_correlated_exposure=0.5))
    np.testing.assert_allclose(weight[59], [0.25, 0.25])
    np.testing.assert_allclose(weight[60], [0.5, 0.5])


def test_a_limit_of_zero_is_refused():
    with pytest.raises(ValueError, match="max_leverage"):
        Limits(max_leverage=0.0)
