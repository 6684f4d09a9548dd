"""Edges that a network draws itself, from what it knows of its nodes (inventory HYB-10).

Scaled dot products as in Vaswani et al. 2017, 1706.03762 (equation 1), between nodes instead of positions.
Glossary: s graphs · n nodes · d channels · k heads of c = d / k channels · q, p query and key of a node.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.checks import check_positive
from models.layers.errors import ShapeError
from models.layers.message_passing import by_head, head_width


class LearnedEdges(nn.Module):
    """(s, n, d) → adjacency (s, n, n), 1 on the diagonal, 0 from nodes that are not there.

    The weight of the edge from j to i is the mean over heads of softmax_j(q_i · p_j / √c), j ≠ i: what i hears sums to
    1 when everybody is kept. ``top_k``: only the so many heaviest edges to each node, and those that tie with them.
    """

    def __init__(self, d_model: int, heads: int = 2, top_k: int | None = None) -> None:
        super().__init__()
        self.width = head_width(d_model, heads)
        if top_k is not None:
            check_positive(top_k=top_k)
        self.heads, self.top_k = heads, top_k
        self.query, self.key = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))

    def forward(self, h: Tensor, there: Tensor) -> Tensor:
        """The adjacency; ``there`` (s, n) bool. Raises ShapeError."""
        if there.shape != h.shape[:2]:
            raise ShapeError(f"there is {tuple(there.shape)}; give one per graph and node, {tuple(h.shape[:2])}")
        with torch.autocast(h.device.type, enabled=False):
            query, key = by_head(self.query(h.float()), self.heads), by_head(self.key(h.float()), self.heads)
            own = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
            others = there[:, None, :] & ~own
            scores = (query @ key.mT * self.width**-0.5).masked_fill(~others[:, None], torch.finfo(torch.float32).min)
            # a node without others has equal scores, all of them of edges that are not there
            weights = torch.where(others, torch.softmax(scores, dim=-1).mean(1), 0.0)
            if self.top_k is not None and self.top_k < h.shape[1]:
                kth = weights.topk(self.top_k, dim=-1).values[..., -1:]
                weights = torch.where(weights >= kth, weights, 0.0)
            return weights + own
