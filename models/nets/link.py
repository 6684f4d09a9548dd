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
from models.nets.temporal_graph import Parts, Sizes, State, TemporalGraph

PAIR_FEATURES = 9


class LinkPredictor(nn.Module):
    """``graph``, and a decoder of two embeddings."""

    def __init__(self, parts: Parts, sizes: Sizes, pairs: bool = True) -> None:
        super().__init__()
        self.graph, self.pairs, d = TemporalGraph(parts, sizes), pairs, sizes.d
        self.decode = nn.Sequential(
            nn.Linear(2 * d + (PAIR_FEATURES if pairs else 0), d), nn.ReLU(), Dropout(sizes.dropout), nn.Linear(d, 1)
        )

    def forward(self, state: State, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Logits (c, q) of the events u → v (c, q) at the times t (q,), c candidates a time, by what came before."""
        u, v, times = u.flatten(), v.flatten(), t.expand_as(v).flatten()
        z_u, z_v = self.graph.embed(state, torch.cat([u, v]), torch.cat([times, times])).chunk(2)
        read = [z_u, z_v]
        if self.pairs:
            read.append(acquaintance(state, u, v, times, self.graph.sizes.longest))
        return self.decode(torch.cat(read, dim=1)).view(-1, len(t))


def acquaintance(state: State, u: Tensor, v: Tensor, t: Tensor, longest: float) -> Tensor:
    """What u and v know of each other (q, 9), of their newest k neighbours each: how often they met seen from either
    side, how long ago, neighbours in common seen from either side; and of each, how many events and how long ago.

    Counts as log(1 + count); times as log(1 + t) ÷ log(1 + ``longest``), 2 for never.
    """
    memory, ring = state
    mine, theirs = (neighbours(ring, nodes) for nodes in (u, v))
    met, met_back = mine.other == v[:, None], theirs.other == u[:, None]
    shared = (mine.other[:, :, None] == theirs.other[:, None, :]) & (mine.other >= 0)[:, :, None]
    since = torch.where(met, t[:, None] - mine.t, torch.inf).amin(1)
    counts = [met.sum(1), met_back.sum(1), shared.any(2).sum(1), shared.any(1).sum(1)]
    counts += [memory.seen.index_select(0, nodes) for nodes in (u, v)]
    times = [since] + [t - memory.updated.index_select(0, nodes) for nodes in (u, v)]
    scaled = torch.stack(times, dim=1).clamp(min=0).log1p() / torch.tensor(longest).log1p()
    return torch.cat([torch.stack(counts, dim=1).float().log1p(), scaled.clamp(max=2).float()], dim=1)
