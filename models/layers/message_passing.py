"""Messages between the nodes of a dense batch of graphs: GCN, GAT, GATv2 and GraphSAGE.

Papers: Kipf & Welling 2017, 1609.02907 (equation 2) · Veličković et al. 2018, 1710.10903 (equations 1 to 5) · Brody et
al. 2022, 2105.14491 (equation 7) · Hamilton et al. 2017, 1706.02216 (mean aggregator).

Glossary: s graphs (one per step) · n nodes · d channels · k heads of c = d / k channels · A (s, n, n) adjacency: the
weight of the edge from j to i at [i, j], 0 where there is none, 1 on the diagonal; weights may be negative · W project
· a attention vectors.
Departs from the papers: GCN's degree is Σ|A_ij|, as in the signed Laplacian (Kunegis et al. 2010), since correlations
may be negative; GAT and GATv2 add g · A_ij to an edge's score, with one learned gain g a head. With weights of 0 and
more and gains of 0 all four are torch_geometric's layers, to the rounding of single precision.
On a CPU attention and means go along the edges there are (attention_cpu.py, edges_cpu.py), else by matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.utils.checkpoint import checkpoint

from models.layers.checks import check_positive
from models.layers.errors import ShapeError, SizeError
from models.layers.kernels import attention_cpu, edges_cpu
from models.layers.kernels.attention_cpu import SLOPE

LEAST_DEGREE = 1e-12
MANY_NODES = 48  # from here on eight neighbours are so few that going along the edges beats a product with mostly zeros
CHUNK = 1 << 24  # numbers that one piece of attention holds at once in one temporary: 64 MiB

Attend = Callable[..., Tensor]


class GCN(nn.Module):
    """(s, n, d) and A (s, n, n) → (s, n, d): D^−½ A D^−½ h W + bias."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, d_model, bias=False)
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            scale = adjacency.abs().sum(-1, keepdim=True).clamp(min=LEAST_DEGREE).rsqrt()
            return (adjacency @ (scale * self.project(h.float())) * scale + self.bias).to(h.dtype)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same, edge by edge."""
        projected, out = self.project(h), torch.zeros_like(h)
        for s, i, j in adjacency.detach().nonzero().tolist():
            norm = (adjacency[s, i].abs().sum() * adjacency[s, j].abs().sum()).sqrt()
            out[s, i] = out[s, i] + adjacency[s, i, j] / norm * projected[s, j]
        return out + self.bias


class SAGE(nn.Module):
    """(s, n, d) and A (s, n, n) → (s, n, d): W_l · the mean of the neighbours + bias + W_r h. An edge's weight and a
    node's own loop count for nothing; a node without neighbours hears zeros."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.hear, self.keep = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model, bias=False)

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            sparse = h.device.type == "cpu" and h.shape[1] >= MANY_NODES
            mean = (edges_cpu.neighbour_means if sparse else self._dense)(h.float(), adjacency)
            return (self.hear(mean) + self.keep(h.float())).to(h.dtype)

    @staticmethod
    def _dense(h: Tensor, adjacency: Tensor) -> Tensor:
        own = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        edges = ((adjacency != 0) & ~own).float()
        return edges @ h / edges.sum(-1, keepdim=True).clamp(min=1)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same, node by node."""
        mean = torch.zeros_like(h)
        for s, i in torch.cartesian_prod(*(torch.arange(size) for size in h.shape[:2])).tolist():
            neighbours = [j for j in adjacency[s, i].nonzero()[:, 0].tolist() if j != i]
            if neighbours:
                mean[s, i] = h[s, neighbours].mean(0)
        return self.hear(mean) + self.keep(h)


class GAT(nn.Module):
    """(s, n, d) and A (s, n, n) → (s, n, d), heads side by side; every node hears itself.

    α_ij = softmax_j(LeakyReLU(a_l · W h_i + a_r · W h_j) + g A_ij). ``gain``: g at first. ``dense``: the graphs have
    nearly all the edges there can be, so that matrix products are faster than one edge after the other.
    """

    def __init__(self, d_model: int, heads: int = 4, gain: float = 0.0, dense: bool = False) -> None:
        super().__init__()
        c = head_width(d_model, heads)
        self.heads, self.dense = heads, dense
        self.project = nn.Linear(d_model, d_model, bias=False)
        self.receive = nn.Parameter(torch.randn(heads, c) * c**-0.5)
        self.send = nn.Parameter(torch.randn(heads, c) * c**-0.5)
        self.gain = nn.Parameter(torch.full((heads,), gain))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            dense = self.dense or h.device.type != "cpu"
            size = self.heads * h.shape[1] ** 2
            told = in_pieces(self._dense, h.float(), adjacency, size) if dense else self._sparse(h.float(), adjacency)
            return (told + self.bias).to(h.dtype)

    def _sparse(self, h: Tensor, adjacency: Tensor) -> Tensor:
        projected = self.project(h).unflatten(-1, (self.heads, -1))
        # a · (W h) = (a W) · h: one product with two vectors a head, instead of two passes over what is projected
        ends = torch.stack((self.receive, self.send))[:, :, None] @ self.project.weight.unflatten(0, (self.heads, -1))
        received, sent = (h @ ends.flatten(0, 2).mT).unflatten(-1, (2, self.heads, 1)).unbind(2)
        ones = torch.ones(self.heads, 1)
        return attention_cpu.attend(sent, received, projected, ones, self.gain, adjacency).flatten(2)

    def _dense(self, h: Tensor, adjacency: Tensor) -> Tensor:
        projected = by_head(self.project(h), self.heads)
        received, sent = projected @ self.receive[..., None], projected @ self.send[..., None]  # (s, k, n, 1)
        scores = leaky_relu(received + sent.mT, SLOPE)
        return mixed(scores, adjacency, self.gain, projected)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same, edge by edge as the paper writes it."""
        projected = self.project(h).unflatten(-1, (self.heads, -1))

        def score(s: int, i: int, k: int, heard: Tensor) -> Tensor:
            return leaky_relu(
                (self.receive[k] * projected[s, i, k]).sum() + projected[s, heard, k] @ self.send[k], SLOPE
            )

        return edge_by_edge(score, projected, adjacency, self.gain) + self.bias


class GATv2(nn.Module):
    """As GAT, with α_ij = softmax_j(a · LeakyReLU(W_r h_i + W_l h_j) + g A_ij): the attention vector comes after the
    bend, so who is heard most may differ from node to node. What is heard of j is W_l h_j."""

    def __init__(self, d_model: int, heads: int = 4, gain: float = 0.0) -> None:
        super().__init__()
        c = head_width(d_model, heads)
        self.heads = heads
        self.send, self.receive = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.attention = nn.Parameter(torch.randn(heads, c) * c**-0.5)
        self.gain = nn.Parameter(torch.full((heads,), gain))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            size = h.shape[2] * h.shape[1] ** 2
            dense = h.device.type != "cpu"
            told = in_pieces(self._dense, h.float(), adjacency, size) if dense else self._sparse(h.float(), adjacency)
            return (told + self.bias).to(h.dtype)

    def _sparse(self, h: Tensor, adjacency: Tensor) -> Tensor:
        sent, received = (part(h).unflatten(-1, (self.heads, -1)) for part in (self.send, self.receive))
        return attention_cpu.attend(sent, received, sent, self.attention, self.gain, adjacency).flatten(2)

    def _dense(self, h: Tensor, adjacency: Tensor) -> Tensor:
        sent, received = by_head(self.send(h), self.heads), by_head(self.receive(h), self.heads)
        bent = leaky_relu(received[:, :, :, None] + sent[:, :, None], SLOPE)  # (s, k, n, n, c)
        scores = (bent @ self.attention[:, None, :, None])[..., 0]
        return mixed(scores, adjacency, self.gain, sent)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same, edge by edge as the paper writes it."""
        sent, received = (part(h).unflatten(-1, (self.heads, -1)) for part in (self.send, self.receive))

        def score(s: int, i: int, k: int, heard: Tensor) -> Tensor:
            return leaky_relu(received[s, i, k] + sent[s, heard, k], SLOPE) @ self.attention[k]

        return edge_by_edge(score, sent, adjacency, self.gain) + self.bias


MESSAGE_LAYERS: dict[str, Callable[..., nn.Module]] = {"gcn": GCN, "gat": GAT, "gatv2": GATv2, "sage": SAGE}
ATTENTIVE = ("gat", "gatv2")  # those with heads and gains


def check_graphs(h: Tensor, adjacency: Tensor) -> None:
    """Refuses h that is not (s, n, d) with at least one node, and an adjacency that is not (s, n, n)."""
    if h.dim() != 3 or not h.shape[1]:
        raise ShapeError(f"h is {tuple(h.shape)}; give (graphs, nodes, channels) with one node or more")
    if adjacency.shape != (*h.shape[:2], h.shape[1]):
        raise ShapeError(f"the adjacency is {tuple(adjacency.shape)}; give {(*h.shape[:2], h.shape[1])}")


def head_width(d_model: int, heads: int) -> int:
    """Channels of a head. Raises SizeError."""
    check_positive(heads=heads)
    if d_model % heads:
        raise SizeError(f"d_model {d_model} is not divisible by {heads} heads; choose another number of heads")
    return d_model // heads


def by_head(x: Tensor, heads: int) -> Tensor:
    """(s, n, d) → (s, k, n, c)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def mixed(scores: Tensor, adjacency: Tensor, gain: Tensor, values: Tensor) -> Tensor:
    """Σ_j softmax_j(scores + g A)_ij values_j over the edges and every node's own loop, (s, n, d).

    ``scores`` (s, k, n, n), ``gain`` (k,), ``values`` (s, k, n, c).
    """
    own = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
    scores = torch.addcmul(scores, gain[:, None, None], adjacency[:, None])
    scores = scores.masked_fill(((adjacency == 0) & ~own)[:, None], -torch.inf)
    return (torch.softmax(scores, dim=-1) @ values).transpose(1, 2).flatten(2)


def in_pieces(attend: Attend, h: Tensor, adjacency: Tensor, size: int) -> Tensor:
    """``attend(h, adjacency)`` over pieces of the graphs whose temporaries, ``size`` numbers a graph, stay small.

    With more than one piece the backward pass computes each anew, so that no pass ever holds two.
    """
    at_once = max(1, CHUNK // size)
    if len(h) <= at_once:
        return attend(h, adjacency)
    parts = zip(h.split(at_once), adjacency.split(at_once), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([attend(*part) for part in parts])
    return torch.cat([checkpoint(attend, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def edge_by_edge(
    score: Callable[[int, int, int, Tensor], Tensor], values: Tensor, adjacency: Tensor, gain: Tensor
) -> Tensor:
    """The sum over edges as the papers write it, (s, n, d); ``values`` (s, n, k, c)."""
    out = torch.zeros_like(values)
    for s, i, k in torch.cartesian_prod(*(torch.arange(size) for size in values.shape[:3])).tolist():
        heard = ((adjacency[s, i] != 0) | (torch.arange(len(adjacency[s])) == i)).nonzero()[:, 0]
        weights = score(s, i, k, heard) + gain[k] * adjacency[s, i, heard]
        out[s, i, k] = torch.softmax(weights, dim=0) @ values[s, heard, k]
    return out.flatten(2)
