"""Events in continuous time: directed, timed edges between nodes, each with a kind and features.

Source: Rossi et al. 2020, 2006.10637, section 2.2 (continuous-time dynamic graphs).
Glossary: e events · f features · n nodes · u, v → src, dst. A node's name starts with its type: asset:BTCUSDT,
trade:BTCUSDT, liquidation:BTCUSDT, funding:BTCUSDT, book:BTCUSDT:bid, book:BTCUSDT:ask, external:market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.snapshot import GraphError

EVENT_KINDS = ("trade", "book", "bar", "funding", "open_interest", "liquidation", "correlation", "flow")
DTYPES = {"src": np.int64, "dst": np.int64, "t": np.int64, "kind": np.int8, "features": np.float32}


@dataclass(frozen=True, eq=False)
class Events:
    """Events ordered by time; events of the same time count as simultaneous.

    ``src``, ``dst`` (e,) int64 positions in ``nodes``, information flows from src to dst; ``t`` (e,) int64 microseconds
    UTC, never decreasing; ``kind`` (e,) int8 positions in EVENT_KINDS; ``features`` (e, f) float32, no NaN. Raises
    GraphError for anything else; the message names the first wrong event.
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
            axes = 2 if name == "features" else 1
            if array.dtype != dtype or array.ndim != axes or len(array) != len(self.src):
                raise GraphError(
                    f"{name} is {array.dtype} {array.shape}; give {np.dtype(dtype)} with {axes} axes and one row for "
                    f"each of the {len(self.src)} events"
                )
        n = len(self.nodes)
        t = self.t
        for name, end in (("src", self.src), ("dst", self.dst)):
            self._raise_where(
                (end < 0) | (end >= n), f"{name} is no position in the {n} nodes; add the node or drop it"
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

    def __getitem__(self, part: slice) -> Events:
        """The events at a slice of positions, with the same nodes; the slice must not run backwards."""
        src, dst, t, kind, features = (getattr(self, name)[part] for name in DTYPES)
        return Events(src, dst, t, kind, features, self.nodes)

    def between(self, start: int, stop: int) -> Events:
        """The events with ``start`` < t ≤ ``stop``: what is new at ``stop`` to a reader of all events up to
        ``start``."""
        first, last = np.searchsorted(self.t, [start, stop], side="right")
        return self[first : max(first, last)]

    def _raise_where(self, is_wrong: np.ndarray, problem: str) -> None:
        """Raises GraphError if ``is_wrong`` (e,) is True anywhere; the message names the first such event."""
        if is_wrong.any():
            i = int(is_wrong.argmax())
            raise GraphError(f"event {i} ({self.src[i]} → {self.dst[i]} at {self.t[i]} us): {problem}")


def concatenate(parts: Sequence[Events]) -> Events:
    """All events of ``parts`` ordered by time; simultaneous events stay in the order of the parts.

    Raises GraphError if there are no parts, or if they differ in nodes or in the number of features.
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
    """Events of a plain list of timed edges, such as messages between people (SNAP's CollegeMsg).

    ``src``, ``dst`` (e,) ids of any kind; ``seconds`` (e,) since 1970, never decreasing. The nodes are the ids in
    ascending order, the kind is "flow", and there are no features (f = 0).
    """
    ids, positions = np.unique(np.concatenate([src, dst]), return_inverse=True)
    e = len(src)
    return Events(
        positions[:e].astype(np.int64),
        positions[e:].astype(np.int64),
        np.asarray(seconds).astype(np.int64) * 1_000_000,
        np.full(e, EVENT_KINDS.index("flow"), dtype=np.int8),
        np.empty((e, 0), dtype=np.float32),
        tuple(str(i) for i in ids),
    )
