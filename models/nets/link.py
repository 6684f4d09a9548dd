"""Link prediction between two nodes: a temporal graph network, and a decoder of pairs of embeddings.

Paper: Rossi et al. 2020, 2006.10637, section 5.1.
Departs from the paper: with ``pairs`` the decoder also reads pair features, which describe what the neighbour buffers
of the two nodes have in common (neighbour co-occurrence in Yu et al. 2023, 2303.13047, section 3.2).

Glossary: q pairs of a source u and a destination v · c candidates · d channels · k slots of neighbours · m features of
a pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.layers.neighbours import neighbours_of
from models.nets.temporal_graph import Parts, Sizes, State
from models.nets.temporal_graph_cpu import CompiledTemporalGraph

N_PAIR_FEATURES = 9


class LinkPredictor(nn.Module):
    """Scores pairs of nodes: a temporal graph network ``graph``, and a decoder of two embeddings. ``pairs``: True if
    the decoder also reads the pair features."""

    def __init__(self, parts: Parts, sizes: Sizes, pairs: bool = True) -> None:
        super().__init__()
        self.graph = CompiledTemporalGraph(parts, sizes)
        self.reads_pair_features = pairs
        self.decode = build_pair_decoder(2 * sizes.d + (N_PAIR_FEATURES if pairs else 0), sizes.d, sizes.dropout)

    def forward(self, state: State, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Logits (c, q) that an event u → v happens at the times t (q,), from the events inserted so far.

        v (c, q): c candidate destinations for each time. u (c, q): their sources, or (1, q) if all candidates of a time
        have the same source.
        """
        n_sources, _ = u.shape
        c, q = v.shape
        ends = torch.cat([u, v])
        z = self.graph.embed(state, ends.flatten(), t.expand_as(ends).flatten()).view(n_sources + c, q, -1)
        features = [z[:n_sources].expand(c, q, -1), z[n_sources:]]
        if self.reads_pair_features:
            flat_pairs = u.expand(c, q).flatten(), v.flatten(), t.expand(c, q).flatten()
            features.append(pair_history_features(state, *flat_pairs, self.graph.sizes.longest).view(c, q, -1))
        return self.decode(torch.cat(features, dim=2))[..., 0]


def build_pair_decoder(m: int, d: int, dropout: float) -> nn.Sequential:
    """A network that maps features of pairs (..., m) to logits (..., 1)."""
    return nn.Sequential(nn.Linear(m, d), nn.ReLU(), Dropout(dropout), nn.Linear(d, 1))


def pair_history_features(state: State, u: Tensor, v: Tensor, t: Tensor, longest: float) -> Tensor:
    """Features (q, 9) float32 of the pairs u, v (q,) at the times t (q,), from the newest k neighbours of each node.

    0, 1  number of events with the other node: in the buffer of u, in the buffer of v
    2, 3  number of slots with a common neighbour: in the buffer of u, in the buffer of v
    4, 5  number of events of u, of v, at most k
    6     time since the latest event of u with v in the buffer of u
    7, 8  time since the last event of u, since the last event of v

    A count becomes log(1 + count). A time becomes log(1 + time) ÷ log(1 + ``longest``), at most 2. Feature 6 is 2 if
    the buffer has no such event. Features 7 and 8 are times since 0 for a node without events.
    """
    memory, buffer = state
    u_neighbours = neighbours_of(buffer, u)
    v_neighbours = neighbours_of(buffer, v)
    is_v = u_neighbours.other == v[:, None]
    is_u = v_neighbours.other == u[:, None]
    is_used = (u_neighbours.other >= 0)[:, :, None]
    is_shared = (u_neighbours.other[:, :, None] == v_neighbours.other[:, None, :]) & is_used
    k = u_neighbours.other.shape[1]
    counts = [is_v.sum(1), is_u.sum(1), is_shared.any(2).sum(1), is_shared.any(1).sum(1)]
    counts += [memory.event_count.index_select(0, nodes).clamp(max=k) for nodes in (u, v)]
    since_pair_event = torch.where(is_v, t[:, None] - u_neighbours.t, torch.inf).amin(1)
    times = [since_pair_event, *(t - memory.updated.index_select(0, nodes) for nodes in (u, v))]
    scaled_times = torch.stack(times, dim=1).clamp(min=0).log1p() / torch.tensor(longest).log1p()
    return torch.cat([torch.stack(counts, dim=1).float().log1p(), scaled_times.clamp(max=2).float()], dim=1)
