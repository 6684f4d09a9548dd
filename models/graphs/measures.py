"""How alike two assets moved in a window: every measure takes returns (w, n) and gives a symmetric matrix (n, n).

Glossary: w bars of the window, n assets, p weights of the bars, z returns less their mean, in their deviations.

A pair is measured over the bars both assets have; it is NaN where they share less than 80% of the window or one of them
does not move. Values are rounded to six decimals, see DECIMALS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

MIN_OBSERVED = 0.8  # share of the window that both assets of a pair must have returns for
FLAT = 1e-12  # a standard deviation of returns below this is rounding
DECIMALS = 6  # of a weight: BLAS sums in another order with another number of threads, and edges must not show it


def correlation(returns: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlation, every bar weighing ``p`` (w,), by default the same."""
    standard = standardise(returns, p)
    return pairwise(standard, standard, len(returns), p)


def spearman(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation of the returns' ranks, ties sharing their mean rank; an asset is ranked over its own bars."""
    return correlation(rankdata(returns, axis=0, nan_policy="omit"))


def ewma(returns: np.ndarray, half_life_bars: float) -> np.ndarray:
    """Correlation in which a bar weighs half as much as the one ``half_life_bars`` after it."""
    age = np.arange(len(returns))[::-1]
    return correlation(returns, 0.5 ** (age / half_life_bars))


def partial_correlation(returns: np.ndarray) -> np.ndarray:
    """Correlation of what the other assets leave unexplained: −P_ij / √(P_ii P_jj), P the inverse of the covariance.

    The covariance is that of z, shrunk as Ledoit and Wolf do, so P exists for more assets than bars. Assets with less
    than 80% of the window, or that do not move, take no part and are NaN; a bar that another lacks counts as its mean.
    """
    z, seen = standardise(returns)
    part = np.flatnonzero(seen.sum(axis=0) >= MIN_OBSERVED * len(returns))
    result = np.full((returns.shape[1],) * 2, np.nan)
    if len(part):
        precision = np.linalg.inv(shrunk_covariance(z[:, part]))
        scale = np.sqrt(np.diag(precision))
        partial = -precision / np.outer(scale, scale)
        np.fill_diagonal(partial, 1.0)
        result[np.ix_(part, part)] = rounded((partial + partial.T) / 2)
    return result


def shrunk_covariance(x: np.ndarray) -> np.ndarray:
    """Covariance (n, n) of centred rows x (w, n), drawn towards μI by as much as minimises the expected error.

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
    """z, 0 where unknown, and ``seen``, True where an asset that moves has a return, (w, n) each."""
    seen = np.isfinite(returns)
    weight = seen * (1.0 if p is None else p[:, None])
    total = np.where(seen.any(axis=0), weight.sum(axis=0), 1.0)
    centred = np.where(seen, returns, 0.0)
    centred -= np.where(seen, (weight * centred).sum(axis=0) / total, 0.0)
    deviation = np.sqrt((weight * centred**2).sum(axis=0) / total)
    moves = deviation > FLAT
    return np.where(moves, centred / np.where(moves, deviation, 1.0), 0.0), seen & moves


def pairwise(
    left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], w: int, p: np.ndarray | None = None
) -> np.ndarray:
    """Correlation [i, j] of column i of ``left`` with column j of ``right``, both standardised, bar by bar, (n, n).

    ``w`` is the window that a pair must share 80% of.
    """
    (a, a_seen), (b, b_seen) = left, right
    there = a_seen.astype(np.float64), b_seen.astype(np.float64)
    pairs = counts = there[0].T @ there[1]
    if p is not None:
        a, b, there = a * np.sqrt(p)[:, None], b * np.sqrt(p)[:, None], tuple(s * np.sqrt(p)[:, None] for s in there)
        pairs = there[0].T @ there[1]
    # z has mean 0 and variance 1 over an asset's own bars; over the bars it shares with another it may not, so the sums
    # of each pair are corrected for the bars that one of the two lacks
    a_sum, b_sum = a.T @ there[1], there[0].T @ b
    covariance = pairs * (a.T @ b) - a_sum * b_sum
    a_variance = pairs * ((a**2).T @ b_seen) - a_sum**2
    b_variance = pairs * (a_seen.T @ (b**2)) - b_sum**2
    with np.errstate(invalid="ignore", divide="ignore"):
        result = covariance / np.sqrt(a_variance * b_variance)
    known = (counts >= MIN_OBSERVED * w) & (np.minimum(a_variance, b_variance) > FLAT)
    return np.where(known, rounded(result), np.nan)


def rounded(values: np.ndarray) -> np.ndarray:
    """Correlations to six decimals, −1 to 1."""
    return np.clip(np.round(values, DECIMALS), -1.0, 1.0)


MEASURES: dict[str, Callable[..., np.ndarray]] = {
    "pearson": correlation,
    "spearman": spearman,
    "ewma": ewma,
    "partial": partial_correlation,
}
