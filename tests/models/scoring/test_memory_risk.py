"""Risk read-outs against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.scoring.memory_risk import correlation_stability, event_rate_risk, freshness, memory_divergence


def test_confidence_halves_with_every_half_life_and_never_is_unknown() -> None:
    got = freshness(np.array([1000, 900, 800, 0]), now_us=1000, half_life_us=100.0)
    assert got[:3].tolist() == [1.0, 0.5, 0.25]
    assert np.isnan(got[3])


def test_an_update_from_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="asset 1 was updated after now"):
        freshness(np.array([5, 2000]), 1000, 100.0)
    with pytest.raises(ValueError, match="half_life_us is 0"):
        freshness(np.array([5]), 1000, 0.0)


def test_many_events_mean_volatility_and_few_mean_missing_liquidity() -> None:
    volatility, liquidity = event_rate_risk(np.array([10, 60, 1, 0]), np.array([10, 10, 10, 10]))
    assert volatility.tolist() == [1.0, 0.5, 1.0, 1.0]
    assert liquidity == pytest.approx([1.0, 1.0, 0.3, 0.0])
    assert np.isnan(np.concatenate(event_rate_risk(np.array([3.0]), np.array([0.0])))).all()
    with pytest.raises(ValueError, match="give 0 < low < 1 < high"):
        event_rate_risk(np.array([1.0]), np.array([1.0]), high=0.5)


def test_steady_correlations_are_stable_and_flips_are_not() -> None:
    history = np.ones((4, 3, 3))
    history[::2, 0, 1] = history[::2, 1, 0] = -1.0  # flips: standard deviation 1
    assert correlation_stability(history).tolist() == [0.5, 0.5, 1.0]
    history[:, 2] = history[:, :, 2] = np.nan
    got = correlation_stability(history)
    assert got[:2].tolist() == [0.0, 0.0]
    assert np.isnan(got[2])
    assert np.isnan(correlation_stability(history[:1])).all()


def test_a_memory_turned_around_diverges_wholly() -> None:
    old = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    recent = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    got = memory_divergence(recent, old)
    assert got[:3].tolist() == [0.0, 0.5, 1.0]
    assert np.isnan(got[3])
    with pytest.raises(ValueError, match="same assets"):
        memory_divergence(recent, old[:2])
