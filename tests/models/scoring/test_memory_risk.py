"""Risk factors of memories against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.scoring.memory_risk import correlation_stability, event_rate_risk, freshness, memory_divergence


def test_freshness_halves_with_every_half_life_and_is_nan_without_an_update() -> None:
    """TGN-34."""
    confidence = freshness(np.array([1000, 900, 800, 0]), now_us=1000, half_life_us=100.0)
    assert confidence[:3].tolist() == [1.0, 0.5, 0.25]
    assert np.isnan(confidence[3])


def test_an_update_after_now_and_a_half_life_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="asset 1 was updated after now"):
        freshness(np.array([5, 2000]), 1000, 100.0)
    with pytest.raises(ValueError, match="half_life_us is 0"):
        freshness(np.array([5]), 1000, 0.0)


def test_many_events_lower_the_volatility_factor_and_few_the_liquidity_factor() -> None:
    """TGN-35."""
    volatility, liquidity = event_rate_risk(np.array([10, 60, 1, 0]), np.array([10, 10, 10, 10]))
    assert volatility.tolist() == [1.0, 0.5, 1.0, 1.0]
    assert liquidity == pytest.approx([1.0, 1.0, 0.3, 0.0])
    assert np.isnan(np.concatenate(event_rate_risk(np.array([3.0]), np.array([0.0])))).all()
    with pytest.raises(ValueError, match="give 0 < low < 1 < high"):
        event_rate_risk(np.array([1.0]), np.array([1.0]), high=0.5)


def test_constant_correlations_are_stable_and_alternating_ones_are_not() -> None:
    """TGN-36."""
    history = np.ones((4, 3, 3))
    history[::2, 0, 1] = history[::2, 1, 0] = -1.0  # alternates between 1 and −1: standard deviation 1
    assert correlation_stability(history).tolist() == [0.5, 0.5, 1.0]
    history[:, 2] = history[:, :, 2] = np.nan
    stability = correlation_stability(history)
    assert stability[:2].tolist() == [0.0, 0.0]
    assert np.isnan(stability[2])
    assert np.isnan(correlation_stability(history[:1])).all()


def test_memories_of_opposite_direction_have_divergence_one() -> None:
    """TGN-37."""
    old = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    recent = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    divergence = memory_divergence(recent, old)
    assert divergence[:3].tolist() == [0.0, 0.5, 1.0]
    assert np.isnan(divergence[3])
    with pytest.raises(ValueError, match="same assets"):
        memory_divergence(recent, old[:2])
