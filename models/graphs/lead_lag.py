"""Lead-lag graphs: directed edges i → j, where the past of asset i predicts asset j.

Glossary: n assets, w bars of the window, ℓ lag in bars, p lags of a regression · y_j(t) return of asset j at bar t ·
x_i(t) the p returns of asset i before bar t.

LeadLagRule    correlation of y_i(t − ℓ) with y_j(t), at the lag ℓ where its absolute value is greatest. Asset i leads j
               if that correlation is significant (Fisher's z, corrected for the number of lags) and stronger than the
               correlation in the other direction, of y_j(t − ℓ) with y_i(t).
GrangerRule    F-test of whether x_i explains a part of y_j that x_j leaves unexplained (Granger 1969, Investigating
               causal relations by econometric models).

Both rules test all n (n − 1) ordered pairs and bound the false discovery rate (Benjamini and Hochberg 1995).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import erfc, fdtrc
from scipy.stats import false_discovery_control

from models.graphs.edge_selection import Edges, strongest_directed_edges
from models.graphs.measures import DECIMALS, ZERO_TOLERANCE, pairwise, standardise
from models.graphs.snapshot import GraphError
from models.graphs.windowed import ReturnWindows, check_window

# added to the variance of i's past, as a share of it, so that a past of i that copies the past of j explains nothing
RIDGE_SHARE = 1e-10


@dataclass(frozen=True)
class LeadLagRule(ReturnWindows):
    """Edges i → j from the asset that leads to the asset that follows.

    The weight is the correlation of i's return ℓ bars ago with j's return, with its sign, at the ℓ of 1 … ``max_lag``
    where its absolute value is greatest. The pair is an edge if three conditions hold. The correlation is significant
    at a false discovery rate of ``max_false``. It is stronger than that of j's past with i's return. It is among the
    ``top_k`` strongest edges that leave i or that enter j. A pair that shares less than 80% of the window has no edge.
    """

    window_bars: int
    top_k: int
    every_bars: int
    max_lag: int = 5
    max_false: float = 0.05
    directed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, min_bars=5)
        _check_selection(self.top_k, self.max_false)
        if not 1 <= self.max_lag <= self.window_bars // 4:
            raise GraphError(f"max_lag is {self.max_lag}; it must be 1 to a quarter of window_bars {self.window_bars}")

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Yields the edges of each window, see ``windowed.GraphRule``."""
        for end in ends:
            lead, p_value = lead_correlation(returns[end - self.window_bars + 1 : end + 1], self.max_lag)
            strength = np.nan_to_num(np.abs(lead), nan=0.0)
            is_leader = (corrected_p_values(p_value) <= self.max_false) & (strength > strength.T)
            yield strongest_directed_edges(lead, is_leader, self.top_k)


@dataclass(frozen=True)
class GrangerRule(ReturnWindows):
    """Edges i → j where the past of i explains a part of j that j's own past leaves unexplained.

    The weight is the partial R², in [0, 1]: of the variance of j that its own last ``lags`` returns leave unexplained,
    the share that the last ``lags`` returns of i explain. The pair is an edge if the F-test is significant at a false
    discovery rate of ``max_false``, and the weight is among the ``top_k`` greatest that leave i or that enter j. An
    asset that lacks a return in the window, or does not move, has no edges in that window.
    """

    window_bars: int
    top_k: int
    every_bars: int
    lags: int = 1
    max_false: float = 0.05
    directed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lags < 1:
            raise GraphError(f"lags is {self.lags}; it must be at least 1")
        # lags bars have no full past; the others must outnumber the 2 · lags + 1 coefficients
        check_window(self.window_bars, self.every_bars, min_bars=3 * self.lags + 2)
        _check_selection(self.top_k, self.max_false)

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Yields the edges of each window, see ``windowed.GraphRule``."""
        for end in ends:
            partial_r2, p_value = granger_test(returns[end - self.window_bars + 1 : end + 1], self.lags)
            is_cause = corrected_p_values(p_value) <= self.max_false
            yield strongest_directed_edges(partial_r2, is_cause, self.top_k)


def lead_correlation(returns: np.ndarray, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Lagged correlations and their p-values, (n, n) each, of ``returns`` (w, n), NaN where unknown.

    Entry [i, j] is the correlation of i's return ℓ bars ago with j's return, at the ℓ of 1 … ``max_lag`` where its
    absolute value is greatest; of equal absolute values, at the shortest ℓ. Both results are NaN where no lag has
    enough bars of both assets. The p-values are also NaN on the diagonal. A p-value is that of Fisher's z, which is
    normal with variance 1 / (bars − 3), times ``max_lag``, because the lag is the best of ``max_lag`` lags
    (Bonferroni).
    """
    w = len(returns)
    is_known = np.isfinite(returns).astype(np.float64)
    correlation_by_lag = np.stack(
        [
            pairwise(standardise(returns[: w - lag]), standardise(returns[lag:]), w - lag)
            for lag in range(1, max_lag + 1)
        ]
    )
    n_shared_by_lag = np.stack([is_known[: w - lag].T @ is_known[lag:] for lag in range(1, max_lag + 1)])
    best_lag_index = np.nan_to_num(np.abs(correlation_by_lag), nan=-1.0).argmax(axis=0)[None]
    lead = np.take_along_axis(correlation_by_lag, best_lag_index, axis=0)[0]
    n_shared_bars = np.take_along_axis(n_shared_by_lag, best_lag_index, axis=0)[0]
    fisher_z = np.arctanh(np.minimum(np.abs(lead), 1.0 - ZERO_TOLERANCE)) * np.sqrt(np.maximum(n_shared_bars - 3, 0.0))
    p_value = np.minimum(max_lag * erfc(fisher_z / np.sqrt(2)), 1.0)
    np.fill_diagonal(p_value, np.nan)
    return lead, p_value


def granger_test(returns: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Partial R² and p-values, (n, n) each, of the F-tests whether the past of asset i explains asset j.

    Entry [i, j] compares two regressions of j's returns: on a constant and j's own last ``lags`` returns, and on these
    and i's last ``lags`` returns. Both results are NaN on the diagonal and for assets that lack a return in ``returns``
    (w, n) or do not move.

    All pairs are solved at once. X_i are the rows x_i(t), Q_j is an orthonormal basis of j's own regressors. Adding X_i
    lowers the residual sum of squares by b' G⁻¹ b, where b = X_i' (y_j − Q_j Q_j' y_j) and
    G = X_i' X_i − (Q_j' X_i)' (Q_j' X_i).
    """
    w, n = returns.shape
    complete_assets = np.flatnonzero(
        np.isfinite(returns).all(axis=0) & (np.nan_to_num(returns).std(axis=0) > ZERO_TOLERANCE)
    )
    partial_r2 = np.full((n, n), np.nan)
    p_value = np.full((n, n), np.nan)
    if len(complete_assets) < 2:
        return partial_r2, p_value
    standardised = (returns[:, complete_assets] - returns[:, complete_assets].mean(axis=0)) / returns[
        :, complete_assets
    ].std(axis=0)
    y = standardised[lags:]
    x = np.stack([standardised[lags - k : w - k] for k in range(1, lags + 1)], axis=-1)  # (w − p, n, p)
    regressors = np.concatenate((np.ones((*y.shape, 1)), x), axis=-1).transpose(1, 0, 2)  # (n, w − p, 1 + p)
    basis = np.linalg.qr(regressors)[0]
    residual = y.T - np.einsum("jtq,jq->jt", basis, np.einsum("jtq,tj->jq", basis, y))
    residual_squares = (residual**2).sum(axis=1)
    b = np.einsum("tip,jt->ijp", x, residual, optimize=True)
    projection = np.einsum("jtq,tip->jiqp", basis, x, optimize=True)
    explained_gram = np.einsum("jiqp,jiqr->ijpr", projection, projection, optimize=True)
    gram = np.einsum("tip,tiq->ipq", x, x)[:, None] - explained_gram
    off_diagonal = ~np.eye(len(complete_assets), dtype=bool)
    gram += RIDGE_SHARE * w * np.eye(lags)
    explained_squares = (b * np.linalg.solve(gram, b[..., None])[..., 0]).sum(axis=-1)
    share = explained_squares / np.maximum(residual_squares, ZERO_TOLERANCE)
    share = np.where(off_diagonal, np.clip(share, 0.0, 1.0 - np.finfo(np.float64).eps), np.nan)
    degrees_of_freedom = len(y) - 2 * lags - 1
    complete_pairs = np.ix_(complete_assets, complete_assets)
    p_value[complete_pairs] = fdtrc(lags, degrees_of_freedom, share / (1 - share) * degrees_of_freedom / lags)
    partial_r2[complete_pairs] = np.round(share, DECIMALS)
    return partial_r2, p_value


def _check_selection(top_k: int, max_false: float) -> None:
    """Raises GraphError for a ``top_k`` below 1 or a ``max_false`` outside (0, 1)."""
    if top_k < 1:
        raise GraphError(f"top_k is {top_k}; it must be at least 1")
    if not 0 < max_false < 1:
        raise GraphError(f"max_false is {max_false}; it must be between 0 and 1")


def corrected_p_values(p_value: np.ndarray) -> np.ndarray:
    """The p-values after the correction of Benjamini and Hochberg for the number of tests, in the same shape.

    NaN entries are no tests; the result is 1 there. An edge whose corrected p-value is at most q belongs to a set with
    a false discovery rate of at most q.
    """
    corrected = np.ones(p_value.shape)
    is_known = np.isfinite(p_value)
    if is_known.any():
        corrected[is_known] = false_discovery_control(p_value[is_known], method="bh")
    return corrected
