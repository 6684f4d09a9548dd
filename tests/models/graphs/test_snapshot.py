"""Snapshots refuse invalid edges and fields; the adjacency matrix that networks read is built from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.graphs.snapshot import GraphError, Snapshot, to_adjacency

NOON = np.datetime64("2024-01-02T12:00", "us")


def make_snapshot(n_nodes: int = 3) -> Snapshot:
    """An undirected graph with an edge 0–2 of weight −0.5 and an edge 1–2 of weight 0.25."""
    return Snapshot(
        "correlation",
        as_of=NOON,
        window_start=NOON,
        src=np.array([0, 1]),
        dst=np.array([2, 2]),
        weight=np.array([-0.5, 0.25]),
        nodes=tuple("ABCDEF"[:n_nodes]),
    )


def test_adjacency_of_an_undirected_graph_is_symmetric_with_self_loops() -> None:
    dense = to_adjacency([make_snapshot()], 3)
    assert dense.shape == (1, 3, 3) and dense.dtype == np.float32
    np.testing.assert_array_equal(dense[0], [[1, 0, -0.5], [0, 1, 0.25], [-0.5, 0.25, 1]])


def test_adjacency_of_no_snapshots_is_empty() -> None:
    assert to_adjacency([], 4).shape == (0, 4, 4)


def test_a_snapshot_of_other_nodes_is_refused() -> None:
    with pytest.raises(GraphError, match="has 3 nodes, expected 4"):
        to_adjacency([make_snapshot()], 4)


def test_a_directed_edge_is_in_the_row_of_its_dst_only() -> None:
    """Row i of the adjacency holds the edges that enter node i."""
    directed = replace(make_snapshot(), directed=True)
    reversed_edges = replace(directed, src=directed.dst, dst=directed.src)
    np.testing.assert_array_equal(to_adjacency([directed], 3)[0], [[1, 0, 0], [0, 1, 0], [-0.5, 0.25, 1]])
    np.testing.assert_array_equal(to_adjacency([reversed_edges], 3)[0], [[1, 0, -0.5], [0, 1, 0.25], [0, 0, 1]])


def test_density_is_the_share_of_possible_edges() -> None:
    assert make_snapshot().density == 2 / 3
    assert make_snapshot(4).density == 2 / 6
    assert replace(make_snapshot(4), directed=True).density == 2 / 12


def test_a_graph_without_edges_is_valid_and_its_adjacency_is_the_identity() -> None:
    no_edges = np.zeros(0, dtype=np.int64)
    empty = Snapshot("correlation", NOON, NOON, no_edges, no_edges, np.zeros(0), ("A", "B"))
    assert empty.density == 0
    np.testing.assert_array_equal(to_adjacency([empty], 2)[0], np.eye(2))


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
def test_an_invalid_snapshot_is_refused_naming_the_edge_or_field(change: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(make_snapshot(), **change)
