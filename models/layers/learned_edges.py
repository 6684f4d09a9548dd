"""Edges that a network computes from the features of its nodes (HYB-10).

Scaled dot products as in Vaswani et al. 2017, 1706.03762 (equation 1), between nodes instead of positions.
Glossary: s graphs · n nodes · d channels · k heads of c = d / k channels · q, p query and key of a node.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.checks import check_positive
from models.layers.errors import ShapeError
from models.layers.message_passing import head_width, split_heads


class LearnedEdges(nn.Module):
    """(s, n, d) → adjacency (s, n, n), 1 on the diagonal, 0 on edges from absent nodes.

    The weight of the edge from j to i is the mean over heads of softmax_j(q_i · p_j / √c), j ≠ i; without ``top_k`` the
    weights of the edges to i sum to 1. ``top_k``: only the k heaviest edges to each node, and ties with the last.
    """

    def __init__(self, d_model: int, heads: int = 2, top_k: int | None = None) -> None:
        super().__init__()
        self.width = head_width(d_model, heads)
        if top_k is not None:
            check_positive(top_k=top_k)
        self.heads = heads
        self.top_k = top_k
        self.query, self.key = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """The adjacency; ``mask`` (s, n) bool is True for nodes that are present. Raises ShapeError."""
        if mask.shape != h.shape[:2]:
            raise ShapeError(f"mask is {tuple(mask.shape)}; give one value per graph and node, {tuple(h.shape[:2])}")
        with torch.autocast(h.device.type, enabled=False):
            query, key = (split_heads(layer(h.float()), self.heads) for layer in (self.query, self.key))
            self_loops = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
            others = mask[:, None, :] & ~self_loops
            scores = (query @ key.mT * self.width**-0.5).masked_fill(~others[:, None], torch.finfo(torch.float32).min)
            # without other nodes all scores are equal, and their softmax must not become edges
            weights = torch.where(others, torch.softmax(scores, dim=-1).mean(1), 0.0)
            if self.top_k is not None and self.top_k < h.shape[1]:
                kth = weights.topk(self.top_k, dim=-1).values[..., -1:]
                weights = torch.where(weights >= kth, weights, 0.0)
            return weights + self_loops
