"""Edge weights that a network computes from the features of its nodes (HYB-10).

Paper: Vaswani et al. 2017, 1706.03762 (equation 1: scaled dot products), here between nodes instead of positions.

Glossary: s graphs · n nodes · d channels · k heads of c = d / k channels · i target node and j source node of an edge ·
q_i query of the target, p_j key of the source. An adjacency (s, n, n) is indexed [graph, target, source].

Ids such as HYB-10: .github/sources.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.checks import check_positive
from models.layers.errors import ShapeError
from models.layers.message_passing import head_width, split_heads


class LearnedEdges(nn.Module):
    """(s, n, d) → adjacency (s, n, n), with 1 on the diagonal.

    The weight of the edge from j to i is the mean over heads of softmax_j(q_i · p_j / √c) over present nodes j ≠ i. An
    edge from an absent node has weight 0. Without ``top_k``, the weights of the edges to i sum to 1 if another node is
    present. With ``top_k``, each node keeps only that many of its largest incoming weights, and all weights equal to
    the smallest of them. Raises SizeError.
    """

    def __init__(self, d_model: int, heads: int = 2, top_k: int | None = None) -> None:
        super().__init__()
        self.width = head_width(d_model, heads)
        if top_k is not None:
            check_positive(top_k=top_k)
        self.heads = heads
        self.top_k = top_k
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """The adjacency, float32, of node features h (s, n, d).

        ``mask`` (s, n), bool, is True for nodes that are present. Raises ShapeError.
        """
        if mask.shape != h.shape[:2]:
            raise ShapeError(f"mask is {tuple(mask.shape)}; give one value per graph and node, {tuple(h.shape[:2])}")
        with torch.autocast(h.device.type, enabled=False):
            query = split_heads(self.query(h.float()), self.heads)
            key = split_heads(self.key(h.float()), self.heads)
            self_loops = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
            is_edge = mask[:, None, :] & ~self_loops
            scores = (query @ key.mT * self.width**-0.5).masked_fill(~is_edge[:, None], torch.finfo(torch.float32).min)
            # a node without possible sources has equal scores everywhere; their softmax must not become edges
            weights = torch.where(is_edge, torch.softmax(scores, dim=-1).mean(1), 0.0)
            if self.top_k is not None and self.top_k < h.shape[1]:
                smallest_kept = weights.topk(self.top_k, dim=-1).values[..., -1:]
                weights = torch.where(weights >= smallest_kept, weights, 0.0)
            return weights + self_loops
