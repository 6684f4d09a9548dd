"""Snapshots: what is refused, and what networks read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.graphs.snapshot import GraphError, Snapshot, to_adjacency

NOON = np.datetime64("2024-01-02T12:00", "us")


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


def test_a_directed_edge_is_heard_at_its_end_only() -> None:
    """Row i of the adjacency is what node i hears."""
    there = replace(snapshot(), directed=True)
    back = replace(there, src=there.dst, dst=there.src)
    np.testing.assert_array_equal(to_adjacency([there], 3)[0], [[1, 0, 0], [0, 1, 0], [-0.5, 0.25, 1]])
    np.testing.assert_array_equal(to_adjacency([back], 3)[0], [[1, 0, -0.5], [0, 1, 0.25], [0, 0, 1]])


def test_density_is_the_share_of_possible_edges() -> None:
    assert snapshot().density == 2 / 3
    assert snapshot(4).density == 2 / 6
    assert replace(snapshot(4), directed=True).density == 2 / 12


def test_a_graph_without_edges_is_a_graph_whose_nodes_stand_alone() -> None:
    none = np.zeros(0, dtype=np.int64)
    alone = Snapshot("correlation", NOON, NOON, none, none, np.zeros(0), ("A", "B"))
    assert alone.density == 0
    np.testing.assert_array_equal(to_adjacency([alone], 2)[0], np.eye(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.array([0.5, np.nan])}, r"edge 1 \(1 to 2, weight nan\) has a weight that is not finite"),
        ({"weight": np.array([0.5, np.inf])}, "weight inf"),
        ({"weight": np.array([0.5])}, "2 src, 2 dst and 1 weights"),
        ({"src": np.array([0, 2])}, r"edge 1 \(2 to 2, weight 0.25\) has the same node at both ends"),
        ({"dst": np.array([2, 3])}, r"edge 1 \(1 to 3, weight 0.25\) has a node outside 0 … 2"),
        ({"src": np.array([-1, 1])}, "a node outside 0 … 2"),
        ({"src": np.array([2, 1]), "dst": np.array([0, 2])}, "src after dst"),
        ({"src": np.array([0, 0])}, r"edge 1 \(0 to 2, weight 0.25\) has the ends of an edge before it"),
        (
            {"window_start": NOON + np.timedelta64(1, "us")},
            "has a window that starts later, at 2024-01-02T12:00:00.000001",
        ),
        ({"nodes": ("A",)}, "has 1 nodes; a graph needs at least two"),
    ],
)
def test_edges_that_no_graph_has_are_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(snapshot(), **change)
