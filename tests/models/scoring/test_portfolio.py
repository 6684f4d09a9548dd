"""Weights and limits of hand-written views (HYB-24, HYB-27, TGN-38, TRAP-07, TRAP-12)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.portfolio import Limits, correlation, decide, latest_views, session_returns, target_weights
from models.sessions import HOUR

WIDE = Limits(max_position=1.0, max_correlated_exposure=1.0, min_confidence=0.01, max_staleness_hours=1.0)


def uncorrelated_returns(n: int) -> np.ndarray:
    """Returns (60, n) of uncorrelated assets: one asset moves at a time."""
    return np.eye(n)[np.arange(60) % n]


def weights(side, confidence, limits=WIDE, age=None, returns=None):
    """Target weights of new views on uncorrelated assets, unless ``age`` or ``returns`` are given."""
    n = len(side)
    age = np.zeros(n) if age is None else np.array(age, dtype=float)
    returns = uncorrelated_returns(n) if returns is None else returns
    return target_weights(np.array(side), np.array(confidence, dtype=float), age, returns, limits)


def test_defaults_are_the_limits_of_the_source_article():
    limits = Limits()
    assert (limits.max_position, limits.max_correlated_exposure, limits.max_staleness_hours) == (0.05, 0.15, 1.0)
    assert (limits.min_confidence, limits.drawdown_trigger, limits.max_leverage) == (0.6, 0.10, 3.0)


def test_weights_are_proportional_to_side_times_confidence():
    np.testing.assert_allclose(weights([1, -1, 0], [0.6, 0.4, 0.9]), [0.6, -0.4, 0.0])


def test_the_part_removed_by_a_cap_stays_in_cash():
    limits = replace(WIDE, max_position=0.3)
    np.testing.assert_allclose(weights([1, 1, 1], [0.8, 0.1, 0.1], limits), [0.3, 0.1, 0.1])


def test_a_view_below_the_minimum_confidence_is_ignored():
    """MAM-24, S4-39, TGN-31."""
    limits = replace(WIDE, min_confidence=0.6)
    np.testing.assert_allclose(weights([1, 1, -1], [0.6, 0.59, 0.6], limits), [0.5, 0.0, -0.5])


def test_typical_three_class_confidences_give_no_position_at_the_source_articles_minimum():
    assert not weights([1, -1, 1], [0.45, 0.41, 0.5], replace(WIDE, min_confidence=0.6)).any()
    assert weights([1, -1, 1], [0.45, 0.41, 0.5], replace(WIDE, min_confidence=0.40)).all()


def test_a_view_older_than_the_limit_is_ignored():
    np.testing.assert_allclose(weights([1, 1, 1], [0.5, 0.5, 0.5], age=[0, 1, 1.5]), [0.5, 0.5, 0.0])


def test_without_any_view_everything_is_cash():
    assert weights([0, 1], [0.9, np.nan]).tolist() == [0.0, 0.0]


def test_correlated_positions_of_one_side_share_their_limit():
    common = np.random.default_rng(0).normal(size=60)
    returns = np.column_stack([common, common, np.random.default_rng(1).normal(size=60)])
    limits = replace(WIDE, max_correlated_exposure=0.15)
    # 0.4 + 0.4 in correlated assets is cut to 0.15 in all; the third asset is a group by itself and exceeds 0.15 too
    np.testing.assert_allclose(weights([1, 1, 1], [0.8, 0.8, 0.4], limits, returns=returns), [0.075, 0.075, 0.15])


def test_opposite_positions_in_correlated_assets_are_no_concentration():
    common = np.random.default_rng(0).normal(size=60)
    limits = replace(WIDE, max_correlated_exposure=0.5)
    hedged = weights([1, -1], [0.5, 0.5], limits, returns=np.column_stack([common, common]))
    np.testing.assert_allclose(hedged, [0.5, -0.5])
    concentrated = weights([1, -1], [0.5, 0.5], limits, returns=np.column_stack([common, -common]))
    np.testing.assert_allclose(concentrated, [0.25, -0.25])


def test_the_leverage_limit_scales_all_weights():
    np.testing.assert_allclose(weights([1, -1], [0.6, 0.4], replace(WIDE, max_leverage=0.5)), [0.3, -0.2])


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    max_position=st.floats(0.01, 0.6),
    max_correlated_exposure=st.floats(0.01, 0.6),
)
def test_no_limit_is_exceeded_and_no_limit_raises_a_weight(seed, n, max_position, max_correlated_exposure):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(60, 2))
    returns = factor @ rng.normal(size=(2, n)) + 0.3 * rng.normal(size=(60, n))
    side = rng.integers(-1, 2, n)
    confidence = rng.uniform(0, 1, n)
    limits = replace(WIDE, max_position=max_position, max_correlated_exposure=max_correlated_exposure)
    unlimited = weights(side, confidence, WIDE, returns=returns)
    limited = weights(side, confidence, limits, returns=returns)
    assert (np.abs(limited) <= np.abs(unlimited) + 1e-12).all()
    assert (limited * unlimited >= 0).all()
    assert np.abs(limited).max() <= max_position + 1e-12
    rho = np.round(np.corrcoef(returns.T).reshape(n, n), 6)
    for i in np.flatnonzero(limited):
        in_group = np.sign(limited[i]) * np.sign(limited) * rho[i] >= 0.7
        in_group[i] = True
        assert np.abs(limited[in_group]).sum() <= max_correlated_exposure + 1e-9


@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_assets_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    returns = rng.normal(size=(60, 1)) + 0.5 * rng.normal(size=(60, 6))
    side = rng.integers(-1, 2, 6)
    confidence = rng.uniform(0, 1, 6)
    order = rng.permutation(6)
    limits = replace(WIDE, max_position=0.2, max_correlated_exposure=0.15)
    original = weights(side, confidence, limits, returns=returns)
    shuffled = weights(side[order], confidence[order], limits, returns=returns[:, order])
    np.testing.assert_allclose(shuffled, original[order], rtol=1e-12)


def test_correlation_equals_numpys_and_is_one_for_an_asset_with_a_nan_and_zero_for_a_constant_one():
    returns = np.random.default_rng(2).normal(size=(60, 4))
    np.testing.assert_allclose(correlation(returns), np.corrcoef(returns.T), atol=1e-6)
    returns[3, 1] = np.nan
    returns[:, 2] = 0.01
    rho = correlation(returns)
    assert (rho[1] == 1).all() and (rho[:, 1] == 1).all()
    assert not rho[[0, 2, 3], 2].any()
    assert rho[0, 3] == pytest.approx(np.corrcoef(returns[:, 0], returns[:, 3])[0, 1], abs=1e-6)


def test_session_returns_replace_a_missing_price_by_the_last_one():
    prices = np.array([[np.nan, 10.0], [100.0, np.nan], [110.0, 11.0]])
    np.testing.assert_allclose(session_returns(prices), [[np.nan, np.nan], [np.nan, 0.0], [0.1, 0.1]])


def test_latest_views_gives_each_assets_bar_and_age_in_hours():
    closes = np.datetime64("2024-01-01T01:00", "us") + np.arange(4) * HOUR
    has_view = np.array([[True, False, False], [False, True, False], [False, True, False], [True, False, False]])
    bar, age = latest_views(has_view, closes, np.array([2, 3]))
    assert bar.tolist() == [[0, 2, -1], [3, 2, -1]]
    assert age.tolist() == [[2, 0, np.inf], [0, 1, np.inf]]


def test_later_rows_do_not_change_a_decision():
    rng = np.random.default_rng(3)
    prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (90, 1)) + rng.normal(0, 0.01, (90, 5)), axis=0))
    side = rng.integers(-1, 2, (90, 5))
    confidence = rng.uniform(0, 1, (90, 5))
    age = np.zeros((90, 5))
    limits = replace(WIDE, max_correlated_exposure=0.15)
    whole = decide(side, confidence, age, prices, limits)
    truncated = decide(side[:70], confidence[:70], age[:70], prices[:70], limits)
    assert (whole[:70] == truncated).all()
    assert (decide(side, confidence, age, prices, limits, first=65) == whole[65:]).all()


def test_assets_are_treated_as_correlated_until_the_window_is_full():
    prices = 100 * np.exp(np.cumsum(np.random.default_rng(4).normal(0, 0.02, (70, 2)), axis=0))
    ones = np.ones((70, 2))
    weight = decide(ones, ones, 0 * ones, prices, replace(WIDE, max_correlated_exposure=0.5))
    np.testing.assert_allclose(weight[59], [0.25, 0.25])
    np.testing.assert_allclose(weight[60], [0.5, 0.5])


def test_a_limit_of_zero_is_refused():
    with pytest.raises(ValueError, match="max_leverage"):
        Limits(max_leverage=0.0)
