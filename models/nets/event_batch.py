"""Events as the tensors that a temporal graph network takes. Glossary: e events · f features of an event."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.graphs.events import EVENT_KINDS, Events
from models.layers.errors import NotFiniteError, ShapeError
from models.layers.neighbours import Ends


class EventBatch(NamedTuple):
    """Events as tensors: ``src``, ``dst`` (e,) int64; ``t`` (e,) float64 in one unit; ``features`` (e, f) float32."""

    src: Tensor
    dst: Tensor
    t: Tensor
    features: Tensor

    @classmethod
    def from_events(cls, events: Events, unit_us: float = 1e6, since_us: int = 0) -> EventBatch:
        """``events`` with times in units of ``unit_us`` since ``since_us``; one-hot kinds follow the features."""
        kinds = one_hot(torch.from_numpy(events.kind.astype("int64")), len(EVENT_KINDS))
        t = torch.from_numpy(events.t - since_us).double() / unit_us
        features = torch.cat([torch.from_numpy(events.features), kinds.float()], dim=1)
        return cls(torch.from_numpy(events.src), torch.from_numpy(events.dst), t, features)

    def has_shapes(self, n_features: int) -> bool:
        """True where every event has two ends, a time and ``n_features`` features."""
        e = self.src.shape
        return e == self.dst.shape == self.t.shape and self.features.shape == (*e, n_features)

    def part(self, start: int, stop: int) -> EventBatch:
        """Events [start, stop)."""
        return EventBatch(*(column[start:stop] for column in self))

    def ends(self) -> Ends:
        """Both ends of every event (2e,): first all sources, with side +1, then all destinations, with side −1.

        The side is the last of an end's f + 1 features.
        """
        src, dst, t, features = self
        side = torch.cat([t.new_ones(len(t)), t.new_full((len(t),), -1.0)]).to(features.dtype)
        end_features = torch.cat([torch.cat([features, features]), side[:, None]], dim=1)
        return Ends(torch.cat([src, dst]), torch.cat([dst, src]), torch.cat([t, t]), end_features)


def check_event_batch(events: EventBatch, n: int, n_features: int) -> None:
    """Checks that the events fit a state of n nodes. Raises ShapeError, NotFiniteError."""
    if not events.has_shapes(n_features):
        src, dst, t, features = (tuple(column.shape) for column in events)
        raise ShapeError(
            f"the events' ends are {src} and {dst}, their times {t}, their features {features}; give as many of each, "
            f"and {n_features} features for each of the events"
        )
    if not len(events.src):
        return
    lowest, highest, has_loop, earliest = _extent(events)
    if lowest < 0:
        raise ShapeError(f"an event names the node {lowest:.0f}; nodes count from 0")
    if highest >= n:
        raise ShapeError(f"an event names a node beyond the {n} of this state; begin with a larger initial_state")
    if has_loop:
        raise ShapeError("an event runs from a node to itself; drop it, or name its source")
    if not earliest >= 0:
        raise NotFiniteError(f"an event's time is {earliest}; count from the first event's or before, and drop NaN")


def _extent(events: EventBatch) -> tuple[float, ...]:
    """The lowest and the highest node, whether an event is a loop, and the earliest time (NaN if any time is)."""
    src, dst, t, _ = events
    if len(src) == 1:  # takes a third of the time of the general form below
        u, v = src.item(), dst.item()
        return min(u, v), max(u, v), u == v, t.item()
    extremes = (torch.minimum(src, dst).min(), torch.maximum(src, dst).max(), (src == dst).any(), t.min())
    return tuple(torch.stack([value.double() for value in extremes]).tolist())
