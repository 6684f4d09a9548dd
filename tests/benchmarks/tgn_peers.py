"""The temporal graph networks that are timed against each other: ours, and torch_geometric's example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Parts, Sizes, detached
from models.training.links import link_loss

NODES = 1000
EVENTS = 100_000
FEATURES = 8
MEMORY = 100
NEIGHBOURS = 10


def random_events(count: int = EVENTS) -> EventBatch:
    """Random events between the first half of the nodes and the second, one a second."""
    draw = torch.Generator().manual_seed(0)
    src = torch.randint(0, NODES // 2, (count,), generator=draw)
    dst = torch.randint(NODES // 2, NODES, (count,), generator=draw)
    return EventBatch(src, dst, torch.arange(count).double(), torch.randn(count, FEATURES, generator=draw))


class Ours:
    """Our network; ``learn`` and ``stream`` receive the events [start, stop)."""

    def __init__(self, events: EventBatch) -> None:
        torch.manual_seed(0)
        self.events = events
        sizes = Sizes(MEMORY, FEATURES, MEMORY, longest=1e5)
        parts = Parts(neighbours=NEIGHBOURS, fades=False)  # as torch_geometric's
        self.net = LinkPredictor(parts, sizes, pairs=False)
        self.state = self.net.graph.initial_state(NODES)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=True)
        self.last_batch = events.part(0, 0)

    def insert_up_to(self, stop: int, size: int = 200) -> None:
        """Inserts the events up to ``stop`` without predicting them."""
        with torch.no_grad():
            for start in range(0, stop, size):
                batch = self.events.part(start, min(start + size, stop))
                self.state = self.net.graph.insert(self.state, batch, in_place=True)

    def learn(self, start: int, stop: int, negatives: Tensor) -> None:
        """One training step on a batch, after the previous batch was inserted. ``negatives`` are destinations of pairs
        without an event."""
        self._set_training(True)
        batch = self.events.part(start, stop)
        self.state = self.net.graph.insert(self.state, self.last_batch, in_place=True)
        destinations = torch.stack([batch.dst, negatives])
        loss = link_loss(self.net(self.state, batch.src[None], destinations, batch.t))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.state = detached(self.state)
        self.last_batch = batch

    def stream(self, start: int, stop: int) -> Tensor:
        """Predicts a batch, then inserts it."""
        self._set_training(False)
        with torch.inference_mode():
            batch = self.events.part(start, stop)
            logits = self.net(self.state, batch.src[None], batch.dst[None], batch.t)
            self.state = self.net.graph.insert(self.state, batch, in_place=True)
        return logits

    def _set_training(self, training: bool) -> None:
        if self.net.training != training:
            self.net.train(training)


class Geometric:
    """torch_geometric's TGNMemory, its neighbour loader and attention, as its examples/tgn.py puts them together."""

    def __init__(self, events: EventBatch) -> None:
        from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator, LastNeighborLoader, TGNMemory

        torch.manual_seed(0)
        self.events = events
        self.t = events.t.long()
        message = IdentityMessage(FEATURES, MEMORY, MEMORY)
        self.memory: Any = TGNMemory(NODES, FEATURES, MEMORY, MEMORY, message, LastAggregator())
        self.gnn = GeometricAttention(self.memory.time_enc)
        self.decode = nn.Sequential(nn.Linear(2 * MEMORY, MEMORY), nn.ReLU(), nn.Linear(MEMORY, 1))
        self.loader: Any = LastNeighborLoader(NODES, size=NEIGHBOURS)
        self.position = torch.empty(NODES, dtype=torch.int64)
        modules = (self.memory, self.gnn, self.decode)
        self.optimiser = torch.optim.Adam({p for m in modules for p in m.parameters()}, lr=1e-4, fused=True)

    def insert_up_to(self, stop: int, size: int = 200) -> None:
        """Inserts the events up to ``stop`` without predicting them."""
        self.memory.eval()
        with torch.no_grad():
            for start in range(0, stop, size):
                self._insert(start, min(start + size, stop))

    def learn(self, start: int, stop: int, negatives: Tensor) -> None:
        """One training step on a batch, which is then inserted."""
        self.memory.train()
        src = self.events.src[start:stop]
        dst = self.events.dst[start:stop]
        z = self._embed(torch.cat([src, dst, negatives]))
        positive, negative = (self._logits(z, src, other) for other in (dst, negatives))
        loss = binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
        loss = loss + binary_cross_entropy_with_logits(negative, torch.zeros_like(negative))
        self.optimiser.zero_grad()
        self._insert(start, stop)
        loss.backward()
        self.optimiser.step()
        self.memory.detach()

    def stream(self, start: int, stop: int) -> Tensor:
        """Predicts a batch, then inserts it."""
        self.memory.eval()
        with torch.inference_mode():
            src = self.events.src[start:stop]
            dst = self.events.dst[start:stop]
            logits = self._logits(self._embed(torch.cat([src, dst])), src, dst)
            self._insert(start, stop)
        return logits

    def _insert(self, start: int, stop: int) -> None:
        part = self.events.part(start, stop)
        self.memory.update_state(part.src, part.dst, self.t[start:stop], part.features)
        self.loader.insert(part.src, part.dst)

    def _embed(self, nodes: Tensor) -> Tensor:
        ids, edges, event = self.loader(nodes.unique())
        self.position[ids] = torch.arange(len(ids))
        z, updated = self.memory(ids)
        return self.gnn(z, updated, edges, self.t[event], self.events.features[event])

    def _logits(self, z: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return self.decode(torch.cat([z[self.position[src]], z[self.position[dst]]], dim=1))


class GeometricAttention(nn.Module):
    """The example's graph attention embedding."""

    def __init__(self, encoding: nn.Module) -> None:
        from torch_geometric.nn import TransformerConv

        super().__init__()
        self.encoding = encoding
        self.attention: Any = TransformerConv(MEMORY, MEMORY // 2, heads=2, dropout=0.1, edge_dim=FEATURES + MEMORY)

    def forward(self, z: Tensor, updated: Tensor, edges: Tensor, t: Tensor, features: Tensor) -> Tensor:
        elapsed = (updated[edges[0]] - t).to(z.dtype)
        return self.attention(z, edges, torch.cat([self.encoding(elapsed), features], dim=-1))
