"""The edges of a dense batch of graphs on a CPU, found a vector of weights at a time, and means along them.

Glossary: s graphs · n nodes · d channels · e edges, own loops included, by graph and node · W lanes of a vector.
Arrays are flat: A (s, n, n); first (s · n + 1,) position of a node's first edge; heard (e,) the node at its other end;
x, y (s, n, d). d is a multiple of W.
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
from models.layers.kernels.simd import add, constant, count_trailing_zeros, fma, lanes_of, load, movemask, mul, store

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int]  # n, d, W


@njit(nogil=True, error_model="numpy", cache=True)
def _count(A: Array, n: int, first: Array, start: int, stop: int) -> None:
    """Fills ``first`` with the edges of each node of graphs [start, stop), one place late."""
    for row in range(start * n, stop * n):
        found, weights = np.int32(0), A[row * n : (row + 1) * n]
        for j in range(n):  # in this form the compiler counts a whole vector at once
            found += np.int32(1) if weights[j] != 0 else np.int32(0)
        first[row + 1] = found + (weights[row % n] == 0)


@njit(nogil=True, error_model="numpy", cache=True)
def _list(A: Array, n: int, W: int, first: Array, heard: Array, start: int, stop: int) -> None:
    """Fills ``heard`` for graphs [start, stop); a node that has no loop of its own hears itself last."""
    for row in range(start * n, stop * n):
        e, whole = first[row], n // W * W
        for j in range(0, whole, W):  # most weights are 0: a whole vector of them costs one look
            found = movemask(load(A, row * n + j))
            while found:
                heard[e] = j + count_trailing_zeros(found)
                found &= found - 1
                e += 1
        for j in range(whole, n):
            if A[row * n + j] != 0:
                heard[e] = j
                e += 1
        if A[row * n + row % n] == 0:
            heard[e] = row % n


@njit(nogil=True, error_model="numpy", cache=True)
def _means(x: Array, edges: Arrays, y: Array, sizes: Sizes, start: int, stop: int) -> None:
    """Fills y of graphs [start, stop)."""
    first, heard = edges
    n, d, W = sizes
    for row in range(start * n, stop * n):
        share = x.dtype.type(1) / max(first[row + 1] - first[row] - 1, 1)
        for q in range(0, d, W):
            summed = constant(load(x, q), 0.0)
            for e in range(first[row], first[row + 1]):
                if heard[e] != row % n:
                    summed = add(summed, load(x, (row // n * n + heard[e]) * d + q))
            store(y, row * d + q, mul(summed, constant(summed, share)))


@njit(nogil=True, error_model="numpy", cache=True)
def _means_back(gy: Array, edges: Arrays, gx: Array, sizes: Sizes, start: int, stop: int) -> None:
    """Adds the gradients of graphs [start, stop)."""
    first, heard = edges
    n, d, W = sizes
    for row in range(start * n, stop * n):
        share = gy.dtype.type(1) / max(first[row + 1] - first[row] - 1, 1)
        for q in range(0, d, W):
            into = load(gy, row * d + q)
            for e in range(first[row], first[row + 1]):
                if heard[e] != row % n:
                    at = (row // n * n + heard[e]) * d + q
                    store(gx, at, fma(into, constant(into, share), load(gx, at)))


def edges_of(A: Tensor) -> tuple[Array, Array]:
    """``first`` and ``heard`` of contiguous adjacencies (s, n, n). Every node hears itself, whatever its own weight."""
    s, n, _ = A.shape
    first = np.zeros(s * n + 1, dtype=np.int64)
    parallel_for(_count, s, as_array(A), n, first)
    first = first.cumsum()
    heard = np.empty(first[-1], dtype=np.int32)
    parallel_for(_list, s, as_array(A), n, lanes_of(as_array(A).dtype), first, heard)
    return first, heard


def neighbour_means(x: Tensor, A: Tensor) -> Tensor:
    """(s, n, d): the mean of what a node's neighbours hold, itself left out; zeros without neighbours."""
    d = x.shape[2]
    added = -d % lanes_of(as_array(x).dtype)  # the kernels know whole vectors
    return _NeighbourMeans.apply((pad(x, (0, added)) if added else x).contiguous(), A.contiguous())[..., :d]


class _NeighbourMeans(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor) -> Tensor:
        y, ctx.edges, ctx.sizes = torch.empty_like(x), edges_of(A), (*x.shape[1:], lanes_of(as_array(x).dtype))
        parallel_for(_means, len(x), as_array(x), ctx.edges, as_array(y), ctx.sizes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        gx = torch.zeros_like(gy, memory_format=torch.contiguous_format)
        parallel_for(_means_back, len(gy), as_array(gy.contiguous()), ctx.edges, as_array(gx), ctx.sizes)
        return gx, None
