"""Measures of how alike two assets moved in a window: each receives returns (w, n) and returns a symmetric matrix
(n, n).

Glossary: w bars of the window, n assets, p weights of the bars, z standardised returns: less their mean, divided by
their standard deviation.

A pair is measured over the bars that both assets have. It is NaN where they share less than 80% of the window, or where
one of them does not move. Values are rounded to six decimals, see DECIMALS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

MIN_OBSERVED = 0.8  # share of the window that both assets of a pair must have returns for
FLAT = 1e-12  # a standard deviation of returns at or below this is rounding: the asset does not move
DECIMALS = 6  # of a weight: BLAS sums in an order that depends on the number of threads, and edges must not


def correlation(returns: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlation with the weights ``p`` (w,) of the bars, by default equal ones."""
    standardised = standardise(returns, p)
    return pairwise(standardised, standardised, len(returns), p)


def spearman(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation of the returns' ranks. An asset is ranked over its own bars; ties get their mean rank."""
    return correlation(rankdata(returns, axis=0, nan_policy="omit"))


def ewma(returns: np.ndarray, half_life_bars: float) -> np.ndarray:
    """Correlation in which a bar weighs half as much as the one ``half_life_bars`` after it."""
    age = np.arange(len(returns))[::-1]
    return correlation(returns, 0.5 ** (age / half_life_bars))


def partial_correlation(returns: np.ndarray) -> np.ndarray:
    """Correlation of what all other assets leave unexplained: −P_ij / √(P_ii P_jj), P the inverse of the covariance.

    The covariance is that of z, shrunk as Ledoit and Wolf do, so P exists for more assets than bars. Assets with less
    than 80% of the window, or that do not move, are left out and NaN; a missing bar of another asset counts as its
    mean.
    """
    z, is_observed = standardise(returns)
    assets = np.flatnonzero(is_observed.sum(axis=0) >= MIN_OBSERVED * len(returns))
    result = np.full((returns.shape[1],) * 2, np.nan)
    if len(assets):
        precision = np.linalg.inv(shrunk_covariance(z[:, assets]))
        scale = np.sqrt(np.diag(precision))
        partial = -precision / np.outer(scale, scale)
        np.fill_diagonal(partial, 1.0)
        result[np.ix_(assets, assets)] = rounded((partial + partial.T) / 2)
    return result


def shrunk_covariance(x: np.ndarray) -> np.ndarray:
    """Covariance (n, n) of centred rows x (w, n), shrunk towards μI by the share that minimises the expected error.

    Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices, section 3.3: δ² is the
    sample's distance from μI, β² the part of it that is the sample's own error.
    """
    w, n = x.shape
    sample = x.T @ x / w
    mu = np.trace(sample) / n
    delta2 = ((sample - mu * np.eye(n)) ** 2).sum() / n
    beta2 = min(((x**2).T @ (x**2) / w - sample**2).sum() / (n * w), delta2)
    shrinkage = beta2 / delta2 if delta2 > 0 else 1.0
    return (1 - shrinkage) * sample + shrinkage * mu * np.eye(n)


def standardise(returns: np.ndarray, p: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """z, 0 where unknown, and ``is_observed``, True where an asset that moves has a return; (w, n) each."""
    is_finite = np.isfinite(returns)
    weight = is_finite * (1.0 if p is None else p[:, None])
    total = np.where(is_finite.any(axis=0), weight.sum(axis=0), 1.0)
    centred = np.where(is_finite, returns, 0.0)
    centred -= np.where(is_finite, (weight * centred).sum(axis=0) / total, 0.0)
    deviation = np.sqrt((weight * centred**2).sum(axis=0) / total)
    moves = deviation > FLAT
    return np.where(moves, centred / np.where(moves, deviation, 1.0), 0.0), is_finite & moves


def pairwise(
    rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray], w: int, p: np.ndarray | None = None
) -> np.ndarray:
    """Correlation [i, j], (n, n), of asset i of ``rows`` with asset j of ``columns``, bar by bar.

    ``rows`` and ``columns`` are what ``standardise`` returned. A pair must share 80% of ``w`` bars, otherwise NaN.
    """
    a, a_observed = rows
    b, b_observed = columns
    a_weight = a_observed.astype(np.float64)
    b_weight = b_observed.astype(np.float64)
    pairs = counts = a_weight.T @ b_weight
    if p is not None:
        a = a * np.sqrt(p)[:, None]
        b = b * np.sqrt(p)[:, None]
        a_weight = a_weight * np.sqrt(p)[:, None]
        b_weight = b_weight * np.sqrt(p)[:, None]
        pairs = a_weight.T @ b_weight
    # z has mean 0 and variance 1 over an asset's own bars, but not over the bars it shares with another asset, so the
    # sums of each pair are corrected for the bars that one of the two lacks
    a_sum = a.T @ b_weight
    b_sum = a_weight.T @ b
    covariance = pairs * (a.T @ b) - a_sum * b_sum
    a_variance = pairs * ((a**2).T @ b_observed) - a_sum**2
    b_variance = pairs * (a_observed.T @ (b**2)) - b_sum**2
    with np.errstate(invalid="ignore", divide="ignore"):
        result = covariance / np.sqrt(a_variance * b_variance)
    is_known = (counts >= MIN_OBSERVED * w) & (np.minimum(a_variance, b_variance) > FLAT)
    return np.where(is_known, rounded(result), np.nan)


def rounded(values: np.ndarray) -> np.ndarray:
    """Correlations rounded to six decimals and clipped to −1 … 1."""
    return np.clip(np.round(values, DECIMALS), -1.0, 1.0)


MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "pearson": correlation,
    "spearman": spearman,
    "ewma": ewma,
    "partial": partial_correlation,
}
