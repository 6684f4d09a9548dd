"""Attention along the edges of many small graphs on a CPU.

Time and memory are proportional to the number of edges, not to the number of node pairs.

    α_ijk = softmax_j(Σ_p a_kp LeakyReLU(R_ikp + S_jkp) + g_k A_ij)        y_ik = Σ_j α_ijk V_jk

Glossary: s graphs · n nodes, i target and j source of an edge · k heads of c channels · p channels that a score sums
over, either c or 1 · e edges, self-loops included · W lanes of a vector · S, R (s, n, k, p) parts of the score from the
source and from the target · V (s, n, k, c) values · a (k, p) coefficients of the score · g (k,) coefficient of the
adjacency A (s, n, n) in the score · y (s, n, k, c) output · alpha (e, k) attention weights · g_scores (e, k) gradients
of the scores · first_edge, sources as in edges_cpu.py · gX gradient of X.

The kernels read every array as one-dimensional. c is a multiple of W; so is p, unless it is 1. ``row`` is the position
of a node i in (s, n); ``first_row`` is that of its graph's first node; ``target`` and ``source`` are positions of a
node's head in (s, n, k).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from models.layers.kernels.edges_cpu import list_edges
from models.layers.kernels.parallel import as_array, as_arrays, parallel_for
from models.layers.kernels.simd import (
    add,
    constant,
    fma,
    fmax,
    lanes_per_vector,
    load,
    mul,
    reduce_add,
    select_lt,
    splat,
    store,
)

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, int]  # n, k, p, c, W
LEAKY_RELU_SLOPE = 0.2


@njit(inline="always")
def _score(inputs: Arrays, target: int, source: int, h: int, p: int, W: int) -> Any:
    """The score of one edge in head h, without the term g_k A_ij."""
    S, R, _, a = inputs[:4]
    if p == 1:
        x = R[target] + S[source]
        return a[h] * max(x, x * a.dtype.type(LEAKY_RELU_SLOPE))
    summed = constant(load(S, source * p), 0.0)
    for q in range(0, p, W):
        x = add(load(R, target * p + q), load(S, source * p + q))
        summed = fma(load(a, h * p + q), fmax(x, mul(x, constant(x, LEAKY_RELU_SLOPE))), summed)
    return reduce_add(summed)


@njit(nogil=True, error_model="numpy", cache=True)
def _forward(inputs: Arrays, edges: Arrays, outputs: Arrays, sizes: Sizes, start: int, stop: int) -> None:
    """Fills ``outputs``, y and alpha, for graphs [start, stop)."""
    _, _, V, _, g, A = inputs
    first_edge, sources = edges
    y, alpha = outputs
    n, k, p, c, W = sizes
    for row in range(start * n, stop * n):
        begin = first_edge[row]
        end = first_edge[row + 1]
        first_row = row // n * n
        for h in range(k):
            highest = alpha.dtype.type(-np.inf)
            summed = alpha.dtype.type(0)
            for e in range(begin, end):
                j = sources[e]
                score = _score(inputs, row * k + h, (first_row + j) * k + h, h, p, W) + g[h] * A[row * n + j]
                alpha[e * k + h] = score
                highest = max(highest, score)
            for e in range(begin, end):
                alpha[e * k + h] = math.exp(alpha[e * k + h] - highest)
                summed += alpha[e * k + h]
            for e in range(begin, end):
                alpha[e * k + h] /= summed
            for q in range(0, c, W):
                mean = constant(load(V, q), 0.0)
                for e in range(begin, end):
                    mean = fma(splat(alpha, e * k + h), load(V, ((first_row + sources[e]) * k + h) * c + q), mean)
                store(y, (row * k + h) * c + q, mean)


@njit(inline="always")
def _alpha_gradient(V: Array, gV: Array, gy: Array, target: int, source: int, alpha_ij: Any, c: int, W: int) -> Any:
    """gy_i · V_j, the gradient of α_ij. Also adds α_ij · gy_i to gV_j; ``alpha_ij`` holds α_ij in every lane."""
    product = constant(alpha_ij, 0.0)
    for q in range(0, c, W):
        grad = load(gy, target * c + q)
        product = fma(grad, load(V, source * c + q), product)
        store(gV, source * c + q, fma(alpha_ij, grad, load(gV, source * c + q)))
    return reduce_add(product)


@njit(inline="always")
def _backward_scores(inputs: Arrays, edges: Arrays, grads: Arrays, row: int, h: int, sizes: Sizes) -> None:
    """Adds the gradients of S, R and a for head h and all edges to node ``row``, from ``g_scores`` of these edges."""
    S, R, _, a = inputs[:4]
    first_edge, sources, _, g_scores = edges
    gS, gR, _, ga = grads[:4]
    n, k, p, _, W = sizes
    target = row * k + h
    first_row = row // n * n
    a_index = row // n * k + h
    if p == 1:
        sum_a = ga[a_index]
        slope = a.dtype.type(LEAKY_RELU_SLOPE)
        for e in range(first_edge[row], first_edge[row + 1]):
            source = (first_row + sources[e]) * k + h
            x = R[target] + S[source]
            grad = g_scores[e * k + h] if x > 0 else g_scores[e * k + h] * slope
            sum_a += grad * x
            gR[target] += grad * a[h]
            gS[source] += grad * a[h]
        ga[a_index] = sum_a
        return
    for q in range(0, p, W):
        r = load(R, target * p + q)
        coefficient = load(a, h * p + q)
        sum_a = load(ga, a_index * p + q)
        sum_R = constant(r, 0.0)
        slope = constant(r, LEAKY_RELU_SLOPE)
        zero = constant(r, 0.0)
        for e in range(first_edge[row], first_edge[row + 1]):
            source = ((first_row + sources[e]) * k + h) * p + q
            x = add(r, load(S, source))
            g_score = splat(g_scores, e * k + h)
            grad = select_lt(x, zero, mul(g_score, slope), g_score)
            sum_a = fma(grad, x, sum_a)
            grad = mul(grad, coefficient)
            sum_R = add(sum_R, grad)
            store(gS, source, add(grad, load(gS, source)))
        store(ga, a_index * p + q, sum_a)
        store(gR, target * p + q, add(sum_R, load(gR, target * p + q)))


@njit(nogil=True, error_model="numpy", cache=True)
def _backward(inputs: Arrays, edges: Arrays, grads: Arrays, sizes: Sizes, start: int, stop: int) -> None:
    """Adds the gradients of graphs [start, stop) to ``grads``. ga (s, k, p) and gg (s, k) have one entry per graph, so
    that no two threads write to the same element."""
    _, _, V, _, g, A, y, gy = inputs
    first_edge, sources, alpha, g_scores = edges
    _, _, gV, _, gg, gA = grads
    n, k, _, c, W = sizes
    for row in range(start * n, stop * n):
        first_row = row // n * n
        for h in range(k):
            target = row * k + h
            product = constant(load(V, 0), 0.0)
            for q in range(0, c, W):  # Σ_j α_j gy · V_j
                product = fma(load(gy, target * c + q), load(y, target * c + q), product)
            mean = reduce_add(product)
            sum_g = gg[row // n * k + h]
            for e in range(first_edge[row], first_edge[row + 1]):
                alpha_ij = splat(alpha, e * k + h)
                g_alpha = _alpha_gradient(V, gV, gy, target, (first_row + sources[e]) * k + h, alpha_ij, c, W)
                g_score = alpha[e * k + h] * (g_alpha - mean)
                g_scores[e * k + h] = g_score
                sum_g += g_score * A[row * n + sources[e]]
                if len(gA):
                    gA[row * n + sources[e]] += g_score * g[h]
            gg[row // n * k + h] = sum_g
            _backward_scores(inputs, edges, grads, row, h, sizes)


def attend(S: Tensor, R: Tensor, V: Tensor, a: Tensor, g: Tensor, A: Tensor) -> Tensor:
    """y (s, n, k, c) from S, R (s, n, k, p), V (s, n, k, c), a (k, p), g (k,) and A (s, n, n), all of one dtype.

    A nonzero A_ij is an edge from j to i. Every node also has an edge from itself. The scores are those of GAT if p is
    1, and those of GATv2 if p is c.
    """
    c = V.shape[3]
    W = lanes_per_vector(as_array(g).dtype)

    def pad_to_vectors(x: Tensor) -> Tensor:  # the kernels process whole vectors
        return (pad(x, (0, -x.shape[-1] % W)) if x.shape[-1] % W else x).contiguous()

    S, R, a = (x.contiguous() for x in (S, R, a)) if S.shape[3] == 1 else (pad_to_vectors(x) for x in (S, R, a))
    return _Attend.apply(S, R, pad_to_vectors(V), a, g, A.contiguous())[..., :c]


class _Attend(Function):
    """As ``attend``, for contiguous inputs whose channels fill whole vectors."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        S, _, V, _, g, A = inputs
        s, n, k, c = V.shape
        p = S.shape[3]
        W = lanes_per_vector(as_array(g).dtype)
        ctx.sizes = (n, k, p, c, W)
        first_edge, sources = list_edges(A)
        y = torch.empty_like(V)
        alpha = V.new_empty(len(sources), k)
        parallel_for(_forward, s, as_arrays(*inputs), (first_edge, sources), as_arrays(y, alpha), ctx.sizes)
        ctx.save_for_backward(*inputs, y, alpha)
        ctx.edges = (first_edge, sources)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, y, alpha = ctx.saved_tensors
        S, R, V, a, g, A = inputs
        shapes = (S.shape, R.shape, V.shape, (len(V), *a.shape), (len(V), *g.shape))
        grads = [V.new_zeros(shape) for shape in shapes]
        grads.append(V.new_zeros(A.shape if ctx.needs_input_grad[5] else (0,)))
        parallel_for(
            _backward,
            len(V),
            as_arrays(*inputs, y, gy.contiguous()),
            (*ctx.edges, *as_arrays(alpha, torch.empty_like(alpha))),
            as_arrays(*grads),
            ctx.sizes,
        )
        gS, gR, gV, ga, gg, gA = grads
        return gS, gR, gV, ga.sum(0), gg.sum(0), gA if ctx.needs_input_grad[5] else None
