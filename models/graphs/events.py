"""Events in continuous time: directed edges between nodes, each at one instant, with a kind and features.

Source: Rossi et al. 2020, 2006.10637, section 2.2 (continuous-time dynamic graphs).
Glossary: e events · f features · n nodes · src, dst the nodes of an event (the paper's i, j). A node's name starts with
its type: asset:BTCUSDT, trade:BTCUSDT, liquidation:BTCUSDT, funding:BTCUSDT, book:BTCUSDT:bid, book:BTCUSDT:ask,
external:market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.snapshot import GraphError

EVENT_KINDS = ("trade", "book", "bar", "funding", "open_interest", "liquidation", "correlation", "flow")
# the arrays of Events and their types
DTYPES = {"src": np.int64, "dst": np.int64, "t": np.int64, "kind": np.int8, "features": np.float32}


@dataclass(frozen=True, eq=False)
class Events:
    """Events in ascending order of time; events with equal times are simultaneous.

    ``src`` and ``dst`` (e,) int64 are positions in ``nodes``; information flows from src to dst. ``t`` (e,) int64 are
    times in microseconds since 1970 in UTC, never negative and never decreasing. ``kind`` (e,) int8 are positions in
    EVENT_KINDS. ``features`` (e, f) float32 are finite. Raises GraphError for other types or values, and for an event
    from a node to itself; the message names the first invalid event.
    """

    src: np.ndarray
    dst: np.ndarray
    t: np.ndarray
    kind: np.ndarray
    features: np.ndarray
    nodes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, dtype in DTYPES.items():
            array = getattr(self, name)
            n_axes = 2 if name == "features" else 1
            if array.dtype != dtype or array.ndim != n_axes or len(array) != len(self.src):
                raise GraphError(
                    f"{name} is {array.dtype} {array.shape}; give {np.dtype(dtype)} with {n_axes} axes and one row for "
                    f"each of the {len(self.src)} events"
                )
        n_nodes = len(self.nodes)
        t = self.t
        for name, endpoint in (("src", self.src), ("dst", self.dst)):
            self._raise_where(
                (endpoint < 0) | (endpoint >= n_nodes),
                f"{name} is no position in the {n_nodes} nodes; add the node or drop the event",
            )
        self._raise_where(self.src == self.dst, "it runs from a node to itself; drop it or name its source")
        self._raise_where(t < 0, "its time is negative; give microseconds since 1970, UTC")
        self._raise_where(
            np.diff(t, prepend=t[:1]) < 0, "it comes before the event ahead of it; sort the events by time"
        )
        self._raise_where(
            (self.kind < 0) | (self.kind >= len(EVENT_KINDS)),
            f"its kind is not in 0 … {len(EVENT_KINDS) - 1}, see EVENT_KINDS",
        )
        self._raise_where(~np.isfinite(self.features).all(axis=1), "a feature is NaN or infinite; fill or drop it")

    def __len__(self) -> int:
        return len(self.src)

    def __getitem__(self, positions: slice) -> Events:
        """The events at a slice of positions, with the same nodes. The step of the slice must be positive."""
        src, dst, t, kind, features = (getattr(self, name)[positions] for name in DTYPES)
        return Events(src, dst, t, kind, features, self.nodes)

    def between(self, start: int, stop: int) -> Events:
        """The events in (start, stop], both in microseconds since 1970; none if ``stop`` ≤ ``start``."""
        first, last = np.searchsorted(self.t, [start, stop], side="right")
        return self[first : max(first, last)]

    def _raise_where(self, is_wrong: np.ndarray, problem: str) -> None:
        """Raises GraphError if ``is_wrong`` (e,) bool is True anywhere; the message names the first such event."""
        if is_wrong.any():
            i = int(is_wrong.argmax())
            raise GraphError(f"event {i} ({self.src[i]} → {self.dst[i]} at {self.t[i]} us): {problem}")


def concatenate(parts: Sequence[Events]) -> Events:
    """All events of ``parts`` in ascending order of time; simultaneous events keep the order of the parts.

    Raises GraphError if there are no parts, and if the parts differ in nodes or in the number of features.
    """
    if not parts:
        raise GraphError("there are no events to join; give one part or more")
    first = parts[0]
    for i, part in enumerate(parts):
        if part.nodes != first.nodes or part.features.shape[1] != first.features.shape[1]:
            raise GraphError(
                f"part {i} has {len(part.nodes)} nodes and {part.features.shape[1]} features, part 0 "
                f"{len(first.nodes)} and {first.features.shape[1]}, or other names; build all for the same nodes"
            )
    order = np.argsort(np.concatenate([part.t for part in parts]), kind="stable")
    src, dst, t, kind, features = (np.concatenate([getattr(p, name) for p in parts])[order] for name in DTYPES)
    return Events(src, dst, t, kind, features, first.nodes)


def events_from_edges(src: np.ndarray, dst: np.ndarray, seconds: np.ndarray) -> Events:
    """Events of a plain list of timed edges, such as the messages between people in SNAP's CollegeMsg.

    ``src`` and ``dst`` (e,) are ids that can be sorted. ``seconds`` (e,) since 1970 in UTC must never decrease; a
    fraction of a second is cut off. The name of a node is its id; the nodes are in ascending
    order of the ids. The kind is "flow", and there
    are no features (f = 0).
    """
    ids, positions = np.unique(np.concatenate([src, dst]), return_inverse=True)
    e = len(src)
    return Events(
        src=positions[:e].astype(np.int64),
        dst=positions[e:].astype(np.int64),
        t=np.asarray(seconds).astype(np.int64) * 1_000_000,
        kind=np.full(e, EVENT_KINDS.index("flow"), dtype=np.int8),
        features=np.empty((e, 0), dtype=np.float32),
        nodes=tuple(str(i) for i in ids),
    )
