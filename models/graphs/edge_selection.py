"""Selection of edges: which pairs of a matrix of correlations become edges of a graph.

Glossary: n assets, e edges. ``strongest`` and ``spanning_tree`` receive a symmetric matrix (n, n), NaN where a pair is
unknown, and return (src, dst, weight) of the edges, (e,) each, with src < dst, ordered by (src, dst).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree

from models.graphs.snapshot import GraphError

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]
LEAST = 1e-6  # the smallest weight that differs from 0 in six decimals
ROUNDING = 1e-9  # how far two sums of the same terms in another order may differ


def strongest(matrix: np.ndarray, min_strength: float, top_k: int | None) -> Edges:
    """Pairs of at least ``min_strength`` that are among the ``top_k`` strongest of either asset, by absolute value.

    Pairs that tie with an asset's k-th strongest are included, so the order of the assets does not matter. ``top_k``
    None: no such limit. Raises GraphError for a matrix that is not symmetric.
    """
    check_symmetric(matrix)
    strength = np.nan_to_num(np.abs(matrix), nan=0.0)
    np.fill_diagonal(strength, 0.0)
    is_edge = strength >= max(min_strength, LEAST)
    if top_k is not None:
        kth = kth_largest(strength, top_k)
        is_edge &= strength >= np.minimum(kth[:, None], kth[None, :])
    src, dst = np.nonzero(np.triu(is_edge, k=1))
    return src, dst, matrix[src, dst]


def strongest_directed(weight: np.ndarray, candidates: np.ndarray, top_k: int) -> Edges:
    """The ``candidates`` (n, n), edges from row to column, among the ``top_k`` strongest that leave the row's asset or
    that enter the column's.

    Strength is the absolute value of ``weight``; ties are included. Ordered by (src, dst).
    """
    strength = np.where(candidates, np.abs(weight), 0.0)
    kth_out = kth_largest(strength, top_k)
    kth_in = kth_largest(strength.T, top_k)
    src, dst = np.nonzero(candidates & (strength >= np.minimum(kth_out[:, None], kth_in[None, :])))
    return src, dst, weight[src, dst]


def spanning_tree(matrix: np.ndarray) -> Edges:
    """The n − 1 pairs that link all assets at the greatest total correlation; fewer, a forest, where pairs are unknown.

    Mantegna 1999, Hierarchical structure in financial markets: the minimum spanning tree of a distance that falls with
    the correlation. Raises GraphError for a matrix that is not symmetric.
    """
    check_symmetric(matrix)
    # any distance that falls with the correlation gives the same tree; scipy reads 0 as no edge, so it starts at 1
    distance = np.triu(np.nan_to_num(2.0 - matrix, nan=0.0), k=1)
    src, dst = np.nonzero(minimum_spanning_tree(distance).toarray())
    return src, dst, matrix[src, dst]


def kth_largest(strength: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest value of each row (n,); the smallest value where a row has fewer than k."""
    k = min(k, strength.shape[1])
    return np.partition(strength, strength.shape[1] - k, axis=1)[:, strength.shape[1] - k]


def check_symmetric(matrix: np.ndarray) -> None:
    """Raises GraphError for a matrix that is not square or not symmetric; the message names the first pair that
    differs."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise GraphError(f"correlations of shape {matrix.shape}; they are a square matrix, one row and column an asset")
    is_asymmetric = ~np.isclose(matrix, matrix.T, rtol=0.0, atol=ROUNDING, equal_nan=True)
    if is_asymmetric.any():
        i, j = np.argwhere(is_asymmetric)[0]
        raise GraphError(
            f"correlations are not symmetric: {matrix[i, j]} at ({i}, {j}), {matrix[j, i]} at ({j}, {i}); directed "
            "edges are made by models/graphs/lead_lag.py"
        )
