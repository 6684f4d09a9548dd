"""Events in continuous time: who touched whom, when, how, and with what numbers.

Source: Rossi et al. 2020, 2006.10637, section 2.2 (continuous-time dynamic graphs).
Glossary: e events · f features · n nodes · u, v → src, dst. A node's name carries its type: asset:BTCUSDT,
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
    """Events in the order of time; those of one time count as simultaneous.

    ``src``, ``dst`` (e,) int64 positions in ``nodes``, information flows from src to dst; ``t`` (e,) int64 microseconds
    UTC, never decreasing; ``kind`` (e,) int8 positions in KINDS; ``features`` (e, f) float32, no NaN. GraphError else.
    """

    src: np.ndarray
    dst: np.ndarray
    t: np.ndarray
    kind: np.ndarray
    features: np.ndarray
    nodes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, dtype in DTYPES.items():
            array, axes = getattr(self, name), 2 if name == "features" else 1
            if array.dtype != dtype or array.ndim != axes or len(array) != len(self.src):
                raise GraphError(
                    f"{name} is {array.dtype} {array.shape}; give {np.dtype(dtype)} with {axes} axes and one row for "
                    f"each of the {len(self.src)} events"
                )
        n, t = len(self.nodes), self.t
        for name, end in (("src", self.src), ("dst", self.dst)):
            self._refuse((end < 0) | (end >= n), f"{name} is no position in the {n} nodes; add the node or drop it")
        self._refuse(self.src == self.dst, "it runs from a node to itself; drop it or name its source")
        self._refuse(t < 0, "its time is negative; give microseconds since 1970, UTC")
        self._refuse(np.diff(t, prepend=t[:1]) < 0, "it comes before the event ahead of it; sort the events by time")
        self._refuse(
            (self.kind < 0) | (self.kind >= len(EVENT_KINDS)),
            f"its kind is not in 0 … {len(EVENT_KINDS) - 1}, see KINDS",
        )
        self._refuse(~np.isfinite(self.features).all(axis=1), "a feature is NaN or infinite; fill or drop it")

    def __len__(self) -> int:
        return len(self.src)

    def __getitem__(self, part: slice) -> Events:
        """The events of a slice of positions, between the same nodes; it must not run backwards."""
        src, dst, t, kind, features = (getattr(self, name)[part] for name in DTYPES)
        return Events(src, dst, t, kind, features, self.nodes)

    def between(self, start: int, stop: int) -> Events:
        """The events with ``start`` < t ≤ ``stop``: what is new at ``stop`` to one who knew all up to ``start``."""
        first, last = np.searchsorted(self.t, [start, stop], side="right")
        return self[first : max(first, last)]

    def _refuse(self, wrong: np.ndarray, why: str) -> None:
        """Raises GraphError naming the first event where ``wrong`` (e,) is True."""
        if wrong.any():
            at = int(wrong.argmax())
            raise GraphError(f"event {at} ({self.src[at]} → {self.dst[at]} at {self.t[at]} us): {why}")


def concatenate(parts: Sequence[Events]) -> Events:
    """All events of ``parts`` by time; simultaneous ones stay in the order of the parts. Raises GraphError for none, or
    for parts with other nodes or another number of features."""
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
    """Contacts between people (SNAP's CollegeMsg): ids as they come (e,), ``seconds`` (e,) since 1970 in order.

    Nodes are the ids in ascending order; there are no features (f = 0), the kind is flow.
    """
    ids, ends = np.unique(np.concatenate([src, dst]), return_inverse=True)
    e = len(src)
    return Events(
        ends[:e].astype(np.int64),
        ends[e:].astype(np.int64),
        np.asarray(seconds).astype(np.int64) * 1_000_000,
        np.full(e, EVENT_KINDS.index("flow"), dtype=np.int8),
        np.empty((e, 0), dtype=np.float32),
        tuple(str(i) for i in ids),
    )
