"""Moving-block bootstrap intervals of series whose interval is known in advance."""

from __future__ import annotations

import numpy as np
import pytest

from models.scoring.bootstrap import interval, resampled_means


def test_the_interval_of_a_constant_series_has_width_zero() -> None:
    assert interval(resampled_means([np.full((3, 40), 0.25)], 7)[0]) == (0.25, 0.25)


def test_blocks_of_one_whole_period_all_have_the_mean_of_the_period() -> None:
    score = np.tile([1.0, 0.0, 0.0, 1.0], 25)[None]
    np.testing.assert_array_equal(resampled_means([score], 4)[0], 0.5)


def test_a_block_as_long_as_the_series_has_the_mean_of_the_series() -> None:
    score = np.array([[1.0, 0.0, 0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(resampled_means([score], 5)[0], score.mean())


def test_blocks_of_one_day_give_the_binomial_deviation_and_interval() -> None:
    score = np.repeat([1.0, 0.0], [60, 40])[None]
    draws = resampled_means([score], 1, draws=20_000)[0]
    deviation = np.sqrt(0.6 * 0.4 / 100)
    assert draws.mean() == pytest.approx(0.6, abs=0.002)
    assert draws.std() == pytest.approx(deviation, rel=0.03)
    assert interval(draws) == pytest.approx((0.6 - 1.96 * deviation, 0.6 + 1.96 * deviation), abs=0.011)


def test_blocks_as_long_as_the_runs_of_a_series_widen_the_interval() -> None:
    score = np.repeat(np.tile([1.0, 0.0], 10), 20)[None]
    deviation = {block_bars: resampled_means([score], block_bars)[0].std() for block_bars in (1, 20, 40)}
    assert deviation[40] < deviation[1], "every block of a whole period has the same mean"
    assert deviation[20] > 2 * deviation[1]


def test_seeds_are_resampled_as_well_as_days() -> None:
    one_good_one_bad = np.stack([np.ones(50), np.zeros(50)])
    assert set(resampled_means([one_good_one_bad], 10)[0]) == {0.0, 0.5, 1.0}


def test_all_models_use_the_same_days_so_a_constant_difference_has_width_zero() -> None:
    score = np.random.default_rng(0).random((1, 200))
    low, high = resampled_means([score, score + 0.1], 10)
    np.testing.assert_allclose(high - low, 0.1, atol=1e-12)


@pytest.mark.parametrize("block_bars", [0, 6])
def test_a_block_of_zero_days_or_longer_than_the_series_is_refused(block_bars: int) -> None:
    with pytest.raises(ValueError, match="does not fit in 5 days"):
        resampled_means([np.ones((1, 5))], block_bars)


def test_scores_over_different_days_are_refused() -> None:
    with pytest.raises(ValueError, match="same days"):
        resampled_means([np.ones((1, 5)), np.ones((1, 6))], 2)
