"""Lead-lag graphs: directed edges from an asset whose past predicts another asset, to the asset it predicts.

Glossary: t bars, n assets, w bars of the window, e edges · ℓ lag · p lags of a regression · y_j(t) return of asset j,
x_i its p last returns before t.

LeadLagRule    correlation of i's return ℓ bars ago with j's, at the lag where it is strongest. i leads j if it exceeds
               the correlation of j's past with i and is significant (Fisher's z, corrected for the number of lags).
GrangerRule    F-test of whether i's last p returns explain j's beyond j's own last p (Granger 1969, Investigating
               causal relations by econometric models).

Both test all n (n − 1) ordered pairs and bound the false discovery rate as Benjamini and Hochberg 1995 do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import erfc, fdtrc
from scipy.stats import false_discovery_control

from models.graphs.edge_selection import Edges, strongest_directed
from models.graphs.measures import DECIMALS, FLAT, pairwise, standardise
from models.graphs.snapshot import GraphError
from models.graphs.windowed import ReturnWindows, check_window

RIDGE = 1e-10  # share of a source's variance added to it: a source whose past copies the target's explains nothing


@dataclass(frozen=True)
class LeadLagRule(ReturnWindows):
    """Edges i → j where |correlation| of i's return ℓ bars ago with j's, at the strongest ℓ of 1 … ``max_lag``, is
    significant at a false discovery rate of ``max_false``, exceeds that of j's past with i, and is among the ``top_k``
    strongest that enter j or leave i.

    The weight is that correlation, with its sign. A pair needs 80% of the window, as for every correlation.
    """

    window_bars: int
    top_k: int
    every_bars: int
    max_lag: int = 5
    max_false: float = 0.05
    directed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, least=5)
        _check_selection(self.top_k, self.max_false)
        if not 1 <= self.max_lag <= self.window_bars // 4:
            raise GraphError(f"max_lag is {self.max_lag}; it must be 1 to a quarter of window_bars {self.window_bars}")

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """The edges of each window, see ``windowed.GraphRule``."""
        for end in ends:
            lead, p_value = lead_correlation(returns[end - self.window_bars + 1 : end + 1], self.max_lag)
            strength = np.nan_to_num(np.abs(lead), nan=0.0)
            is_leader = (false_discoveries(p_value) <= self.max_false) & (strength > strength.T)
            yield strongest_directed(lead, is_leader, self.top_k)


@dataclass(frozen=True)
class GrangerRule(ReturnWindows):
    """Edges i → j where i Granger-causes j with ``lags`` lags, at a false discovery rate of ``max_false``, and the edge
    is among the ``top_k`` strongest that enter j or leave i.

    The weight is the partial R²: of the variance of j that its own past leaves unexplained, the share that i's past
    explains. An asset that lacks a bar of the window, or does not move, has no edges in that window.
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
        check_window(self.window_bars, self.every_bars, least=3 * self.lags + 2)  # one more bar than coefficients
        _check_selection(self.top_k, self.max_false)

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """The edges of each window, see ``windowed.GraphRule``."""
        for end in ends:
            explained, p_value = granger(returns[end - self.window_bars + 1 : end + 1], self.lags)
            is_cause = false_discoveries(p_value) <= self.max_false
            yield strongest_directed(explained, is_cause, self.top_k)


def lead_correlation(returns: np.ndarray, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlation [i, j] of i's returns ℓ bars ago with j's, at the strongest ℓ of 1 … ``max_lag``, and its p-value,
    (n, n) each; ``returns`` (w, n).

    Of equal correlations the shorter lag is taken. NaN where no lag has enough bars of both assets; the p-value is also
    NaN on the diagonal. It is that of Fisher's z, normal with variance 1 / (bars − 3), times ``max_lag`` because the
    lag is the best of that many (Bonferroni).
    """
    w = len(returns)
    is_known = np.isfinite(returns).astype(np.float64)
    by_lag = np.stack(
        [
            pairwise(standardise(returns[: w - lag]), standardise(returns[lag:]), w - lag)
            for lag in range(1, max_lag + 1)
        ]
    )
    bars_by_lag = np.stack([is_known[: w - lag].T @ is_known[lag:] for lag in range(1, max_lag + 1)])
    best_lag = np.nan_to_num(np.abs(by_lag), nan=-1.0).argmax(axis=0)[None]
    lead, bars = (np.take_along_axis(a, best_lag, axis=0)[0] for a in (by_lag, bars_by_lag))
    z = np.arctanh(np.minimum(np.abs(lead), 1.0 - FLAT)) * np.sqrt(np.maximum(bars - 3, 0.0))
    p_value = np.minimum(max_lag * erfc(z / np.sqrt(2)), 1.0)
    np.fill_diagonal(p_value, np.nan)
    return lead, p_value


def granger(returns: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Partial R² and p-value [i, j] of the F-test that i's last ``lags`` returns do not explain j's, (n, n) each.

    Both regressions have a constant and j's own lags. NaN on the diagonal and for assets that lack a return in
    ``returns`` (w, n) or do not move. All pairs are solved at once: with Q_j an orthonormal basis of j's own
    regressors, the residual sum of squares falls by b' G⁻¹ b, where b = X_i' (y_j − Q_j Q_j' y_j) and
    G = X_i' X_i − (Q_j' X_i)' (Q_j' X_i).
    """
    w, n = returns.shape
    whole = np.flatnonzero(np.isfinite(returns).all(axis=0) & (np.nan_to_num(returns).std(axis=0) > FLAT))
    explained = np.full((n, n), np.nan)
    p_value = np.full((n, n), np.nan)
    if len(whole) < 2:
        return explained, p_value
    z = (returns[:, whole] - returns[:, whole].mean(axis=0)) / returns[:, whole].std(axis=0)
    y = z[lags:]
    x = np.stack([z[lags - k : w - k] for k in range(1, lags + 1)], axis=-1)  # (w − p, n, p)
    regressors = np.concatenate((np.ones((*y.shape, 1)), x), axis=-1).transpose(1, 0, 2)  # (n, w − p, 1 + p)
    basis = np.linalg.qr(regressors)[0]
    residual = y.T - np.einsum("jtq,jq->jt", basis, np.einsum("jtq,tj->jq", basis, y))
    unexplained = (residual**2).sum(axis=1)
    b = np.einsum("tip,jt->ijp", x, residual, optimize=True)
    shared = np.einsum("jtq,tip->jiqp", basis, x, optimize=True)
    gram = np.einsum("tip,tiq->ipq", x, x)[:, None] - np.einsum("jiqp,jiqr->ijpr", shared, shared, optimize=True)
    off_diagonal = ~np.eye(len(whole), dtype=bool)
    gram += RIDGE * w * np.eye(lags)
    share = (b * np.linalg.solve(gram, b[..., None])[..., 0]).sum(axis=-1) / np.maximum(unexplained, FLAT)
    share = np.where(off_diagonal, np.clip(share, 0.0, 1.0 - np.finfo(np.float64).eps), np.nan)
    degrees_of_freedom = len(y) - 2 * lags - 1
    pairs = np.ix_(whole, whole)
    p_value[pairs] = fdtrc(lags, degrees_of_freedom, share / (1 - share) * degrees_of_freedom / lags)
    explained[pairs] = np.round(share, DECIMALS)
    return explained, p_value


def _check_selection(top_k: int, max_false: float) -> None:
    """Raises GraphError for a ``top_k`` below 1 or a ``max_false`` outside (0, 1)."""
    if top_k < 1:
        raise GraphError(f"top_k is {top_k}; it must be at least 1")
    if not 0 < max_false < 1:
        raise GraphError(f"max_false is {max_false}; it must be between 0 and 1")


def false_discoveries(p_value: np.ndarray) -> np.ndarray:
    """p-values corrected by Benjamini and Hochberg over all that are not NaN, in the same shape; 1 where NaN."""
    corrected = np.ones(p_value.shape)
    is_known = np.isfinite(p_value)
    if is_known.any():
        corrected[is_known] = false_discovery_control(p_value[is_known], method="bh")
    return corrected
