"""Snapshots as networks read them, and the sector graph."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.sector import sector_snapshot
from models.graphs.snapshot import GraphError, Snapshot, to_adjacency

NOON = np.datetime64("2024-01-02T12:00", "us")
SECTORS = {"AAA": "Energy", "BBB": "Health Care", "CCC": "Energy", "DDD": None, "FFF": "Energy"}


def snapshot(nodes: int = 3) -> Snapshot:
    """Edges 0–2 of weight −0.5 and 1–2 of weight 0.25."""
    names = tuple("ABCDEF"[:nodes])
    return Snapshot("correlation", NOON, NOON, np.array([0, 1]), np.array([2, 2]), np.array([-0.5, 0.25]), names)


def test_adjacency_is_symmetric_with_self_loops() -> None:
    dense = to_adjacency([snapshot()], 3)
    assert dense.shape == (1, 3, 3) and dense.dtype == np.float32
    np.testing.assert_array_equal(dense[0], [[1, 0, -0.5], [0, 1, 0.25], [-0.5, 0.25, 1]])


def test_adjacency_of_no_snapshots_is_empty() -> None:
    assert to_adjacency([], 4).shape == (0, 4, 4)


def test_a_snapshot_of_other_nodes_is_refused() -> None:
    with pytest.raises(GraphError, match="has 3 nodes, expected 4"):
        to_adjacency([snapshot()], 4)


def test_density_is_the_share_of_possible_edges() -> None:
    assert snapshot().density == 2 / 3
    assert snapshot(4).density == 2 / 6


def test_members_of_a_sector_are_linked_and_the_rest_stay_alone() -> None:
    """HYB-08: EEE has no sector at all and DDD an unknown one; they are not each other's sector."""
    graph = sector_snapshot(NOON, ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF"), SECTORS)
    assert list(zip(graph.src, graph.dst, strict=True)) == [(0, 2), (0, 5), (2, 5)]
    assert (graph.graph, graph.as_of, np.isnat(graph.window_start)) == ("sector", NOON, True)
    np.testing.assert_array_equal(graph.weight, 1.0)


def test_a_sector_graph_of_one_symbol_is_refused() -> None:
    with pytest.raises(GraphError, match="at least two assets, got 1"):
        sector_snapshot(NOON, ("AAA",), SECTORS)
