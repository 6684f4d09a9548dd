"""Who moved first: directed edges from the asset whose past tells of the other to the one it tells of.

Glossary: t bars, n assets, w bars of the window, e edges · ℓ lag · p lags of a regression · y_j(t) return of asset j,
x_i its p last returns before t.

LeadLagRule    correlation of i's return ℓ bars ago with j's, at the lag where it is strongest; i leads if that is more
               than the same the other way round, and more than chance (Fisher's z, times the lags it is the best of).
GrangerRule    F-test of whether i's last p returns explain j's beyond j's own last p (Granger 1969, Investigating
               causal relations by econometric models).

Both test all n (n − 1) ordered pairs and hold false discoveries to a rate after Benjamini and Hochberg 1995.
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
from models.graphs.windowed import OfReturns, check_window

COPY = 1e-10  # of a source's variance, added to it: one whose past is a copy of the target's then explains nothing


@dataclass(frozen=True)
class LeadLagRule(OfReturns):
    """Edges i → j where |correlation| of i ℓ bars ago with j, at its strongest ℓ of 1 … ``max_lag``, is no chance at a
    false discovery rate of ``max_false``, more than that of j ago with i, and among the ``top_k`` strongest into j or
    out of i.

    The weight is that correlation, with its sign. A pair needs 80% of the window, like every correlation.
    """

    window_bars: int
    top_k: int
    every_bars: int
    max_lag: int = 5
    max_false: float = 0.05
    directed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, least=5)
        _check_kept(self.top_k, self.max_false)
        if not 1 <= self.max_lag <= self.window_bars // 4:
            raise GraphError(f"max_lag is {self.max_lag}; it must be 1 to a quarter of window_bars {self.window_bars}")

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Edges of each window, see ``windowed.Rule``."""
        for end in ends:
            lead, p_value = lead_correlation(returns[end - self.window_bars + 1 : end + 1], self.max_lag)
            strength = np.nan_to_num(np.abs(lead), nan=0.0)
            leads = (false_discoveries(p_value) <= self.max_false) & (strength > strength.T)
            yield strongest_directed(lead, leads, self.top_k)


@dataclass(frozen=True)
class GrangerRule(OfReturns):
    """Edges i → j where i Granger-causes j at ``lags`` lags, at a false discovery rate of ``max_false``, and i is among
    the ``top_k`` strongest into j or j out of i.

    The weight is the partial R²: the share of j's variance unexplained by its own past that i's past explains. An asset
    that lacks a bar of the window, or does not move, has no edges in it.
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
        _check_kept(self.top_k, self.max_false)

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Edges of each window, see ``windowed.Rule``."""
        for end in ends:
            explained, p_value = granger(returns[end - self.window_bars + 1 : end + 1], self.lags)
            causes = false_discoveries(p_value) <= self.max_false
            yield strongest_directed(explained, causes, self.top_k)


def lead_correlation(returns: np.ndarray, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlation [i, j] of i's returns ℓ bars ago with j's, at the strongest ℓ of 1 … max_lag, and the p-value of one
    so strong by chance, (n, n) each from (w, n).

    A tie goes to the shorter lag. NaN where no lag has enough bars of both; the p-value also on the diagonal. That is
    of Fisher's z, normal with variance 1 / (bars − 3), times ``max_lag`` for the best of so many (Bonferroni).
    """
    w, known = len(returns), np.isfinite(returns).astype(np.float64)
    by_lag = np.stack(
        [
            pairwise(standardise(returns[: w - lag]), standardise(returns[lag:]), w - lag)
            for lag in range(1, max_lag + 1)
        ]
    )
    both = np.stack([known[: w - lag].T @ known[lag:] for lag in range(1, max_lag + 1)])
    strongest = np.nan_to_num(np.abs(by_lag), nan=-1.0).argmax(axis=0)[None]
    lead, bars = (np.take_along_axis(a, strongest, axis=0)[0] for a in (by_lag, both))
    z = np.arctanh(np.minimum(np.abs(lead), 1.0 - FLAT)) * np.sqrt(np.maximum(bars - 3, 0.0))
    p_value = np.minimum(max_lag * erfc(z / np.sqrt(2)), 1.0)
    np.fill_diagonal(p_value, np.nan)
    return lead, p_value


def granger(returns: np.ndarray, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """Partial R² and p-value [i, j] of the F-test that i's last ``lags`` returns do not explain j's, (n, n) each.

    Both regressions have a constant and j's own lags. NaN on the diagonal and for assets with a hole in ``returns``
    (w, n). All pairs are solved at once: with Q_j an orthonormal basis of j's own regressors, the residual sum of
    squares falls by b' G⁻¹ b, where b = X_i' (y_j − Q_j Q_j' y_j) and G = X_i' X_i − (Q_j' X_i)' (Q_j' X_i).
    """
    w, n = returns.shape
    whole = np.flatnonzero(np.isfinite(returns).all(axis=0) & (np.nan_to_num(returns).std(axis=0) > FLAT))
    explained, p_value = np.full((n, n), np.nan), np.full((n, n), np.nan)
    if len(whole) < 2:
        return explained, p_value
    z = (returns[:, whole] - returns[:, whole].mean(axis=0)) / returns[:, whole].std(axis=0)
    y = z[lags:]
    x = np.stack([z[lags - k : w - k] for k in range(1, lags + 1)], axis=-1)  # (w − p, n, p)
    own = np.concatenate((np.ones((*y.shape, 1)), x), axis=-1).transpose(1, 0, 2)  # (n, w − p, 1 + p)
    basis = np.linalg.qr(own)[0]
    rest = y.T - np.einsum("jtq,jq->jt", basis, np.einsum("jtq,tj->jq", basis, y))
    unexplained = (rest**2).sum(axis=1)
    b = np.einsum("tip,jt->ijp", x, rest, optimize=True)
    shared = np.einsum("jtq,tip->jiqp", basis, x, optimize=True)
    gram = np.einsum("tip,tiq->ipq", x, x)[:, None] - np.einsum("jiqp,jiqr->ijpr", shared, shared, optimize=True)
    apart = ~np.eye(len(whole), dtype=bool)
    gram += COPY * w * np.eye(lags)
    share = (b * np.linalg.solve(gram, b[..., None])[..., 0]).sum(axis=-1) / np.maximum(unexplained, FLAT)
    share = np.where(apart, np.clip(share, 0.0, 1.0 - np.finfo(np.float64).eps), np.nan)
    spare = len(y) - 2 * lags - 1
    at = np.ix_(whole, whole)
    p_value[at] = fdtrc(lags, spare, share / (1 - share) * spare / lags)
    explained[at] = np.round(share, DECIMALS)
    return explained, p_value


def _check_kept(top_k: int, max_false: float) -> None:
    if top_k < 1:
        raise GraphError(f"top_k is {top_k}; it must be at least 1")
    if not 0 < max_false < 1:
        raise GraphError(f"max_false is {max_false}; it must be between 0 and 1")


def false_discoveries(p_value: np.ndarray) -> np.ndarray:
    """p-values corrected by Benjamini and Hochberg over all that are known, in the same shape; 1 where unknown."""
    corrected, known = np.ones(p_value.shape), np.isfinite(p_value)
    if known.any():
        corrected[known] = false_discovery_control(p_value[known], method="bh")
    return corrected
