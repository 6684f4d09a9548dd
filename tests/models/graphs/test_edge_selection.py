"""Selection of edges, compared with results by hand and by networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from models.graphs.edge_selection import (
    Edges,
    check_symmetric,
    spanning_tree,
    strongest_directed_edges,
    strongest_edges,
)
from models.graphs.snapshot import GraphError


def make_symmetric_matrix(pairs: dict[tuple[int, int], float], n: int) -> np.ndarray:
    """The matrix (n, n) with these values, in both triangles, and 1 on the diagonal."""
    matrix = np.eye(n)
    for (i, j), value in pairs.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def weights_by_edge(edges: Edges) -> dict[tuple[int, int], float]:
    """The weight of each edge, by (src, dst)."""
    return {(int(i), int(j)): float(w) for i, j, w in zip(*edges, strict=True)}


def test_the_tree_has_the_greatest_correlations_that_close_no_cycle() -> None:
    pairs = {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.7, (2, 3): -0.2, (0, 3): -0.5, (1, 3): -0.9}
    assert weights_by_edge(spanning_tree(make_symmetric_matrix(pairs, 4))) == {(0, 1): 0.9, (1, 2): 0.8, (2, 3): -0.2}


def test_the_tree_equals_the_maximum_spanning_tree_of_networkx() -> None:
    rng = np.random.default_rng(0)
    matrix = np.corrcoef(rng.normal(size=(40, 60)))
    without_diagonal = matrix - 2 * np.eye(40)  # self-loops of −1 never belong to the maximum tree
    expected = nx.maximum_spanning_tree(nx.from_numpy_array(without_diagonal))
    assert set(weights_by_edge(spanning_tree(matrix))) == {tuple(sorted(e)) for e in expected.edges if e[0] != e[1]}


def test_perfectly_correlated_assets_are_linked_too() -> None:
    """They have the smallest distance; it must not be 0, which a sparse matrix reads as no edge."""
    edges = weights_by_edge(spanning_tree(np.ones((3, 3))))
    assert edges.keys() <= {(0, 1), (0, 2), (1, 2)}
    assert len(edges) == 2


def test_the_tree_is_a_forest_where_pairs_are_unknown() -> None:
    """Only the pairs (0, 1) and (2, 3) are known."""
    matrix = make_symmetric_matrix({(0, 1): 0.5, (2, 3): 0.1}, 5)
    matrix[4, :] = matrix[:, 4] = np.nan
    for i, j in ((0, 2), (0, 3), (1, 2), (1, 3)):
        matrix[i, j] = matrix[j, i] = np.nan
    assert weights_by_edge(spanning_tree(matrix)) == {(0, 1): 0.5, (2, 3): 0.1}


def test_edges_are_above_the_threshold_and_strongest_for_either_asset() -> None:
    matrix = make_symmetric_matrix({(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7, (1, 2): 0.4, (2, 3): 0.35}, 4)
    expected = {(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7}
    assert weights_by_edge(strongest_edges(matrix, min_strength=0.5, top_k=None)) == expected
    assert weights_by_edge(strongest_edges(matrix, min_strength=0.1, top_k=1)) == expected
    assert len(weights_by_edge(strongest_edges(matrix, min_strength=0.0, top_k=None))) == 5, "a weight of 0 is no edge"


def test_directed_edges_are_strongest_out_of_src_or_into_dst() -> None:
    weight = np.array([[0, 0.9, 0.8], [0.1, 0, 0.7], [0.0, 0.2, 0]])
    assert weights_by_edge(strongest_directed_edges(weight, weight > 0, 1)) == {
        (0, 1): 0.9,
        (0, 2): 0.8,
        (1, 0): 0.1,
        (1, 2): 0.7,
        (2, 1): 0.2,
    }
    assert weights_by_edge(strongest_directed_edges(weight, weight > 0.5, 1)) == {(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.7}


@pytest.mark.parametrize("select", [lambda m: strongest_edges(m, 0.1, 2), spanning_tree, check_symmetric])
def test_a_matrix_that_is_not_symmetric_is_refused_naming_the_pair(select) -> None:
    matrix = make_symmetric_matrix({(0, 1): 0.5, (1, 2): 0.4}, 3)
    matrix[2, 1] = 0.3
    with pytest.raises(GraphError, match=r"not symmetric: 0.4 at \(1, 2\), 0.3 at \(2, 1\)"):
        select(matrix)
    matrix[2, 1] = np.nan
    with pytest.raises(GraphError, match="not symmetric"):
        select(matrix)
    with pytest.raises(GraphError, match=r"shape \(2, 3\)"):
        select(np.zeros((2, 3)))
