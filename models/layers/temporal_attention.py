"""A node's view of its newest neighbours: attention over dense, masked slots.

Papers: Xu et al. 2020, 2002.07962 (TGAT), equations 6 to 8; Rossi et al. 2020, 2006.10637, equations 9 to 11.
Glossary: q nodes that ask · k slots of neighbours · d channels · h heads of d / h channels · a neighbour u_j has r =
m + f + p numbers: what it remembers (m), the features of the event (f) and how long ago that was, as waves (p).
score of slot j = (W_q z) · (W_k u_j) / √(d / h); answer = Σ α_j W_v u_j.

The sum over a head's channels can be taken in another order, (W_kᵀ W_q z) · u_j and W_v Σ α_j u_j, so that every node
that asks is projected, not each of its k neighbours. A bias of the keys would change no score and is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.dropout import Dropout
from models.layers.errors import SizeError
from models.layers.kernels.temporal_attention_cpu import Attend
from models.layers.time_encoding import waves

HIDDEN = -1e9


class Slots(NamedTuple):
    """Neighbours of q nodes. ``table`` (n, m), what nodes remember; ``ids`` (q, k) int64, its rows, negative in empty
    slots; ``fade`` (q, k), how much of a row is left; ``said`` (q, k, f), the event's features and what else is known
    of it; ``elapsed`` (q, k), the time since, and ``frequency`` (p / 2,) of the waves it is told by, none where it is
    among what is said."""

    table: Tensor
    ids: Tensor
    fade: Tensor
    said: Tensor
    elapsed: Tensor
    frequency: Tensor

    def gathered(self) -> Tensor:
        """u (q, k, r); the table may be empty where all slots are."""
        table = self.table if len(self.table) else self.table.new_zeros(1, self.table.shape[1])
        rows = table.index_select(0, self.ids.clamp(min=0).flatten()).view(*self.ids.shape, table.shape[1])
        return torch.cat([rows * self.fade[..., None], self.said, waves(self.elapsed, self.frequency)], dim=-1)


class TemporalAttention(nn.Module):
    """z (q, d) and the slots of its neighbours → (q, d); a node without neighbours answers with itself."""

    def __init__(self, d: int, r: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d % heads:
            raise SizeError(f"{d} channels do not divide into {heads} heads")
        self.heads, self.scale = heads, (d // heads) ** -0.5
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
        asked = (self.query(z) * self.scale).view(-1, self.heads, self.key.shape[1]).transpose(0, 1)  # (h, q, d / h)
        asked = torch.bmm(asked, self.key)  # (h, q, r)
        fused = z.device.type == "cpu" and z.dtype == torch.float32
        heard = Attend.apply(asked, *slots) if fused else _attend(asked, slots)
        heard = torch.bmm(heard, self.value)  # (h, q, d / h)
        return self._merge(torch.cat([*heard, z], dim=1))

    def reference(self, z: Tensor, slots: Slots) -> Tensor:
        """The same, node by node and head by head as the papers write it."""
        heard, every = torch.zeros_like(z).view(len(z), self.heads, -1), slots.gathered()
        for i in range(len(z)):
            u = every[i, slots.ids[i] >= 0]
            for h in range(self.heads if len(u) else 0):
                asked = self.query(z[i]).view(self.heads, -1)[h]
                scores = torch.stack([asked @ (self.key[h] @ slot) for slot in u]) * self.scale
                heard[i, h] = torch.softmax(scores, dim=0) @ torch.stack([slot @ self.value[h] for slot in u])
        return self._merge(torch.cat([heard.flatten(1), z], dim=1))

    def _merge(self, attended: Tensor) -> Tensor:
        """The answer (q, d) to what was attended to beside the node's own embedding (q, 2d)."""
        return self.merge_out(self.dropout(torch.relu(self.merge_in(attended))))


def _attend(asked: Tensor, slots: Slots) -> Tensor:
    """Σ_j softmax_j(asked · u_j) u_j, (h, q, r)."""
    u, there = slots.gathered(), (slots.ids >= 0)[:, None]
    scores = torch.bmm(asked.transpose(0, 1), u.transpose(1, 2)).masked_fill(~there, HIDDEN)
    return torch.bmm(torch.softmax(scores, dim=-1) * there, u).transpose(0, 1)
