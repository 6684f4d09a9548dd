"""How likely is an event between two nodes now? A temporal graph network with a decoder of pairs.

Paper: Rossi et al. 2020, 2006.10637, section 5.1. Glossary: q pairs (u, v) · c candidates · d channels · k slots of
neighbours.
Departs from the paper: with ``pairs`` the decoder also reads what the neighbour buffers of the two nodes contain about
each other, as neighbour co-occurrence does in Yu et al. 2023, 2303.13047, section 3.2.
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
    """A temporal graph network ``graph``, and a decoder of two embeddings. ``pairs``: also reads pair features."""

    def __init__(self, parts: Parts, sizes: Sizes, pairs: bool = True) -> None:
        super().__init__()
        self.graph = CompiledTemporalGraph(parts, sizes)
        self.reads_pair_features = pairs
        self.decode = pair_decoder(2 * sizes.d + (PAIR_FEATURES if pairs else 0), sizes.d, sizes.dropout)

    def forward(self, state: State, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Logits (c, q) of the events u → v at the times t (q,), from the events inserted so far.

        v (c, q): c candidates for each time; u (c, q), or (1, q) where all candidates have one source.
        """
        sources, _ = u.shape
        c, q = v.shape
        ends = torch.cat([u, v])
        z = self.graph.embed(state, ends.flatten(), t.expand_as(ends).flatten()).view(sources + c, q, -1)
        features = [z[:sources].expand(c, q, -1), z[sources:]]
        if self.reads_pair_features:
            pairs = u.expand(c, q).flatten(), v.flatten(), t.expand(c, q).flatten()
            features.append(pair_history_features(state, *pairs, self.graph.sizes.longest).view(c, q, -1))
        return self.decode(torch.cat(features, dim=2))[..., 0]


def pair_decoder(m: int, d: int, dropout: float) -> nn.Sequential:
    """A network from the features of pairs (q, m) to logits (q, 1)."""
    return nn.Sequential(nn.Linear(m, d), nn.ReLU(), Dropout(dropout), nn.Linear(d, 1))


def pair_history_features(state: State, u: Tensor, v: Tensor, t: Tensor, longest: float) -> Tensor:
    """Features (q, 9) of what u and v have in common, from the newest k neighbours of each.

    In this order: events with each other in the buffer of u, and of v; common neighbours in the buffer of u, and of v;
    events of u, and of v (k at most); time since the newest event with each other, since the last of u, and of v.
    Counts as log(1 + count); times as log(1 + t) ÷ log(1 + ``longest``), at most 2, which also stands for never.
    """
    memory, buffer = state
    of_u, of_v = (neighbours(buffer, nodes) for nodes in (u, v))
    is_v = of_u.other == v[:, None]
    is_u = of_v.other == u[:, None]
    is_shared = (of_u.other[:, :, None] == of_v.other[:, None, :]) & (of_u.other >= 0)[:, :, None]
    since = torch.where(is_v, t[:, None] - of_u.t, torch.inf).amin(1)
    counts = [is_v.sum(1), is_u.sum(1), is_shared.any(2).sum(1), is_shared.any(1).sum(1)]
    counts += [memory.event_count.index_select(0, nodes).clamp(max=of_u.other.shape[1]) for nodes in (u, v)]
    times = [since] + [t - memory.updated.index_select(0, nodes) for nodes in (u, v)]
    scaled = torch.stack(times, dim=1).clamp(min=0).log1p() / torch.tensor(longest).log1p()
    return torch.cat([torch.stack(counts, dim=1).float().log1p(), scaled.clamp(max=2).float()], dim=1)
