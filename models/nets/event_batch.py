"""Events as tensors: the input of a temporal graph network.

Glossary: e events · f features of an event · n nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.graphs.events import EVENT_KINDS, Events
from models.layers.errors import NotFiniteError, ShapeError
from models.layers.neighbours import Ends


class EventBatch(NamedTuple):
    """Events in any order. ``src``, ``dst`` (e,) int64: the nodes that the event runs from and to; ``t`` (e,) float64:
    times in one unit, ≥ 0; ``features`` (e, f) float32."""

    src: Tensor
    dst: Tensor
    t: Tensor
    features: Tensor

    @classmethod
    def from_events(cls, events: Events, unit_us: float = 1e6, since_us: int = 0) -> EventBatch:
        """The same events with times in units of ``unit_us`` microseconds since ``since_us`` (microseconds since 1970,
        UTC). The features are followed by the one-hot kind, in the order of EVENT_KINDS."""
        kinds = one_hot(torch.from_numpy(events.kind.astype("int64")), len(EVENT_KINDS))
        t = torch.from_numpy(events.t - since_us).double() / unit_us
        features = torch.cat([torch.from_numpy(events.features), kinds.float()], dim=1)
        return cls(torch.from_numpy(events.src), torch.from_numpy(events.dst), t, features)

    def has_shapes(self, n_features: int) -> bool:
        """True if all tensors have the same number of events, and each event has ``n_features`` features."""
        shape = self.src.shape
        return shape == self.dst.shape == self.t.shape and self.features.shape == (*shape, n_features)

    def part(self, start: int, stop: int) -> EventBatch:
        """Events [start, stop)."""
        return EventBatch(*(column[start:stop] for column in self))

    def ends(self) -> Ends:
        """Both ends of every event (2e,): first all sources, then all destinations.

        An end has f + 1 features: the features of its event, then +1 for a source or −1 for a destination.
        """
        src, dst, t, features = self
        role = torch.cat([t.new_ones(len(t)), t.new_full((len(t),), -1.0)]).to(features.dtype)
        end_features = torch.cat([torch.cat([features, features]), role[:, None]], dim=1)
        return Ends(torch.cat([src, dst]), torch.cat([dst, src]), torch.cat([t, t]), end_features)


def check_event_batch(events: EventBatch, n: int, n_features: int) -> None:
    """Checks that the events fit a state of n nodes.

    Raises ShapeError for a wrong shape, for a node outside [0, n) and for an event from a node to itself. Raises
    NotFiniteError for a time that is NaN or negative.
    """
    if not events.has_shapes(n_features):
        src, dst, t, features = (tuple(column.shape) for column in events)
        raise ShapeError(
            f"the events' ends are {src} and {dst}, their times {t}, their features {features}; give as many of each, "
            f"and {n_features} features for each of the events"
        )
    if not len(events.src):
        return
    lowest, highest, has_self_loop, earliest = _extremes(events)
    if lowest < 0:
        raise ShapeError(f"an event names the node {lowest:.0f}; nodes count from 0")
    if highest >= n:
        raise ShapeError(
            f"an event names the node {highest:.0f}; this state has {n} nodes; begin with a larger initial_state"
        )
    if has_self_loop:
        raise ShapeError("an event runs from a node to itself; drop it, or give another source")
    if not earliest >= 0:
        raise NotFiniteError(f"an event's time is {earliest}; give times ≥ 0 since a fixed start, and drop NaN")


def _extremes(events: EventBatch) -> tuple[float, ...]:
    """The lowest node, the highest node, whether an event runs from a node to itself, and the earliest time (NaN if any
    time is NaN); at least one event."""
    src, dst, t, _ = events
    if len(src) == 1:  # faster: a third of the time of the general form below
        source = src.item()
        destination = dst.item()
        return min(source, destination), max(source, destination), source == destination, t.item()
    extremes = (torch.minimum(src, dst).min(), torch.maximum(src, dst).max(), (src == dst).any(), t.min())
    return tuple(torch.stack([value.double() for value in extremes]).tolist())
