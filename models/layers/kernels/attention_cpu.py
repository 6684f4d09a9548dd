"""Attention along the edges of many small graphs on a CPU: work and memory for the edges there are, not for all pairs.

Glossary: s graphs · n nodes · k heads of c channels · p channels of what a score is made of, c or 1 · W lanes of a
vector · α_ijk = softmax_j(Σ_p a_kp LeakyReLU(R_ikp + S_jkp) + g_k A_ij) · y_ik = Σ_j α_ijk V_jk.
Arrays are flat: S, R (s, n, k, p); V, y (s, n, k, c); a (k, p); g (k,); A (s, n, n); first and heard as in
edges_cpu.py; alpha (e, k), moved (e, k) the gradient of its score. c, and p unless 1, are multiples of W.
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

from models.layers.kernels.edges_cpu import edges_of
from models.layers.kernels.parallel import as_array, as_arrays, parallel_for
from models.layers.kernels.simd import (
    add,
    constant,
    fma,
    fmax,
    lanes_of,
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
SLOPE = 0.2


@njit(inline="always")
def _score(inputs: Arrays, hears: int, says: int, h: int, p: int, W: int) -> Any:
    S, R, _, a = inputs[:4]
    if p == 1:
        x = R[hears] + S[says]
        return a[h] * max(x, x * a.dtype.type(SLOPE))
    summed = constant(load(S, says * p), 0.0)
    for q in range(0, p, W):
        x = add(load(R, hears * p + q), load(S, says * p + q))
        summed = fma(load(a, h * p + q), fmax(x, mul(x, constant(x, SLOPE))), summed)
    return reduce_add(summed)


@njit(nogil=True, error_model="numpy", cache=True)
def _forward(inputs: Arrays, edges: Arrays, made: Arrays, sizes: Sizes, start: int, stop: int) -> None:
    """Fills y and alpha of graphs [start, stop)."""
    _, _, V, _, g, A = inputs
    first, heard = edges
    y, alpha = made
    n, k, p, c, W = sizes
    for row in range(start * n, stop * n):
        begin, end, graph = first[row], first[row + 1], row // n * n
        for h in range(k):
            most, summed = alpha.dtype.type(-np.inf), alpha.dtype.type(0)
            for e in range(begin, end):
                j = heard[e]
                score = _score(inputs, row * k + h, (graph + j) * k + h, h, p, W) + g[h] * A[row * n + j]
                alpha[e * k + h] = score
                most = max(most, score)
            for e in range(begin, end):
                alpha[e * k + h] = math.exp(alpha[e * k + h] - most)
                summed += alpha[e * k + h]
            for e in range(begin, end):
                alpha[e * k + h] /= summed
            for q in range(0, c, W):
                said = constant(load(V, q), 0.0)
                for e in range(begin, end):
                    said = fma(splat(alpha, e * k + h), load(V, ((graph + heard[e]) * k + h) * c + q), said)
                store(y, (row * k + h) * c + q, said)


@njit(inline="always")
def _told(V: Array, gV: Array, gy: Array, hears: int, says: int, share: Any, c: int, W: int) -> Any:
    """gy · V_j; adds to the gradient of V_j."""
    told = constant(share, 0.0)
    for q in range(0, c, W):
        into = load(gy, hears * c + q)
        told = fma(into, load(V, says * c + q), told)
        store(gV, says * c + q, fma(share, into, load(gV, says * c + q)))
    return reduce_add(told)


@njit(inline="always")
def _scores_back(inputs: Arrays, edges: Arrays, grads: Arrays, row: int, h: int, sizes: Sizes) -> None:
    """Adds what the ``moved`` scores of a node's edges say of S, R and a."""
    S, R, _, a = inputs[:4]
    first, heard, _, moved = edges
    gS, gR, _, ga = grads[:4]
    n, k, p, _, W = sizes
    hears, graph, summed = row * k + h, row // n * n, row // n * k + h
    if p == 1:
        into, slope = ga[summed], a.dtype.type(SLOPE)
        for e in range(first[row], first[row + 1]):
            says = (graph + heard[e]) * k + h
            x = R[hears] + S[says]
            bent = moved[e * k + h] if x > 0 else moved[e * k + h] * slope
            into += bent * x
            gR[hears] += bent * a[h]
            gS[says] += bent * a[h]
        ga[summed] = into
        return
    for q in range(0, p, W):
        r, weight, into = load(R, hears * p + q), load(a, h * p + q), load(ga, summed * p + q)
        back, slope, zero = constant(r, 0.0), constant(r, SLOPE), constant(r, 0.0)
        for e in range(first[row], first[row + 1]):
            says = ((graph + heard[e]) * k + h) * p + q
            x, score = add(r, load(S, says)), splat(moved, e * k + h)
            bent = select_lt(x, zero, mul(score, slope), score)
            into = fma(bent, x, into)
            bent = mul(bent, weight)
            back = add(back, bent)
            store(gS, says, add(bent, load(gS, says)))
        store(ga, summed * p + q, into)
        store(gR, hears * p + q, add(back, load(gR, hears * p + q)))


@njit(nogil=True, error_model="numpy", cache=True)
def _backward(inputs: Arrays, edges: Arrays, grads: Arrays, sizes: Sizes, start: int, stop: int) -> None:
    """Adds the gradients of graphs [start, stop); those of a (s, k, p) and g (s, k) graph by graph."""
    _, _, V, _, g, A, y, gy = inputs
    first, heard, alpha, moved = edges
    _, _, gV, _, gg, gA = grads
    n, k, _, c, W = sizes
    for row in range(start * n, stop * n):
        graph = row // n * n
        for h in range(k):
            hears, kept = row * k + h, constant(load(V, 0), 0.0)
            for q in range(0, c, W):  # Σ_j α_j gy · V_j
                kept = fma(load(gy, hears * c + q), load(y, hears * c + q), kept)
            mean, weighed = reduce_add(kept), gg[row // n * k + h]
            for e in range(first[row], first[row + 1]):
                share = splat(alpha, e * k + h)
                told = _told(V, gV, gy, hears, (graph + heard[e]) * k + h, share, c, W)
                score = alpha[e * k + h] * (told - mean)
                moved[e * k + h] = score
                weighed += score * A[row * n + heard[e]]
                if len(gA):
                    gA[row * n + heard[e]] += score * g[h]
            gg[row // n * k + h] = weighed
            _scores_back(inputs, edges, grads, row, h, sizes)


def attend(S: Tensor, R: Tensor, V: Tensor, a: Tensor, g: Tensor, A: Tensor) -> Tensor:
    """y (s, n, k, c); every node hears itself. With p = 1 scores are a LeakyReLU(R + S), as GAT's; else GATv2's."""
    c, W = V.shape[3], lanes_of(as_array(g).dtype)

    def whole(x: Tensor) -> Tensor:  # the kernels know whole vectors
        return (pad(x, (0, -x.shape[-1] % W)) if x.shape[-1] % W else x).contiguous()

    S, R, a = (x.contiguous() for x in (S, R, a)) if S.shape[3] == 1 else (whole(x) for x in (S, R, a))
    return _Attend.apply(S, R, whole(V), a, g, A.contiguous())[..., :c]


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        S, _, V, _, g, A = given
        (s, n, k, c), p = V.shape, S.shape[3]
        W = lanes_of(as_array(g).dtype)
        ctx.sizes = (n, k, p, c, W)
        first, heard = edges_of(A)
        y, alpha = torch.empty_like(V), V.new_empty(len(heard), k)
        parallel_for(_forward, s, as_arrays(*given), (first, heard), as_arrays(y, alpha), ctx.sizes)
        ctx.save_for_backward(*given, y, alpha)
        ctx.edges = (first, heard)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        *given, y, alpha = ctx.saved_tensors
        S, R, V, a, g, A = given
        shapes = (S.shape, R.shape, V.shape, (len(V), *a.shape), (len(V), *g.shape))
        grads = [V.new_zeros(shape) for shape in shapes]
        grads.append(V.new_zeros(A.shape if ctx.needs_input_grad[5] else (0,)))
        inputs = as_arrays(*given, y, gy.contiguous())
        parallel_for(
            _backward,
            len(V),
            inputs,
            (*ctx.edges, *as_arrays(alpha, torch.empty_like(alpha))),
            as_arrays(*grads),
            ctx.sizes,
        )
        gS, gR, gV, ga, gg, gA = grads
        return gS, gR, gV, ga.sum(0), gg.sum(0), gA if ctx.needs_input_grad[5] else None
