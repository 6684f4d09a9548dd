"""Measures of correlation, compared with pandas, scipy, scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from models.graphs.measures import MEASURES, correlation, ewma, partial_correlation, shrunk_covariance, spearman

WINDOW_BARS = 60


def make_factor_returns(n: int = 8, seed: int = 0) -> np.ndarray:
    """Random returns (WINDOW_BARS, n) of one factor, with fat tails."""
    rng = np.random.default_rng(seed)
    return 0.01 * (rng.normal(size=(WINDOW_BARS, 1)) * rng.uniform(-2, 2, n) + rng.standard_t(3, size=(WINDOW_BARS, n)))


def test_spearman_equals_scipys_with_and_without_ties() -> None:
    returns = make_factor_returns()
    np.testing.assert_allclose(spearman(returns), spearmanr(returns).statistic, atol=1e-6)
    tied = np.round(returns, 2)
    np.testing.assert_allclose(spearman(tied), spearmanr(tied).statistic, atol=1e-6)


def test_spearman_does_not_depend_on_the_size_of_an_outlier() -> None:
    returns = make_factor_returns()
    outlier = returns.copy()
    outlier[returns[:, 0].argmax(), 0] *= 100
    np.testing.assert_array_equal(spearman(outlier), spearman(returns))
    assert np.abs(correlation(outlier) - correlation(returns)).max() > 0.1


def test_ewma_equals_the_last_row_of_pandas() -> None:
    returns = make_factor_returns()
    expected = pd.DataFrame(returns).ewm(halflife=15).corr().loc[WINDOW_BARS - 1].to_numpy()
    np.testing.assert_allclose(ewma(returns, half_life_bars=15), expected, atol=1e-6)


def test_ewma_with_missing_bars_equals_numpys_weighted_covariance_over_shared_bars() -> None:
    returns = make_factor_returns(4, seed=1)
    returns[[3, 50], 0] = np.nan
    returns[[10, 59], 2] = np.nan
    weight = 0.5 ** (np.arange(WINDOW_BARS)[::-1] / 10)
    matrix = ewma(returns, half_life_bars=10)
    for i, j in ((0, 1), (0, 2), (2, 3)):
        is_shared = np.isfinite(returns[:, i] * returns[:, j])
        covariance = np.cov(returns[is_shared][:, [i, j]].T, aweights=weight[is_shared])
        expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        np.testing.assert_allclose(matrix[i, j], expected, atol=1e-6)


def test_partial_correlation_equals_the_correlation_of_regression_residuals() -> None:
    """Many bars make the shrinkage so small that the tolerance covers it."""
    rng = np.random.default_rng(2)
    returns = rng.normal(size=(200_000, 4)) @ (np.eye(4) + 0.5)
    others = np.column_stack((np.ones(len(returns)), returns[:, 2:]))
    residuals = returns[:, :2] - others @ np.linalg.lstsq(others, returns[:, :2], rcond=None)[0]
    np.testing.assert_allclose(partial_correlation(returns)[0, 1], np.corrcoef(residuals.T)[0, 1], atol=2e-3)


def test_partial_correlation_removes_a_shared_factor() -> None:
    """Assets 1 and 2 are the factor plus noise of the same size: their correlation is 0.5, without the factor 0."""
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(WINDOW_BARS, 1))
    returns = np.hstack((factor, factor + rng.normal(size=(WINDOW_BARS, 2))))
    assert correlation(returns)[1, 2] > 0.4
    assert abs(partial_correlation(returns)[1, 2]) < 0.15


@pytest.mark.parametrize(("w", "n"), [(60, 5), (60, 130), (5, 40), (2000, 10)])
def test_shrinkage_equals_scikit_learns(w: int, n: int) -> None:
    ledoit_wolf = pytest.importorskip("sklearn.covariance").ledoit_wolf
    rng = np.random.default_rng(w)
    x = rng.normal(size=(w, n)) @ rng.normal(size=(n, n))
    x -= x.mean(axis=0)
    np.testing.assert_allclose(shrunk_covariance(x), ledoit_wolf(x, assume_centered=True)[0], rtol=1e-10, atol=1e-12)


def test_shrinkage_by_hand() -> None:
    """The sample covariance of the returns (1, 0), (−1, 0), (0, 1), (0, −1) already is half the identity matrix."""
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    np.testing.assert_allclose(shrunk_covariance(x), 0.5 * np.eye(2))
    # the returns (1, 1), (−1, −1) have a sample covariance of ones: μ = 1, δ² = 1, β² = 0, so nothing is shrunk
    np.testing.assert_allclose(shrunk_covariance(np.array([[1.0, 1.0], [-1.0, -1.0]])), np.ones((2, 2)))


def test_partial_correlation_exists_for_more_assets_than_bars() -> None:
    returns = make_factor_returns(n=130, seed=4)
    matrix = partial_correlation(returns)
    assert np.isfinite(matrix).all() and (np.abs(matrix) <= 1).all()


@pytest.mark.parametrize("measure", ["pearson", "spearman", "ewma", "partial"])
def test_every_measure_is_symmetric_bounded_and_nan_where_an_asset_is_unknown(measure: str) -> None:
    """Asset 1 does not move, asset 2 lacks a third of the window, and assets 0 and 3 lack one bar each."""
    returns = make_factor_returns(9, seed=5)
    returns[:, 1] = 0.0003
    returns[:20, 2] = np.nan
    returns[[4, 30], [0, 3]] = np.nan
    options = {"half_life_bars": 20.0} if measure == "ewma" else {}
    matrix = MEASURES[measure](returns, **options)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isnan(matrix[[1, 2]]).all()
    moving = np.delete(np.delete(matrix, [1, 2], axis=0), [1, 2], axis=1)
    assert (np.abs(moving) <= 1).all() and (np.diag(moving) == 1).all()
