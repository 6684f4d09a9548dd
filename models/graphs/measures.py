"""Measures of correlation: each receives returns (w, n), NaN where unknown, and returns a symmetric matrix (n, n).

Glossary: w bars of the window, n assets, p weights of the bars, z standardised returns: returns less their mean,
divided by their standard deviation.

A pair is measured over the bars in which both assets have a return. The entry is NaN where these are less than 80% of
the window, and where one of the two assets does not move. The values are rounded to six decimals, see DECIMALS.
``partial_correlation`` treats missing bars differently.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

MIN_OBSERVED_SHARE = 0.8  # share of the window's bars in which both assets of a pair must have a return
ZERO_TOLERANCE = 1e-12  # a standard deviation or variance up to this is a rounding error: the asset does not move
DECIMALS = 6  # of a rounded weight: BLAS rounds differently for each number of threads, and edges must not depend on it


def correlation(returns: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlation (n, n) of ``returns`` (w, n); ``p`` (w,) weighs the bars, None weighs them equally."""
    standardised = standardise(returns, p)
    return pairwise(standardised, standardised, len(returns), p)


def spearman(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation (n, n) of the ranks of ``returns`` (w, n).

    Each asset's returns are ranked over the bars in which it has a return; equal returns get their mean rank.
    """
    return correlation(rankdata(returns, axis=0, nan_policy="omit"))


def ewma(returns: np.ndarray, half_life_bars: float) -> np.ndarray:
    """Exponentially weighted correlation (n, n) of ``returns`` (w, n), oldest bar first.

    A bar weighs half as much as the bar ``half_life_bars`` after it.
    """
    bars_before_last = np.arange(len(returns))[::-1]
    return correlation(returns, 0.5 ** (bars_before_last / half_life_bars))


def partial_correlation(returns: np.ndarray) -> np.ndarray:
    """Correlation of the parts of two assets' returns that all other assets leave unexplained, (n, n).

    It is −P_ij / √(P_ii P_jj), where P is the inverse of the covariance of z. The covariance is shrunk by
    ``shrunk_covariance``, so P exists even for more assets than bars. An asset with less than 80% of the window, or
    that does not move, is left out: its entries are NaN. A missing bar of any other asset counts as its mean.
    """
    z, is_observed = standardise(returns)
    assets = np.flatnonzero(is_observed.sum(axis=0) >= MIN_OBSERVED_SHARE * len(returns))
    result = np.full((returns.shape[1],) * 2, np.nan)
    if len(assets):
        precision = np.linalg.inv(shrunk_covariance(z[:, assets]))
        scale = np.sqrt(np.diag(precision))
        partial = -precision / np.outer(scale, scale)
        np.fill_diagonal(partial, 1.0)
        result[np.ix_(assets, assets)] = round_correlations((partial + partial.T) / 2)
    return result


def shrunk_covariance(x: np.ndarray) -> np.ndarray:
    """Covariance (n, n) of ``x`` (w, n), whose columns have mean 0, shrunk towards a multiple of the identity matrix.

    Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices, section 3.3: the
    result is a weighted mean of the sample covariance and μI, where μ is the mean variance. The weight of μI minimises
    the expected squared error. It is β² / δ²: δ² is the squared distance of the sample covariance from μI, and β² is
    the part of it that is estimation error.
    """
    w, n = x.shape
    sample = x.T @ x / w
    mu = np.trace(sample) / n
    delta2 = ((sample - mu * np.eye(n)) ** 2).sum() / n
    beta2 = min(((x**2).T @ (x**2) / w - sample**2).sum() / (n * w), delta2)
    shrinkage = beta2 / delta2 if delta2 > 0 else 1.0
    return (1 - shrinkage) * sample + shrinkage * mu * np.eye(n)


def standardise(returns: np.ndarray, p: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(z, is_observed) of ``returns`` (w, n), (w, n) each; ``p`` (w,) weighs the bars, None weighs them equally.

    z is float64, and 0 where a return is unknown or the asset does not move. ``is_observed`` is True where a return is
    known and the asset moves.
    """
    is_finite = np.isfinite(returns)
    weight = is_finite * (1.0 if p is None else p[:, None])
    total_weight = np.where(is_finite.any(axis=0), weight.sum(axis=0), 1.0)
    centred = np.where(is_finite, returns, 0.0)
    centred -= np.where(is_finite, (weight * centred).sum(axis=0) / total_weight, 0.0)
    standard_deviation = np.sqrt((weight * centred**2).sum(axis=0) / total_weight)
    is_moving = standard_deviation > ZERO_TOLERANCE
    return np.where(is_moving, centred / np.where(is_moving, standard_deviation, 1.0), 0.0), is_finite & is_moving


def pairwise(
    a_standardised: tuple[np.ndarray, np.ndarray],
    b_standardised: tuple[np.ndarray, np.ndarray],
    w: int,
    p: np.ndarray | None = None,
) -> np.ndarray:
    """Correlation of asset i of ``a_standardised`` with asset j of ``b_standardised``, entry [i, j] of (n, n).

    Both arguments are results of ``standardise`` for ``w`` bars; bar t of the one is paired with bar t of the other.
    ``p`` (w,) are the weights of the bars that ``standardise`` received. An entry is NaN where the two assets share
    less than 80% of the bars, or where one of them does not move in the shared bars.
    """
    a, a_observed = a_standardised
    b, b_observed = b_standardised
    a_weight = a_observed.astype(np.float64)
    b_weight = b_observed.astype(np.float64)
    n_shared_bars = a_weight.T @ b_weight
    shared_weight = n_shared_bars
    if p is not None:
        a = a * np.sqrt(p)[:, None]
        b = b * np.sqrt(p)[:, None]
        a_weight = a_weight * np.sqrt(p)[:, None]
        b_weight = b_weight * np.sqrt(p)[:, None]
        shared_weight = a_weight.T @ b_weight
    # z has mean 0 and variance 1 over an asset's own bars, but not over the bars it shares with another asset, so the
    # sums of each pair are corrected for the bars that one of the two lacks
    a_sum = a.T @ b_weight
    b_sum = a_weight.T @ b
    covariance = shared_weight * (a.T @ b) - a_sum * b_sum
    a_variance = shared_weight * ((a**2).T @ b_observed) - a_sum**2
    b_variance = shared_weight * (a_observed.T @ (b**2)) - b_sum**2
    with np.errstate(invalid="ignore", divide="ignore"):
        result = covariance / np.sqrt(a_variance * b_variance)
    is_known = (n_shared_bars >= MIN_OBSERVED_SHARE * w) & (np.minimum(a_variance, b_variance) > ZERO_TOLERANCE)
    return np.where(is_known, round_correlations(result), np.nan)


def round_correlations(values: np.ndarray) -> np.ndarray:
    """``values`` rounded to six decimals and clipped to [−1, 1]."""
    return np.clip(np.round(values, DECIMALS), -1.0, 1.0)


# measures by the name that settings give them; "ewma" also needs half_life_bars
MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "pearson": correlation,
    "spearman": spearman,
    "ewma": ewma,
    "partial": partial_correlation,
}
