"""One graph between assets at one bar, and its dense form, the adjacency that networks read.

Glossary: n nodes, e edges, s snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class GraphError(ValueError):
    """Parameters, bars, edges or events that no graph can be built from; the message names them.

    GraphError ← ValueError
    """


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A graph built from bars in [window_start, as_of] only.

    ``as_of`` and ``window_start`` are bar opens, datetime64[us]; ``window_start`` is NaT for a graph that is not built
    from a window. ``src`` and ``dst`` (e,) int64 are positions in ``nodes``; ``weight`` (e,) float64, of either sign.
    An undirected edge is stored once, ``src < dst``; a directed one runs from ``src`` to ``dst``, the direction in
    which information flows. A graph without edges is valid. Raises GraphError for fewer than two nodes, a window that
    starts after ``as_of``, a position that is no node, an edge from a node to itself, an edge stored twice, or a weight
    that is not finite.
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
        """Share of all possible edges that the graph has."""
        n = len(self.nodes)
        return len(self.src) / (n * (n - 1) / (1 if self.directed else 2))

    @property
    def _name(self) -> str:
        return f"{self.graph} of {self.as_of}"

    def _raise_where(self, is_wrong: np.ndarray, problem: str) -> None:
        """Raises GraphError if ``is_wrong`` (e,) is True anywhere; the message names the first such edge."""
        if is_wrong.any():
            k = int(is_wrong.argmax())
            edge = f"edge {k} ({self.src[k]} to {self.dst[k]}, weight {self.weight[k]})"
            raise GraphError(f"{self._name}: {edge} has {problem}")


def to_adjacency(snapshots: Sequence[Snapshot], n: int) -> np.ndarray:
    """Weights (s, n, n) float32. Entry [i, j] is that of the edge from j to i: row i holds the edges that enter i.

    The diagonal is 1; an undirected edge is in both entries. Raises GraphError for a snapshot without ``n`` nodes.
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
