"""Which pairs become edges, against hand-drawn trees and networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from models.graphs.edge_selection import check_symmetric, spanning_tree, strongest, strongest_directed
from models.graphs.snapshot import GraphError


def matrix_of(pairs: dict[tuple[int, int], float], n: int) -> np.ndarray:
    matrix = np.eye(n)
    for (i, j), value in pairs.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def edges(found: tuple) -> dict[tuple[int, int], float]:
    return {(int(i), int(j)): float(w) for i, j, w in zip(*found, strict=True)}


def test_a_tree_by_hand_takes_the_greatest_correlations_that_close_no_circle() -> None:
    pairs = {(0, 1): 0.9, (1, 2): 0.8, (0, 2): 0.7, (2, 3): -0.2, (0, 3): -0.5, (1, 3): -0.9}
    assert edges(spanning_tree(matrix_of(pairs, 4))) == {(0, 1): 0.9, (1, 2): 0.8, (2, 3): -0.2}


def test_a_tree_is_networkxs_maximum_spanning_tree() -> None:
    rng = np.random.default_rng(0)
    matrix = np.corrcoef(rng.normal(size=(40, 60)))
    theirs = nx.maximum_spanning_tree(nx.from_numpy_array(matrix - 2 * np.eye(40)))
    assert set(edges(spanning_tree(matrix))) == {tuple(sorted(e)) for e in theirs.edges if e[0] != e[1]}


def test_assets_that_move_as_one_are_linked_too() -> None:
    """Their distance is the least there is, which a sparse matrix would take for no edge."""
    assert edges(spanning_tree(np.ones((3, 3)))).keys() <= {(0, 1), (0, 2), (1, 2)}
    assert len(edges(spanning_tree(np.ones((3, 3))))) == 2


def test_unknown_pairs_make_a_forest() -> None:
    matrix = matrix_of({(0, 1): 0.5, (2, 3): 0.1}, 5)
    matrix[4, :] = matrix[:, 4] = np.nan
    for i, j in ((0, 2), (0, 3), (1, 2), (1, 3)):
        matrix[i, j] = matrix[j, i] = np.nan
    assert edges(spanning_tree(matrix)) == {(0, 1): 0.5, (2, 3): 0.1}


def test_strongest_of_either_end_above_the_threshold() -> None:
    matrix = matrix_of({(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7, (1, 2): 0.4, (2, 3): 0.35}, 4)
    assert edges(strongest(matrix, 0.5, None)) == {(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7}
    assert edges(strongest(matrix, 0.1, 1)) == {(0, 1): 0.9, (0, 2): -0.8, (0, 3): 0.7}
    assert len(edges(strongest(matrix, 0.0, None))) == 5, "a weight of nothing is no edge"


def test_directed_edges_are_among_the_strongest_out_or_in() -> None:
    weight = np.array([[0, 0.9, 0.8], [0.1, 0, 0.7], [0.0, 0.2, 0]])
    assert edges(strongest_directed(weight, weight > 0, 1)) == {
        (0, 1): 0.9,
        (0, 2): 0.8,
        (1, 0): 0.1,
        (1, 2): 0.7,
        (2, 1): 0.2,
    }
    assert edges(strongest_directed(weight, weight > 0.5, 1)) == {(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.7}


@pytest.mark.parametrize("keep", [lambda m: strongest(m, 0.1, 2), spanning_tree, check_symmetric])
def test_a_matrix_that_is_not_symmetric_is_refused_with_the_pair(keep) -> None:
    matrix = matrix_of({(0, 1): 0.5, (1, 2): 0.4}, 3)
    matrix[2, 1] = 0.3
    with pytest.raises(GraphError, match=r"not symmetric: 0.4 at \(1, 2\), 0.3 at \(2, 1\)"):
        keep(matrix)
    matrix[2, 1] = np.nan
    with pytest.raises(GraphError, match="not symmetric"):
        keep(matrix)
    with pytest.raises(GraphError, match=r"shape \(2, 3\)"):
        keep(np.zeros((2, 3)))
