"""A node's embedding from its newest neighbours: attention over a fixed number of slots, of which some may be empty.

Papers: Xu et al. 2020, 2002.07962 (TGAT), equations 6 to 8; Rossi et al. 2020, 2006.10637, equations 9 to 11.
Glossary: q query nodes · z (q, d) their values · k neighbour slots a node · n nodes with a memory · d channels · h
heads of d / h channels · u_j the vector of the neighbour in slot j, of r = m + f + p numbers: its memory (m), the
features of the event (f) and the time since the event, encoded as waves (p). Score of slot j = (W_q z) · (W_k u_j) /
√(d / h); α = softmax of the scores; a head's output = Σ α_j W_v u_j.

The code computes (W_kᵀ W_q z) · u_j and W_v Σ α_j u_j, which are equal to these sums, so that only the query node is
projected, not each of its k neighbours. A bias of the keys would not change α and is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.layers.errors import SizeError
from models.layers.kernels.temporal_attention_cpu import Attend
from models.layers.time_encoding import waves

MASKED_SCORE = -1e9  # of empty slots: finite, so that the softmax of a node without neighbours is not NaN


class Slots(NamedTuple):
    """Neighbours of q nodes.

    ``table`` (n, m), the nodes' memories; ``ids`` (q, k) int64, positions in the table, negative in empty slots;
    ``fade`` (q, k), decay factor of the neighbour's memory; ``features`` (q, k, f) of the event; ``elapsed`` (q, k),
    time since the event; ``frequency`` (p / 2,) of the waves that encode ``elapsed``, empty if ``features`` contain the
    encoding already.
    """

    table: Tensor
    ids: Tensor
    fade: Tensor
    features: Tensor
    elapsed: Tensor
    frequency: Tensor

    def neighbour_vectors(self) -> Tensor:
        """u (q, k, r). Empty slots contain the memory of node 0; if the table has no rows, zeros."""
        table = self.table if len(self.table) else self.table.new_zeros(1, self.table.shape[1])
        memories = table.index_select(0, self.ids.clamp(min=0).flatten()).view(*self.ids.shape, table.shape[1])
        return torch.cat([memories * self.fade[..., None], self.features, waves(self.elapsed, self.frequency)], dim=-1)


class TemporalAttention(nn.Module):
    """z (q, d) and the slots of its neighbours → (q, d); without neighbours the output depends on z alone."""

    def __init__(self, d: int, r: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d % heads:
            raise SizeError(f"{d} channels do not divide into {heads} heads")
        self.heads = heads
        self.scale = (d // heads) ** -0.5
        self.query = nn.Linear(d, d)
        self.key = nn.Parameter(torch.empty(heads, d // heads, r))
        self.value = nn.Parameter(torch.empty(heads, r, d // heads))
        for weight in (self.key, self.value):
            nn.init.uniform_(weight, -(r**-0.5), r**-0.5)
        self.merge_in = nn.Linear(2 * d, d)
        self.dropout = Dropout(dropout)
        self.merge_out = nn.Linear(d, d)

    def forward(self, z: Tensor, slots: Slots) -> Tensor:
        """The embeddings (q, d)."""
        query = (self.query(z) * self.scale).view(-1, self.heads, self.key.shape[1]).transpose(0, 1)  # (h, q, d / h)
        query = torch.bmm(query, self.key)  # (h, q, r)
        is_fused = z.device.type == "cpu" and z.dtype == torch.float32
        attended = Attend.apply(query, *slots) if is_fused else _attend_gathered(query, slots)
        attended = torch.bmm(attended, self.value)  # (h, q, d / h)
        return self._merge(torch.cat([*attended, z], dim=1))

    def reference(self, z: Tensor, slots: Slots) -> Tensor:
        """The same values, node by node and head by head as the papers write them."""
        attended = torch.zeros_like(z).view(len(z), self.heads, -1)
        vectors = slots.neighbour_vectors()
        for i in range(len(z)):
            u = vectors[i, slots.ids[i] >= 0]
            for h in range(self.heads if len(u) else 0):
                query = self.query(z[i]).view(self.heads, -1)[h]
                scores = torch.stack([query @ (self.key[h] @ slot) for slot in u]) * self.scale
                attended[i, h] = torch.softmax(scores, dim=0) @ torch.stack([slot @ self.value[h] for slot in u])
        return self._merge(torch.cat([attended.flatten(1), z], dim=1))

    def _merge(self, attended: Tensor) -> Tensor:
        """The output (q, d) for the attended values and z side by side (q, 2d)."""
        return self.merge_out(self.dropout(torch.relu(self.merge_in(attended))))


def _attend_gathered(query: Tensor, slots: Slots) -> Tensor:
    """Σ_j softmax_j(query · u_j) u_j over the filled slots, (h, q, r), zeros without any; ``query`` (h, q, r)."""
    u = slots.neighbour_vectors()
    is_filled = (slots.ids >= 0)[:, None]
    scores = torch.bmm(query.transpose(0, 1), u.transpose(1, 2)).masked_fill(~is_filled, MASKED_SCORE)
    return torch.bmm(torch.softmax(scores, dim=-1) * is_filled, u).transpose(0, 1)
