"""Messages between the nodes of a dense batch of graphs: GCN, GAT, GATv2 and GraphSAGE.

Papers: Kipf & Welling 2017, 1609.02907 (equation 2) · Veličković et al. 2018, 1710.10903 (equations 1 to 5) · Brody et
al. 2022, 2105.14491 (equation 7) · Hamilton et al. 2017, 1706.02216 (mean aggregator).

Glossary: s graphs of a batch · n nodes · d channels · h (s, n, d) node values · k heads of c = d / k channels · A
(s, n, n) adjacency: [i, j] is the weight of the edge from j to i, 0 where there is no edge, 1 on the diagonal; weights
may be negative · W weights of the projection (``project``) · a attention vectors, a_l of the receiving node i, a_r of
the sending node j · α attention weights.

Departs from the papers: GCN's degree is Σ|A_ij|, as in the signed Laplacian (Kunegis et al. 2010), since correlations
may be negative; GAT and GATv2 add g · A_ij to an edge's score, with one learned gain g a head. Without negative weights
and with gains of 0 all four equal torch_geometric's layers, to the rounding of single precision.

On a CPU attention and means are computed along the existing edges (attention_cpu.py, edges_cpu.py), elsewhere as matrix
products.
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
from models.layers.kernels.attention_cpu import LEAKY_RELU_SLOPE

MIN_DEGREE = 1e-12  # avoids a division by zero for nodes without edges
MIN_SPARSE_NODES = 48  # with eight neighbours a node, edge by edge is faster than a matrix product from this size
MAX_TEMPORARY_ELEMENTS = 1 << 24  # of one temporary of attention: 64 MiB of float32

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
            scale = adjacency.abs().sum(-1, keepdim=True).clamp(min=MIN_DEGREE).rsqrt()
            return (adjacency @ (scale * self.project(h.float())) * scale + self.bias).to(h.dtype)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same values, computed edge by edge."""
        projected = self.project(h)
        out = torch.zeros_like(h)
        for s, i, j in adjacency.detach().nonzero().tolist():
            norm = (adjacency[s, i].abs().sum() * adjacency[s, j].abs().sum()).sqrt()
            out[s, i] = out[s, i] + adjacency[s, i, j] / norm * projected[s, j]
        return out + self.bias


class SAGE(nn.Module):
    """(s, n, d) and A (s, n, n) → (s, n, d): W_l · (mean of the neighbours) + bias + W_r h.

    Edge weights and self-loops are ignored. The mean of a node without neighbours is zero.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.hear = nn.Linear(d_model, d_model)  # W_l
        self.keep = nn.Linear(d_model, d_model, bias=False)  # W_r

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            is_sparse = h.device.type == "cpu" and h.shape[1] >= MIN_SPARSE_NODES
            mean = (edges_cpu.neighbour_means if is_sparse else self._dense)(h.float(), adjacency)
            return (self.hear(mean) + self.keep(h.float())).to(h.dtype)

    @staticmethod
    def _dense(h: Tensor, adjacency: Tensor) -> Tensor:
        is_self = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
        has_edge = ((adjacency != 0) & ~is_self).float()  # 1.0 where an edge exists
        return has_edge @ h / has_edge.sum(-1, keepdim=True).clamp(min=1)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same values, computed node by node."""
        mean = torch.zeros_like(h)
        for s, i in torch.cartesian_prod(*(torch.arange(size) for size in h.shape[:2])).tolist():
            neighbours = [j for j in adjacency[s, i].nonzero()[:, 0].tolist() if j != i]
            if neighbours:
                mean[s, i] = h[s, neighbours].mean(0)
        return self.hear(mean) + self.keep(h)


class GAT(nn.Module):
    """(s, n, d) and A (s, n, n) → (s, n, d), heads concatenated; every node attends to itself too.

    α_ij = softmax_j(LeakyReLU(a_l · W h_i + a_r · W h_j) + g A_ij). ``gain``: initial value of g. ``dense``: True
    for graphs with nearly all possible edges, for which matrix products are faster than one edge after the other.
    """

    def __init__(self, d_model: int, heads: int = 4, gain: float = 0.0, dense: bool = False) -> None:
        super().__init__()
        c = head_width(d_model, heads)
        self.heads = heads
        self.dense = dense
        self.project = nn.Linear(d_model, d_model, bias=False)
        self.receive = nn.Parameter(torch.randn(heads, c) * c**-0.5)
        self.send = nn.Parameter(torch.randn(heads, c) * c**-0.5)
        self.gain = nn.Parameter(torch.full((heads,), gain))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            is_dense = self.dense or h.device.type != "cpu"
            elements_per_graph = self.heads * h.shape[1] ** 2
            signal = h.float()
            if is_dense:
                y = attend_in_chunks(self._dense, signal, adjacency, elements_per_graph)
            else:
                y = self._sparse(signal, adjacency)
            return (y + self.bias).to(h.dtype)

    def _sparse(self, h: Tensor, adjacency: Tensor) -> Tensor:
        projected = self.project(h).unflatten(-1, (self.heads, -1))
        # a · (W h) = (a W) · h: one product with two vectors a head, instead of two passes over the projected values
        attention_vectors = torch.stack((self.receive, self.send))[:, :, None] @ self.project.weight.unflatten(
            0, (self.heads, -1)
        )
        received, sent = (h @ attention_vectors.flatten(0, 2).mT).unflatten(-1, (2, self.heads, 1)).unbind(2)
        ones = torch.ones(self.heads, 1)
        return attention_cpu.attend(sent, received, projected, ones, self.gain, adjacency).flatten(2)

    def _dense(self, h: Tensor, adjacency: Tensor) -> Tensor:
        projected = split_heads(self.project(h), self.heads)
        received = projected @ self.receive[..., None]  # (s, k, n, 1)
        sent = projected @ self.send[..., None]
        scores = leaky_relu(received + sent.mT, LEAKY_RELU_SLOPE)
        return masked_attention(scores, adjacency, self.gain, projected)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same values, edge by edge as the paper writes them."""
        projected = self.project(h).unflatten(-1, (self.heads, -1))

        def score(s: int, i: int, k: int, senders: Tensor) -> Tensor:
            received = (self.receive[k] * projected[s, i, k]).sum()
            return leaky_relu(received + projected[s, senders, k] @ self.send[k], LEAKY_RELU_SLOPE)

        return reference_attention(score, projected, adjacency, self.gain) + self.bias


class GATv2(nn.Module):
    """As GAT, with α_ij = softmax_j(a · LeakyReLU(W_r h_i + W_l h_j) + g A_ij) and values W_l h_j.

    The attention vector is applied after the LeakyReLU, so the neighbour with the largest weight may differ from node
    to node.
    """

    def __init__(self, d_model: int, heads: int = 4, gain: float = 0.0) -> None:
        super().__init__()
        c = head_width(d_model, heads)
        self.heads = heads
        self.send = nn.Linear(d_model, d_model)
        self.receive = nn.Linear(d_model, d_model)
        self.attention = nn.Parameter(torch.randn(heads, c) * c**-0.5)
        self.gain = nn.Parameter(torch.full((heads,), gain))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The new node values (s, n, d). Raises ShapeError."""
        check_graphs(h, adjacency)
        with torch.autocast(h.device.type, enabled=False):
            elements_per_graph = h.shape[2] * h.shape[1] ** 2
            signal = h.float()
            if h.device.type == "cpu":
                y = self._sparse(signal, adjacency)
            else:
                y = attend_in_chunks(self._dense, signal, adjacency, elements_per_graph)
            return (y + self.bias).to(h.dtype)

    def _sparse(self, h: Tensor, adjacency: Tensor) -> Tensor:
        sent = self.send(h).unflatten(-1, (self.heads, -1))
        received = self.receive(h).unflatten(-1, (self.heads, -1))
        return attention_cpu.attend(sent, received, sent, self.attention, self.gain, adjacency).flatten(2)

    def _dense(self, h: Tensor, adjacency: Tensor) -> Tensor:
        sent = split_heads(self.send(h), self.heads)
        received = split_heads(self.receive(h), self.heads)
        activated = leaky_relu(received[:, :, :, None] + sent[:, :, None], LEAKY_RELU_SLOPE)  # (s, k, n, n, c)
        scores = (activated @ self.attention[:, None, :, None])[..., 0]
        return masked_attention(scores, adjacency, self.gain, sent)

    def reference(self, h: Tensor, adjacency: Tensor) -> Tensor:
        """The same values, edge by edge as the paper writes them."""
        sent = self.send(h).unflatten(-1, (self.heads, -1))
        received = self.receive(h).unflatten(-1, (self.heads, -1))

        def score(s: int, i: int, k: int, senders: Tensor) -> Tensor:
            return leaky_relu(received[s, i, k] + sent[s, senders, k], LEAKY_RELU_SLOPE) @ self.attention[k]

        return reference_attention(score, sent, adjacency, self.gain) + self.bias


MESSAGE_LAYERS: dict[str, Callable[..., nn.Module]] = {"gcn": GCN, "gat": GAT, "gatv2": GATv2, "sage": SAGE}
ATTENTION_KINDS = ("gat", "gatv2")  # names of the layers with heads and gains


def check_graphs(h: Tensor, adjacency: Tensor) -> None:
    """Raises ShapeError unless h is (s, n, d) with one node or more and the adjacency (s, n, n)."""
    if h.dim() != 3 or not h.shape[1]:
        raise ShapeError(f"h is {tuple(h.shape)}; give (graphs, nodes, channels) with one node or more")
    if adjacency.shape != (*h.shape[:2], h.shape[1]):
        raise ShapeError(f"the adjacency is {tuple(adjacency.shape)}; give {(*h.shape[:2], h.shape[1])}")


def head_width(d_model: int, heads: int) -> int:
    """The number of channels of a head. Raises SizeError."""
    check_positive(heads=heads)
    if d_model % heads:
        raise SizeError(f"d_model {d_model} is not divisible by {heads} heads; choose another number of heads")
    return d_model // heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(s, n, d) → (s, k, n, c)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def masked_attention(scores: Tensor, adjacency: Tensor, gain: Tensor, values: Tensor) -> Tensor:
    """Σ_j softmax_j(scores + g A)_ij values_j over the edges and every node's self-loop, (s, n, d).

    ``scores`` (s, k, n, n), ``gain`` (k,), ``values`` (s, k, n, c).
    """
    is_self = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
    scores = torch.addcmul(scores, gain[:, None, None], adjacency[:, None])
    scores = scores.masked_fill(((adjacency == 0) & ~is_self)[:, None], -torch.inf)
    return (torch.softmax(scores, dim=-1) @ values).transpose(1, 2).flatten(2)


def attend_in_chunks(attend: Attend, h: Tensor, adjacency: Tensor, elements_per_graph: int) -> Tensor:
    """``attend(h, adjacency)``, computed in chunks of graphs.

    The temporaries of a chunk have at most MAX_TEMPORARY_ELEMENTS elements, ``elements_per_graph`` for each graph, but
    a chunk has at least one graph. If there are several chunks, the backward pass recomputes every chunk, so that the
    temporaries of two chunks never exist together.
    """
    graphs_per_chunk = max(1, MAX_TEMPORARY_ELEMENTS // elements_per_graph)
    if len(h) <= graphs_per_chunk:
        return attend(h, adjacency)
    chunks = zip(h.split(graphs_per_chunk), adjacency.split(graphs_per_chunk), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([attend(*chunk) for chunk in chunks])
    return torch.cat([checkpoint(attend, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def reference_attention(
    score: Callable[[int, int, int, Tensor], Tensor], values: Tensor, adjacency: Tensor, gain: Tensor
) -> Tensor:
    """The attention-weighted sum over edges as the papers write it, (s, n, d); ``values`` (s, n, k, c).

    ``score(s, i, k, senders)`` returns the scores of the edges from the nodes ``senders`` to node i in head k.
    """
    out = torch.zeros_like(values)
    for s, i, k in torch.cartesian_prod(*(torch.arange(size) for size in values.shape[:3])).tolist():
        senders = ((adjacency[s, i] != 0) | (torch.arange(len(adjacency[s])) == i)).nonzero()[:, 0]
        scores = score(s, i, k, senders) + gain[k] * adjacency[s, i, senders]
        out[s, i, k] = torch.softmax(scores, dim=0) @ values[s, senders, k]
    return out.flatten(2)
