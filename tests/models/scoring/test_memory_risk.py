"""Risk factors of memories equal numbers computed by hand (ids: .github/sources.md)."""

from __future__ import annotations

import numpy as np
import pytest

from models.scoring.memory_risk import correlation_stability, event_rate_risk, freshness, memory_divergence


def test_freshness_halves_with_every_half_life_and_is_nan_without_an_update() -> None:
    """TGN-34: a time of 0 means that there was no update."""
    factor = freshness(np.array([1000, 900, 800, 0]), now_us=1000, half_life_us=100.0)
    np.testing.assert_array_equal(factor, [1.0, 0.5, 0.25, np.nan])


def test_an_update_after_now_is_refused() -> None:
    with pytest.raises(ValueError, match="asset 1 was updated after now"):
        freshness(np.array([5, 2000]), now_us=1000, half_life_us=100.0)


def test_a_half_life_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="half_life_us is 0"):
        freshness(np.array([5]), now_us=1000, half_life_us=0.0)


def test_many_events_lower_the_volatility_factor_and_few_the_liquidity_factor() -> None:
    """TGN-35: the counts are 1, 6, 0.1 and 0 times the usual count; the limits are 3 and a third of it."""
    volatility, liquidity = event_rate_risk(np.array([10, 60, 1, 0]), np.array([10, 10, 10, 10]))
    assert volatility.tolist() == [1.0, 0.5, 1.0, 1.0]
    assert liquidity == pytest.approx([1.0, 1.0, 0.3, 0.0])


def test_event_rate_factors_are_nan_for_a_usual_count_of_zero() -> None:
    assert np.isnan(event_rate_risk(np.array([3.0]), np.array([0.0]))).all()


def test_an_upper_limit_below_the_usual_count_is_refused() -> None:
    with pytest.raises(ValueError, match="give 0 < low < 1 < high"):
        event_rate_risk(np.array([1.0]), np.array([1.0]), high=0.5)


def test_constant_correlations_are_stable_and_alternating_correlations_are_not() -> None:
    """TGN-36: of three assets, the first two have a correlation that alternates between 1 and −1."""
    history = np.ones((4, 3, 3))
    history[::2, 0, 1] = history[::2, 1, 0] = -1.0  # standard deviation 1, in one of the two pairs of either asset
    assert correlation_stability(history).tolist() == [0.5, 0.5, 1.0]


def test_unknown_correlations_are_ignored() -> None:
    """Without the third asset, the only pair of the first two alternates between 1 and −1: stability 0."""
    history = np.ones((4, 3, 3))
    history[::2, 0, 1] = history[::2, 1, 0] = -1.0
    history[:, 2] = history[:, :, 2] = np.nan
    np.testing.assert_array_equal(correlation_stability(history), [0.0, 0.0, np.nan])
    one_snapshot = history[:1]
    assert np.isnan(correlation_stability(one_snapshot)).all()


def test_divergence_is_zero_one_half_and_one_for_equal_orthogonal_and_opposite_directions() -> None:
    """TGN-37: NaN for the fourth asset, whose old memory is all zeros."""
    old = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    recent = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(memory_divergence(recent, old), [0.0, 0.5, 1.0, np.nan])


def test_memories_of_different_assets_are_refused() -> None:
    with pytest.raises(ValueError, match="same assets"):
        memory_divergence(np.ones((4, 2)), np.ones((2, 2)))
