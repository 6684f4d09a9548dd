"""Events as the tensors that a temporal graph network takes. Glossary: e events · f features of an event."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from models.graphs.events import KINDS, Events
from models.layers.neighbours import Ends


class Contacts(NamedTuple):
    """Events as tensors: ``src``, ``dst`` (e,) int64; ``t`` (e,) float64 in one unit; ``features`` (e, f) float32."""

    src: Tensor
    dst: Tensor
    t: Tensor
    features: Tensor

    @classmethod
    def of(cls, events: Events, unit_us: float = 1e6, since_us: int = 0) -> Contacts:
        """``events`` with times in units of ``unit_us`` since ``since_us`` and their kinds among the features."""
        kinds = one_hot(torch.from_numpy(events.kind.astype("int64")), len(KINDS))
        t = torch.from_numpy(events.t - since_us).double() / unit_us
        features = torch.cat([torch.from_numpy(events.features), kinds.float()], dim=1)
        return cls(torch.from_numpy(events.src), torch.from_numpy(events.dst), t, features)

    def part(self, start: int, stop: int) -> Contacts:
        """Events [start, stop)."""
        return Contacts(*(column[start:stop] for column in self))

    def ends(self) -> Ends:
        """Every event as its source sees it (+1) and as its destination does (−1), (2e,)."""
        src, dst, t, features = self
        side = torch.cat([t.new_ones(len(t)), t.new_full((len(t),), -1.0)]).to(features.dtype)
        said = torch.cat([torch.cat([features, features]), side[:, None]], dim=1)
        return Ends(torch.cat([src, dst]), torch.cat([dst, src]), torch.cat([t, t]), said)
