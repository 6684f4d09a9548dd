"""Selection of edges, against results by hand and networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from models.graphs.edge_selection import check_symmetric, spanning_tree, strongest, strongest_directed
from models.graphs.snapshot import GraphError


def symmetric_matrix(pairs: dict[tuple[int, int], float], n: int) -> np.ndarray:
    """The matrix (n, n) with these values, in both triangles, and 1 on the diagonal."""
    matrix = np.eye(n)
    for (i, j), value in pairs.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def as_dict(edges: tuple) -> dict[tuple[int, int], float]:
    """The weight of each edge by its (src, dst)."""
    return {(int(i), int(j)): float(w) for i, j, w in zip(*edges, strict=True)}


def test_the_tree_has_the_greatest_correlations_that_close_no_cycle() -> None:
    pairs = {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.7, (2, 3): -0.2, (0, 3): -0.5, (1, 3): -0.9}
    assert as_dict(spanning_tree(symmetric_matrix(pairs, 4))) == {(0, 1): 0.9, (1, 2): 0.8, (2, 3): -0.2}


def test_the_tree_equals_the_maximum_spanning_tree_of_networkx() -> None:
    rng = np.random.default_rng(0)
    matrix = np.corrcoef(rng.normal(size=(40, 60)))
    expected = nx.maximum_spanning_tree(nx.from_numpy_array(matrix - 2 * np.eye(40)))
    assert set(as_dict(spanning_tree(matrix))) == {tuple(sorted(e)) for e in expected.edges if e[0] != e[1]}


def test_perfectly_correlated_assets_are_linked_too() -> None:
    """Their distance is the smallest possible, which a sparse matrix could store as no edge."""
    assert as_dict(spanning_tree(np.ones((3, 3)))).keys() <= {(0, 1), (0, 2), (1, 2)}
    assert len(as_dict(spanning_tree(np.ones((3, 3))))) == 2


def test_the_tree_is_a_forest_where_pairs_are_unknown() -> None:
    matrix = symmetric_matrix({(0, 1): 0.5, (2, 3): 0.1}, 5)
    matrix[4, :] = matrix[:, 4] = np.nan
    for i, j in ((0, 2), (0, 3), (1, 2), (1, 3)):
        matrix[i, j] = matrix[j, i] = np.nan
    assert as_dict(spanning_tree(matrix)) == {(0, 1): 0.5, (2, 3): 0.1}


def test_edges_are_above_the_threshold_and_strongest_for_either_asset() -> None:
    matrix = symmetric_matrix({(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7, (1, 2): 0.4, (2, 3): 0.35}, 4)
    assert as_dict(strongest(matrix, 0.5, None)) == {(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7}
    assert as_dict(strongest(matrix, 0.1, 1)) == {(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7}
    assert len(as_dict(strongest(matrix, 0.0, None))) == 5, "a weight of 0 is no edge"


def test_directed_edges_are_strongest_out_of_src_or_into_dst() -> None:
    weight = np.array([[0, 0.9, 0.8], [0.1, 0, 0.7], [0.0, 0.2, 0]])
    assert as_dict(strongest_directed(weight, weight > 0, 1)) == {
        (0, 1): 0.9,
        (0, 2): 0.8,
        (1, 0): 0.1,
        (1, 2): 0.7,
        (2, 1): 0.2,
    }
    assert as_dict(strongest_directed(weight, weight > 0.5, 1)) == {(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.7}


@pytest.mark.parametrize("select", [lambda m: strongest(m, 0.1, 2), spanning_tree, check_symmetric])
def test_a_matrix_that_is_not_symmetric_is_refused_naming_the_pair(select) -> None:
    matrix = symmetric_matrix({(0, 1): 0.5, (1, 2): 0.4}, 3)
    matrix[2, 1] = 0.3
    with pytest.raises(GraphError, match=r"not symmetric: 0.4 at \(1, 2\), 0.3 at \(2, 1\)"):
        select(matrix)
    matrix[2, 1] = np.nan
    with pytest.raises(GraphError, match="not symmetric"):
        select(matrix)
    with pytest.raises(GraphError, match=r"shape \(2, 3\)"):
        select(np.zeros((2, 3)))
