"""One graph between assets at one bar, and the dense form that networks read.

Glossary: n nodes, e edges, s snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class GraphError(ValueError):
    """Parameters or bars that no graph can be built from; the message names them.

    GraphError ← ValueError
    """


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An undirected graph, each edge stored once with ``src < dst``; built from bars in [window_start, as_of] only.

    ``as_of`` and ``window_start`` are bar opens, datetime64[us]; ``window_start`` is NaT for a graph that no window
    made. ``src`` and ``dst`` (e,) int64 are positions in ``nodes``; ``weight`` (e,) float64.
    """

    graph: str
    as_of: np.datetime64
    window_start: np.datetime64
    src: np.ndarray
    dst: np.ndarray
    weight: np.ndarray
    nodes: tuple[str, ...]

    @property
    def density(self) -> float:
        """Share of the possible edges that are there."""
        n = len(self.nodes)
        return len(self.src) / (n * (n - 1) / 2)


def to_adjacency(snapshots: Sequence[Snapshot], n: int) -> np.ndarray:
    """Symmetric weights with 1 on the diagonal, (s, n, n) float32; every snapshot must have ``n`` nodes."""
    dense = np.zeros((len(snapshots), n, n), dtype=np.float32)
    for adjacency, snapshot in zip(dense, snapshots, strict=True):
        if len(snapshot.nodes) != n:
            raise GraphError(f"{snapshot.graph} of {snapshot.as_of} has {len(snapshot.nodes)} nodes, expected {n}")
        adjacency[snapshot.src, snapshot.dst] = snapshot.weight
        adjacency[snapshot.dst, snapshot.src] = snapshot.weight
        np.fill_diagonal(adjacency, 1.0)
    return dense
