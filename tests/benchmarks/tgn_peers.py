"""The temporal graph networks that are timed against each other: ours, and torch_geometric's own example of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Parts, Sizes, detached
from models.training.links import link_loss

NODES, EVENTS, FEATURES, MEMORY, SLOTS = 1000, 100_000, 8, 100, 10


def stream(events: int = EVENTS) -> EventBatch:
    """Random events between the first half of the nodes and the second, one a second."""
    draw = torch.Generator().manual_seed(0)
    src = torch.randint(0, NODES // 2, (events,), generator=draw)
    dst = torch.randint(NODES // 2, NODES, (events,), generator=draw)
    return EventBatch(src, dst, torch.arange(events).double(), torch.randn(events, FEATURES, generator=draw))


class Ours:
    """Our network; ``learn`` and ``stream`` take the events [start, stop)."""

    def __init__(self, contacts: EventBatch) -> None:
        torch.manual_seed(0)
        self.contacts, sizes = contacts, Sizes(MEMORY, FEATURES, MEMORY, longest=1e5)
        parts = Parts(neighbours=SLOTS, fades=False)  # as theirs
        self.net = LinkPredictor(parts, sizes, pairs=False)
        self.state = self.net.graph.initial_state(NODES)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=True)
        self.held = contacts.part(0, 0)

    def fill(self, stop: int, size: int = 200) -> None:
        """Takes in the events up to ``stop`` without predicting them."""
        with torch.no_grad():
            for start in range(0, stop, size):
                batch = self.contacts.part(start, min(start + size, stop))
                self.state = self.net.graph.insert(self.state, batch, in_place=True)

    def learn(self, start: int, stop: int, against: Tensor) -> None:
        """One batch learned from, with the events of the batch before in its graph."""
        self._turn(learning=True)
        batch = self.contacts.part(start, stop)
        self.state = self.net.graph.insert(self.state, self.held, in_place=True)
        both = torch.stack([batch.dst, against])
        loss = link_loss(self.net(self.state, batch.src[None], both, batch.t))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.state, self.held = detached(self.state), batch

    def stream(self, start: int, stop: int) -> Tensor:
        """One batch predicted, then taken in."""
        self._turn(learning=False)
        with torch.inference_mode():
            batch = self.contacts.part(start, stop)
            logits = self.net(self.state, batch.src[None], batch.dst[None], batch.t)
            self.state = self.net.graph.insert(self.state, batch, in_place=True)
        return logits

    def _turn(self, learning: bool) -> None:
        if self.net.training != learning:
            self.net.train(learning)


class Geometric:
    """torch_geometric's TGNMemory, its neighbour loader and attention, as its examples/tgn.py puts them together."""

    def __init__(self, contacts: EventBatch) -> None:
        from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator, LastNeighborLoader, TGNMemory

        torch.manual_seed(0)
        self.contacts, self.t = contacts, contacts.t.long()
        message = IdentityMessage(FEATURES, MEMORY, MEMORY)
        self.memory: Any = TGNMemory(NODES, FEATURES, MEMORY, MEMORY, message, LastAggregator())
        self.gnn = GeometricAttention(self.memory.time_enc)
        self.decode = nn.Sequential(nn.Linear(2 * MEMORY, MEMORY), nn.ReLU(), nn.Linear(MEMORY, 1))
        self.loader: Any = LastNeighborLoader(NODES, size=SLOTS)
        self.place = torch.empty(NODES, dtype=torch.int64)
        modules = (self.memory, self.gnn, self.decode)
        self.optimiser = torch.optim.Adam({p for m in modules for p in m.parameters()}, lr=1e-4, fused=True)

    def fill(self, stop: int, size: int = 200) -> None:
        self.memory.eval()
        with torch.no_grad():
            for start in range(0, stop, size):
                self._take(start, min(start + size, stop))

    def learn(self, start: int, stop: int, against: Tensor) -> None:
        self.memory.train()
        src, dst = self.contacts.src[start:stop], self.contacts.dst[start:stop]
        z = self._embed(torch.cat([src, dst, against]))
        real, not_real = (self._logits(z, src, other) for other in (dst, against))
        loss = binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss = loss + binary_cross_entropy_with_logits(not_real, torch.zeros_like(not_real))
        self.optimiser.zero_grad()
        self._take(start, stop)
        loss.backward()
        self.optimiser.step()
        self.memory.detach()

    def stream(self, start: int, stop: int) -> Tensor:
        self.memory.eval()
        with torch.inference_mode():
            src, dst = self.contacts.src[start:stop], self.contacts.dst[start:stop]
            logits = self._logits(self._embed(torch.cat([src, dst])), src, dst)
            self._take(start, stop)
        return logits

    def _take(self, start: int, stop: int) -> None:
        part = self.contacts.part(start, stop)
        self.memory.update_state(part.src, part.dst, self.t[start:stop], part.features)
        self.loader.insert(part.src, part.dst)

    def _embed(self, nodes: Tensor) -> Tensor:
        ids, edges, at = self.loader(nodes.unique())
        self.place[ids] = torch.arange(len(ids))
        z, updated = self.memory(ids)
        return self.gnn(z, updated, edges, self.t[at], self.contacts.features[at])

    def _logits(self, z: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return self.decode(torch.cat([z[self.place[src]], z[self.place[dst]]], dim=1))


class GeometricAttention(nn.Module):
    """The example's graph attention embedding."""

    def __init__(self, encoding: nn.Module) -> None:
        from torch_geometric.nn import TransformerConv

        super().__init__()
        self.encoding = encoding
        self.attention: Any = TransformerConv(MEMORY, MEMORY // 2, heads=2, dropout=0.1, edge_dim=FEATURES + MEMORY)

    def forward(self, z: Tensor, updated: Tensor, edges: Tensor, t: Tensor, said: Tensor) -> Tensor:
        passed = (updated[edges[0]] - t).to(z.dtype)
        return self.attention(z, edges, torch.cat([self.encoding(passed), said], dim=-1))
