"""Will these two meet now? A temporal graph network with a decoder of pairs.

Paper: Rossi et al. 2020, 2006.10637, section 5.1. Glossary: q pairs (u, v) · d channels · k slots of neighbours.
Departs from the paper: with ``pairs`` the decoder also reads what the ring buffers of the two say of each other, as
neighbour co-occurrence does in Yu et al. 2023, 2303.13047, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.layers.neighbours import neighbours
from models.nets.temporal_graph import Parts, Sizes, State
from models.nets.temporal_graph_cpu import CompiledTemporalGraph

PAIR_FEATURES = 9


class LinkPredictor(nn.Module):
    """``graph``, and a decoder of two embeddings."""

    def __init__(self, parts: Parts, sizes: Sizes, pairs: bool = True) -> None:
        super().__init__()
        self.graph, self.pairs, d = CompiledTemporalGraph(parts, sizes), pairs, sizes.d
        self.decode = pair_decoder(2 * d + (PAIR_FEATURES if pairs else 0), d, sizes.dropout)

    def forward(self, state: State, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Logits (c, q) of the events u → v at the times t (q,), by what came before; v (c, q) are c candidates a time,
        u (c, q), or (1, q) where all of them have one source."""
        (sources, _), (c, q), ends = u.shape, v.shape, torch.cat([u, v])
        z = self.graph.embed(state, ends.flatten(), t.expand_as(ends).flatten()).view(sources + c, q, -1)
        read = [z[:sources].expand(c, q, -1), z[sources:]]
        if self.pairs:
            pairs = u.expand(c, q).flatten(), v.flatten(), t.expand(c, q).flatten()
            read.append(pair_history_features(state, *pairs, self.graph.sizes.longest).view(c, q, -1))
        return self.decode(torch.cat(read, dim=2))[..., 0]


def pair_decoder(m: int, d: int, dropout: float) -> nn.Sequential:
    """What is read of a pair, (q, m) → logits (q, 1)."""
    return nn.Sequential(nn.Linear(m, d), nn.ReLU(), Dropout(dropout), nn.Linear(d, 1))


def pair_history_features(state: State, u: Tensor, v: Tensor, t: Tensor, longest: float) -> Tensor:
    """What u and v know of each other (q, 9), of their newest k neighbours each: how often they met seen from either
    side, how long ago, neighbours in common seen from either side; of each, how many events (k at most), how long ago.

    Counts as log(1 + count); times as log(1 + t) ÷ log(1 + ``longest``), 2 for never.
    """
    memory, ring = state
    mine, theirs = (neighbours(ring, nodes) for nodes in (u, v))
    met, met_back = mine.other == v[:, None], theirs.other == u[:, None]
    shared = (mine.other[:, :, None] == theirs.other[:, None, :]) & (mine.other >= 0)[:, :, None]
    since = torch.where(met, t[:, None] - mine.t, torch.inf).amin(1)
    counts = [met.sum(1), met_back.sum(1), shared.any(2).sum(1), shared.any(1).sum(1)]
    counts += [memory.event_count.index_select(0, nodes).clamp(max=mine.other.shape[1]) for nodes in (u, v)]
    times = [since] + [t - memory.updated.index_select(0, nodes) for nodes in (u, v)]
    scaled = torch.stack(times, dim=1).clamp(min=0).log1p() / torch.tensor(longest).log1p()
    return torch.cat([torch.stack(counts, dim=1).float().log1p(), scaled.clamp(max=2).float()], dim=1)
