"""The temporal graph networks of bench_tgn.py: ours, and the one of torch_geometric's example.

Both have the methods ``insert_up_to``, ``learn`` and ``stream``, which receive positions in the same random events.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import Parts, Sizes, detach_state
from models.training.links import link_loss

N_NODES = 1000
N_EVENTS = 100_000
N_FEATURES = 8
MEMORY = 100  # width of memory, embedding and time encoding
NEIGHBOURS = 10
BATCH = 200


def random_events(count: int = N_EVENTS) -> EventBatch:
    """``count`` random events from the first half of the nodes to the second half, one per second."""
    rng = torch.Generator().manual_seed(0)
    src = torch.randint(0, N_NODES // 2, (count,), generator=rng)
    dst = torch.randint(N_NODES // 2, N_NODES, (count,), generator=rng)
    return EventBatch(src, dst, torch.arange(count).double(), torch.randn(count, N_FEATURES, generator=rng))


class Ours:
    """Our network, with its state and optimiser. ``learn`` and ``stream`` receive a batch of events [start, stop)."""

    def __init__(self, events: EventBatch) -> None:
        torch.manual_seed(0)
        self.events = events
        sizes = Sizes(MEMORY, N_FEATURES, MEMORY, longest=1e5)
        parts = Parts(neighbours=NEIGHBOURS, fades=False)  # as in torch_geometric, whose memory does not decay
        self.net = LinkPredictor(parts, sizes, pairs=False)
        self.state = self.net.graph.initial_state(N_NODES)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=True)
        self.last_batch = events.part(0, 0)

    def insert_up_to(self, stop: int, size: int = BATCH) -> None:
        """Inserts the events up to ``stop`` without predicting them."""
        with torch.no_grad():
            for start in range(0, stop, size):
                batch = self.events.part(start, min(start + size, stop))
                self.state = self.net.graph.insert(self.state, batch, in_place=True)

    def learn(self, start: int, stop: int, negatives: Tensor) -> None:
        """Inserts the previous batch, then takes one training step on this batch.

        ``negatives`` (stop − start,) are the destinations of the negative pairs, whose sources are those of the events.
        """
        self._set_training(True)
        batch = self.events.part(start, stop)
        self.state = self.net.graph.insert(self.state, self.last_batch, in_place=True)
        destinations = torch.stack([batch.dst, negatives])
        loss = link_loss(self.net(self.state, batch.src[None], destinations, batch.t))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.state = detach_state(self.state)
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
    """torch_geometric's TGNMemory, neighbour loader and attention, combined as in its examples/tgn.py."""

    def __init__(self, events: EventBatch) -> None:
        from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator, LastNeighborLoader, TGNMemory

        torch.manual_seed(0)
        self.events = events
        self.t = events.t.long()
        message = IdentityMessage(N_FEATURES, MEMORY, MEMORY)
        self.memory: Any = TGNMemory(N_NODES, N_FEATURES, MEMORY, MEMORY, message, LastAggregator())
        self.gnn = GeometricAttention(self.memory.time_enc)
        self.decode = nn.Sequential(nn.Linear(2 * MEMORY, MEMORY), nn.ReLU(), nn.Linear(MEMORY, 1))
        self.loader: Any = LastNeighborLoader(N_NODES, size=NEIGHBOURS)
        self.position = torch.empty(N_NODES, dtype=torch.int64)
        modules = (self.memory, self.gnn, self.decode)
        self.optimiser = torch.optim.Adam({p for m in modules for p in m.parameters()}, lr=1e-4, fused=True)

    def insert_up_to(self, stop: int, size: int = BATCH) -> None:
        """Inserts the events up to ``stop`` without predicting them."""
        self.memory.eval()
        with torch.no_grad():
            for start in range(0, stop, size):
                self._insert(start, min(start + size, stop))

    def learn(self, start: int, stop: int, negatives: Tensor) -> None:
        """Takes one training step on a batch and inserts it. ``negatives`` as in ``Ours.learn``."""
        self.memory.train()
        src = self.events.src[start:stop]
        dst = self.events.dst[start:stop]
        z = self._embed(torch.cat([src, dst, negatives]))
        positive = self._logits(z, src, dst)
        negative = self._logits(z, src, negatives)
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
        """Embeddings of the nodes and their neighbours; ``position`` then maps a node to its row."""
        ids, edges, event = self.loader(nodes.unique())
        self.position[ids] = torch.arange(len(ids))
        z, updated = self.memory(ids)
        return self.gnn(z, updated, edges, self.t[event], self.events.features[event])

    def _logits(self, z: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return self.decode(torch.cat([z[self.position[src]], z[self.position[dst]]], dim=1))


class GeometricAttention(nn.Module):
    """The GraphAttentionEmbedding of torch_geometric's examples/tgn.py."""

    def __init__(self, encoding: nn.Module) -> None:
        from torch_geometric.nn import TransformerConv

        super().__init__()
        self.encoding = encoding
        self.attention: Any = TransformerConv(MEMORY, MEMORY // 2, heads=2, dropout=0.1, edge_dim=N_FEATURES + MEMORY)

    def forward(self, z: Tensor, updated: Tensor, edges: Tensor, t: Tensor, features: Tensor) -> Tensor:
        elapsed = (updated[edges[0]] - t).to(z.dtype)
        return self.attention(z, edges, torch.cat([self.encoding(elapsed), features], dim=-1))
