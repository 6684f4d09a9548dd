"""A graph between assets as of one bar, and its dense form, the adjacency matrix that networks read.

Glossary: n nodes, e edges, s snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class GraphError(ValueError):
    """No graph can be built from these settings, bars, edges or events; the message names them.

    GraphError ← ValueError
    """


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A graph built from bars in [window_start, as_of] only.

    ``as_of`` and ``window_start`` are bar opens, datetime64[us] in UTC. ``window_start`` is NaT for a graph that is not
    built from a window. ``src`` and ``dst`` (e,) int64 are positions in ``nodes``. ``weight`` (e,) float64 has either
    sign. An undirected edge is stored once, with ``src < dst``. A directed edge runs from ``src`` to ``dst``, the
    direction in which information flows. A graph without edges is valid.

    Raises GraphError for fewer than two nodes, arrays of different lengths, a window that starts after ``as_of``, a
    position outside ``nodes``, an edge from a node to itself, an edge that is stored twice, an undirected edge with
    ``src > dst``, and a weight that is not finite.
    """

    graph: str
    as_of: np.datetime64
    window_start: np.datetime64
    src: np.ndarray
    dst: np.ndarray
    weight: np.ndarray
    nodes: tuple[str, ...]
    directed: bool = False

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise GraphError(f"{self._name} has {len(self.nodes)} nodes; a graph needs at least two")
        if not len(self.src) == len(self.dst) == len(self.weight):
            sizes = f"{len(self.src)} src, {len(self.dst)} dst and {len(self.weight)} weights"
            raise GraphError(f"{self._name} has {sizes}; an edge needs one of each")
        if self.window_start > self.as_of:
            raise GraphError(f"{self._name} has a window that starts later, at {self.window_start}; give its first bar")
        lower = np.minimum(self.src, self.dst)
        upper = np.maximum(self.src, self.dst)
        self._raise_where((lower < 0) | (upper >= len(self.nodes)), f"a node outside 0 … {len(self.nodes) - 1}")
        self._raise_where(
            np.equal(self.src, self.dst), "the same node at both ends; leave self-loops out, networks add their own"
        )
        is_repeated = np.ones(len(self.src), dtype=bool)
        is_repeated[np.unique(self.src * len(self.nodes) + self.dst, return_index=True)[1]] = False
        self._raise_where(is_repeated, "the ends of an edge before it; store it once")
        self._raise_where(~np.isfinite(self.weight), "a weight that is not finite; leave the edge out")
        if not self.directed:
            self._raise_where(self.src > self.dst, "src after dst; store an undirected edge once, src < dst")

    @property
    def density(self) -> float:
        """Number of edges divided by the number of possible edges, in [0, 1]."""
        n = len(self.nodes)
        return len(self.src) / (n * (n - 1) / (1 if self.directed else 2))

    @property
    def _name(self) -> str:
        """The graph and its ``as_of``, for error messages."""
        return f"{self.graph} of {self.as_of}"

    def _raise_where(self, is_wrong: np.ndarray, problem: str) -> None:
        """Raises GraphError if ``is_wrong`` (e,) bool is True anywhere; the message names the first such edge."""
        if is_wrong.any():
            k = int(is_wrong.argmax())
            edge = f"edge {k} ({self.src[k]} to {self.dst[k]}, weight {self.weight[k]})"
            raise GraphError(f"{self._name}: {edge} has {problem}")


def to_adjacency(snapshots: Sequence[Snapshot], n: int) -> np.ndarray:
    """The adjacency matrix (n, n) of each snapshot, (s, n, n) float32: entry [i, j] is the weight of the edge j → i.

    So row i holds the edges that enter node i. An undirected edge is in [i, j] and in [j, i]. An entry is 0 where there
    is no edge, and 1 on the diagonal. Raises GraphError for a snapshot that does not have ``n`` nodes.
    """
    dense = np.zeros((len(snapshots), n, n), dtype=np.float32)
    for adjacency, snapshot in zip(dense, snapshots, strict=True):
        if len(snapshot.nodes) != n:
            raise GraphError(f"{snapshot.graph} of {snapshot.as_of} has {len(snapshot.nodes)} nodes, expected {n}")
        adjacency[snapshot.dst, snapshot.src] = snapshot.weight
        if not snapshot.directed:
            adjacency[snapshot.src, snapshot.dst] = snapshot.weight
        np.fill_diagonal(adjacency, 1.0)
    return dense
