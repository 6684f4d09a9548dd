"""Graph attention over a dense batch of graphs.

Paper: Veličković et al. 2018, 1710.10903 (equations 1 to 5).

Glossary: s graphs (one per step) · n nodes · d channels · k heads of d / k channels · adjacency (s, n, n) weight of the
edge from j to i, 0 where there is none · α_ij = softmax_j(LeakyReLU(a_l·W h_i + a_r·W h_j) + g·weight_ij).
Departs from the paper: the edge's weight is added to its score, with one learned gain g a head, 0 at first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

SLOPE = 0.2


class GraphAttention(nn.Module):
    """(s, n, d) and adjacency (s, n, n) → (s, n, d), heads side by side. Every node needs at least its own loop."""

    def __init__(self, d_model: int, heads: int = 4) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"d_model {d_model} is not divisible by {heads} heads")
        self.heads = heads
        self.project = nn.Linear(d_model, d_model, bias=False)
        self.receive = nn.Parameter(torch.randn(heads, d_model // heads) * (d_model // heads) ** -0.5)
        self.send = nn.Parameter(torch.randn(heads, d_model // heads) * (d_model // heads) ** -0.5)
        self.gain = nn.Parameter(torch.zeros(heads))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d)."""
        with torch.autocast(h.device.type, enabled=False):
            projected = self.project(h.float()).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (s, k, n, d / k)
            received = (projected * self.receive[:, None]).sum(-1)
            sent = (projected * self.send[:, None]).sum(-1)
            scores = leaky_relu(received[..., None] + sent[..., None, :], SLOPE)
            scores = torch.addcmul(scores, self.gain[:, None, None], adjacency[:, None])
            scores = scores.masked_fill((adjacency == 0)[:, None], -torch.inf)
            mixed = torch.matmul(torch.softmax(scores, dim=-1), projected)
            return (mixed.transpose(1, 2).flatten(2) + self.bias).to(h.dtype)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same, edge by edge as the paper writes it."""
        projected = self.project(h).unflatten(-1, (self.heads, -1))
        out = torch.zeros_like(projected)
        for s, i, k in torch.cartesian_prod(*(torch.arange(size) for size in (*h.shape[:2], self.heads))).tolist():
            neighbours = adjacency[s, i].nonzero()[:, 0]
            score = (self.receive[k] * projected[s, i, k]).sum() + projected[s, neighbours, k] @ self.send[k]
            score = leaky_relu(score, SLOPE) + self.gain[k] * adjacency[s, i, neighbours]
            out[s, i, k] = torch.softmax(score, dim=0) @ projected[s, neighbours, k]
        return out.flatten(2) + self.bias
