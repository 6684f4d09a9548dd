"""Selection of edges: which pairs of assets in a matrix of weights become edges of a graph.

Glossary: n assets, e edges. ``strongest_edges`` and ``spanning_tree`` receive a symmetric matrix (n, n), NaN where a
pair's weight is unknown. They return (src, dst, weight), (e,) each, with src < dst, in ascending order of (src, dst).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree

from models.graphs.snapshot import GraphError

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # src (e,) int64, dst (e,) int64, weight (e,) float64
MIN_WEIGHT = 1e-6  # the smallest absolute weight that differs from 0 in six decimals
SYMMETRY_TOLERANCE = 1e-9  # how far two sums of the same terms in another order may differ


def strongest_edges(matrix: np.ndarray, min_strength: float, top_k: int | None) -> Edges:
    """The pairs whose strength is at least ``min_strength`` and among the ``top_k`` greatest of either asset.

    A pair's strength is the absolute value of its weight. A pair below MIN_WEIGHT is never an edge. All pairs that tie
    with an asset's k-th strongest are included, so the result does not depend on the order of the assets. None for
    ``top_k``: no limit per asset. Raises GraphError for a matrix that is not symmetric.
    """
    check_symmetric(matrix)
    strength = np.nan_to_num(np.abs(matrix), nan=0.0)
    np.fill_diagonal(strength, 0.0)
    is_edge = strength >= max(min_strength, MIN_WEIGHT)
    if top_k is not None:
        kth = kth_largest(strength, top_k)
        is_edge &= strength >= np.minimum(kth[:, None], kth[None, :])
    src, dst = np.nonzero(np.triu(is_edge, k=1))
    return src, dst, matrix[src, dst]


def strongest_directed_edges(weight: np.ndarray, is_candidate: np.ndarray, top_k: int) -> Edges:
    """The candidate edges that are among the ``top_k`` strongest leaving their src or entering their dst.

    ``weight`` and ``is_candidate`` (n, n): entry [i, j] belongs to the edge from i to j;
    ``is_candidate`` is bool, True for a candidate. An edge's strength is the
    absolute value of its weight. All edges that tie with the k-th strongest are included. The edges are in ascending
    order of (src, dst).
    """
    strength = np.where(is_candidate, np.abs(weight), 0.0)
    kth_out = kth_largest(strength, top_k)
    kth_in = kth_largest(strength.T, top_k)
    src, dst = np.nonzero(is_candidate & (strength >= np.minimum(kth_out[:, None], kth_in[None, :])))
    return src, dst, weight[src, dst]


def spanning_tree(matrix: np.ndarray) -> Edges:
    """The n − 1 pairs that link all assets with the greatest sum of correlations. Where unknown pairs keep the assets
    apart, a forest of fewer pairs.

    Mantegna 1999, Hierarchical structure in financial markets: the minimum spanning tree of a distance that falls with
    the correlation. Raises GraphError for a matrix that is not symmetric.
    """
    check_symmetric(matrix)
    # every distance that falls with the correlation gives the same tree; scipy reads a distance of 0 as no edge, so
    # a correlation of 1 has the distance 1
    distance = np.triu(np.nan_to_num(2.0 - matrix, nan=0.0), k=1)
    src, dst = np.nonzero(minimum_spanning_tree(distance).toarray())
    return src, dst, matrix[src, dst]


def kth_largest(strength: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest value (n,) of each row of ``strength`` (n, n); the row's smallest value if k exceeds n."""
    k = min(k, strength.shape[1])
    return np.partition(strength, strength.shape[1] - k, axis=1)[:, strength.shape[1] - k]


def check_symmetric(matrix: np.ndarray) -> None:
    """Raises GraphError for a matrix that is not square or not symmetric.

    Two entries count as equal if they differ by at most SYMMETRY_TOLERANCE, or if both are NaN. The message names the
    first pair that differs.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise GraphError(
            f"correlations of shape {matrix.shape}; give a square matrix with one row and one column per asset"
        )
    is_asymmetric = ~np.isclose(matrix, matrix.T, rtol=0.0, atol=SYMMETRY_TOLERANCE, equal_nan=True)
    if is_asymmetric.any():
        i, j = np.argwhere(is_asymmetric)[0]
        raise GraphError(
            f"correlations are not symmetric: {matrix[i, j]} at ({i}, {j}), {matrix[j, i]} at ({j}, {i}); directed "
            "edges are made by models/graphs/lead_lag.py"
        )
