"""Edge lists of a batch of dense adjacencies on a CPU, and means over the neighbours of every node.

Glossary: s graphs · n nodes · d channels · e edges, self-loops included, in ascending order of graph, target and source
· W lanes of a vector · A (s, n, n) adjacencies, indexed [graph, target, source], 0 where there is no edge · first_edge
(s · n + 1,) position of each target's first edge, and e at the end · sources (e,) source node of each edge within its
graph · x, y (s, n, d) features and their means · gX gradient of X. ``row`` is the position of a target in (s, n).
The kernels read every array as one-dimensional. d is a multiple of W.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from models.layers.kernels.parallel import as_array, parallel_for
from models.layers.kernels.simd import (
    add,
    constant,
    count_trailing_zeros,
    fma,
    lanes_per_vector,
    load,
    movemask,
    mul,
    store,
)

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int]  # n, d, W


@njit(nogil=True, error_model="numpy", cache=True)
def _count_edges(A: Array, n: int, first_edge: Array, start: int, stop: int) -> None:
    """Writes the number of edges to node ``row`` of graphs [start, stop) to ``first_edge[row + 1]``."""
    for row in range(start * n, stop * n):
        n_edges = np.int32(0)
        adjacency_row = A[row * n : (row + 1) * n]
        for j in range(n):  # the compiler vectorises this form of the sum
            n_edges += np.int32(1) if adjacency_row[j] != 0 else np.int32(0)
        first_edge[row + 1] = n_edges + (adjacency_row[row % n] == 0)


@njit(nogil=True, error_model="numpy", cache=True)
def _fill_sources(A: Array, n: int, W: int, first_edge: Array, sources: Array, start: int, stop: int) -> None:
    """Fills ``sources`` for graphs [start, stop). A node without a self-loop in A gets one, after its other sources."""
    for row in range(start * n, stop * n):
        e = first_edge[row]
        vector_end = n // W * W
        for j in range(0, vector_end, W):  # most entries are 0: one comparison skips a whole vector of them
            nonzero = movemask(load(A, row * n + j))
            while nonzero:
                sources[e] = j + count_trailing_zeros(nonzero)
                nonzero &= nonzero - 1
                e += 1
        for j in range(vector_end, n):
            if A[row * n + j] != 0:
                sources[e] = j
                e += 1
        if A[row * n + row % n] == 0:
            sources[e] = row % n


@njit(nogil=True, error_model="numpy", cache=True)
def _fill_means(x: Array, edges: Arrays, y: Array, sizes: Sizes, start: int, stop: int) -> None:
    """Fills y, the mean of x over each node's sources other than itself, for graphs [start, stop)."""
    first_edge, sources = edges
    n, d, W = sizes
    for row in range(start * n, stop * n):
        inverse_degree = x.dtype.type(1) / max(first_edge[row + 1] - first_edge[row] - 1, 1)
        for q in range(0, d, W):
            summed = constant(load(x, q), 0.0)
            for e in range(first_edge[row], first_edge[row + 1]):
                if sources[e] != row % n:
                    summed = add(summed, load(x, (row // n * n + sources[e]) * d + q))
            store(y, row * d + q, mul(summed, constant(summed, inverse_degree)))


@njit(nogil=True, error_model="numpy", cache=True)
def _means_backward(gy: Array, edges: Arrays, gx: Array, sizes: Sizes, start: int, stop: int) -> None:
    """Adds the gradient of x of graphs [start, stop) to ``gx``."""
    first_edge, sources = edges
    n, d, W = sizes
    for row in range(start * n, stop * n):
        inverse_degree = gy.dtype.type(1) / max(first_edge[row + 1] - first_edge[row] - 1, 1)
        for q in range(0, d, W):
            grad = load(gy, row * d + q)
            for e in range(first_edge[row], first_edge[row + 1]):
                if sources[e] != row % n:
                    index = (row // n * n + sources[e]) * d + q
                    store(gx, index, fma(grad, constant(grad, inverse_degree), load(gx, index)))


def list_edges(A: Tensor) -> tuple[Array, Array]:
    """``first_edge``, int64, and ``sources``, int32, of contiguous adjacencies (s, n, n).

    Every node has a self-loop in the result, also where A has none.
    """
    s, n, _ = A.shape
    first_edge = np.zeros(s * n + 1, dtype=np.int64)
    parallel_for(_count_edges, s, as_array(A), n, first_edge)
    first_edge = first_edge.cumsum()
    sources = np.empty(first_edge[-1], dtype=np.int32)
    parallel_for(_fill_sources, s, as_array(A), n, lanes_per_vector(as_array(A).dtype), first_edge, sources)
    return first_edge, sources


def neighbour_means(x: Tensor, A: Tensor) -> Tensor:
    """The mean (s, n, d) of x (s, n, d) over each node's sources other than itself; zeros for a node without any."""
    d = x.shape[2]
    extra_channels = -d % lanes_per_vector(as_array(x).dtype)  # the kernels process whole vectors
    padded = pad(x, (0, extra_channels)) if extra_channels else x
    return _NeighbourMeans.apply(padded.contiguous(), A.contiguous())[..., :d]


class _NeighbourMeans(Function):
    """As ``neighbour_means``, for contiguous inputs; d is a multiple of W. A receives no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor) -> Tensor:
        y = torch.empty_like(x)
        ctx.edges = list_edges(A)
        ctx.sizes = (*x.shape[1:], lanes_per_vector(as_array(x).dtype))
        parallel_for(_fill_means, len(x), as_array(x), ctx.edges, as_array(y), ctx.sizes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        gx = torch.zeros_like(gy, memory_format=torch.contiguous_format)
        parallel_for(_means_backward, len(gy), as_array(gy.contiguous()), ctx.edges, as_array(gx), ctx.sizes)
        return gx, None
