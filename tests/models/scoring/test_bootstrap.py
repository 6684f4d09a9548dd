"""Moving-block bootstrap: intervals of scores whose interval can be computed by hand.

A score has the shape (seeds, days).
"""

from __future__ import annotations

import numpy as np
import pytest

from models.scoring.bootstrap import percentile_interval, resampled_means


def test_the_interval_of_a_constant_series_has_width_zero() -> None:
    (means,) = resampled_means([np.full((3, 40), 0.25)], block_days=7)
    assert percentile_interval(means) == (0.25, 0.25)


def test_every_block_of_one_whole_period_has_the_mean_of_the_period() -> None:
    period = [1.0, 0.0, 0.0, 1.0]
    score = np.tile(period, 25)[None]
    (means,) = resampled_means([score], block_days=len(period))
    np.testing.assert_array_equal(means, np.mean(period))


def test_a_block_as_long_as_the_series_has_the_mean_of_the_series() -> None:
    score = np.array([[1.0, 0.0, 0.0, 0.0, 1.0]])
    (means,) = resampled_means([score], block_days=score.size)
    np.testing.assert_array_equal(means, score.mean())


def test_blocks_of_one_day_give_the_binomial_standard_deviation_and_interval() -> None:
    """The tolerances: five standard errors of a mean over 20 000 draws, and one step of 0.01 of the binomial."""
    score = np.repeat([1.0, 0.0], [60, 40])[None]
    (means,) = resampled_means([score], block_days=1, n_draws=20_000)
    deviation = np.sqrt(0.6 * 0.4 / 100)
    assert means.mean() == pytest.approx(0.6, abs=0.002)
    assert means.std() == pytest.approx(deviation, rel=0.03)
    assert percentile_interval(means) == pytest.approx((0.6 - 1.96 * deviation, 0.6 + 1.96 * deviation), abs=0.011)


def test_blocks_as_long_as_the_runs_of_a_series_widen_the_interval() -> None:
    run_days = 20
    score = np.repeat(np.tile([1.0, 0.0], 10), run_days)[None]
    of_one_day, of_one_run, of_one_period = (
        resampled_means([score], block_days).std() for block_days in (1, run_days, 2 * run_days)
    )
    assert of_one_period < of_one_day, "every block of a whole period has the same mean"
    assert of_one_run > 2 * of_one_day


def test_seeds_are_resampled_as_well_as_days() -> None:
    one_good_one_bad_seed = np.stack([np.ones(50), np.zeros(50)])
    (means,) = resampled_means([one_good_one_bad_seed], block_days=10)
    assert set(means) == {0.0, 0.5, 1.0}


def test_all_models_are_resampled_on_the_same_days() -> None:
    score = np.random.default_rng(0).random((1, 200))
    lower_means, higher_means = resampled_means([score, score + 0.1], block_days=10)
    np.testing.assert_allclose(higher_means - lower_means, 0.1, atol=1e-12)


@pytest.mark.parametrize("block_days", [0, 6])
def test_a_block_of_zero_days_or_longer_than_the_series_is_refused(block_days: int) -> None:
    with pytest.raises(ValueError, match="does not fit in 5 days"):
        resampled_means([np.ones((1, 5))], block_days)


def test_scores_over_different_days_are_refused() -> None:
    with pytest.raises(ValueError, match="same days"):
        resampled_means([np.ones((1, 5)), np.ones((1, 6))], block_days=2)
