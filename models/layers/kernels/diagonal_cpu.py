"""Diagonal recurrences of complex states on a CPU, in one pass over the bars.

Glossary as in scan.py: b sequences · l bars · d channels · m complex states per channel · p complex states in all.
Further: W lanes of a vector, one channel each · T = BLOCK_BARS, the bars between two stored states · k bars of the
block at hand · _r, _i real and imaginary part.

Arrays are flat, channels last: x, y (b, l, d); a, w (m, d); h (b, m, d). Within a block the outer loop runs over the
states: h, a, w and their gradients stay in registers while x stays in the first-level cache. The backward pass is the
recurrence of the adjoint, g_{t−1} = conj(a) g_t + conj(w) ∂y_{t−1}, run against the states computed again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from models.layers.kernels.parallel import as_array, as_arrays, parallel_for
from models.layers.kernels.simd import add, constant, fma, lanes_of, load, mul, store, sub

BLOCK_BARS = 64
Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int]  # l, d, m, W
Places = tuple[int, int, int, int, int]  # l, p, W, and where a of a sequence and bar is found


@njit(inline="always")
def _turn(a_r: Any, a_i: Any, h_r: Any, h_i: Any, x: Any) -> tuple[Any, Any]:
    """a h + x with a real x."""
    return fma(a_r, h_r, fma(a_i, sub(constant(h_i, 0.0), h_i), x)), fma(a_r, h_i, mul(a_i, h_r))


@njit(nogil=True, error_model="numpy", cache=True)
def _ssm(inputs: Arrays, outputs: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Fills ``y``, replaces h by the last state, and keeps in ``starts`` (b, blocks, m, d) the one before every block
    (none kept if it is empty), for items (sequence, W channels) in [first, stop)."""
    x, a_r, a_i, w_r, w_i, D = inputs
    h_r, h_i, y, starts_r, starts_i = outputs
    length, d, m, W = sizes
    out = np.empty(BLOCK_BARS * W, x.dtype)
    blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    for item in range(first, stop):
        b, c = item * W // d, item * W % d
        for block in range(blocks):
            begin, k = b * length + block * BLOCK_BARS, min(BLOCK_BARS, length - block * BLOCK_BARS)
            for t in range(k):
                store(out, t * W, mul(load(D, c), load(x, (begin + t) * d + c)))
            for j in range(0, m, 2):
                at, here, kept = j * d + c, (b * m + j) * d + c, ((b * blocks + block) * m + j) * d + c
                a_r0, a_i0, a_r1, a_i1 = load(a_r, at), load(a_i, at), load(a_r, at + d), load(a_i, at + d)
                w_r0, w_i0, w_r1, w_i1 = load(w_r, at), load(w_i, at), load(w_r, at + d), load(w_i, at + d)
                h_r0, h_i0, h_r1, h_i1 = load(h_r, here), load(h_i, here), load(h_r, here + d), load(h_i, here + d)
                if starts_r.size:
                    store(starts_r, kept, h_r0)
                    store(starts_i, kept, h_i0)
                    store(starts_r, kept + d, h_r1)
                    store(starts_i, kept + d, h_i1)
                minus0, minus1 = sub(constant(w_i0, 0.0), w_i0), sub(constant(w_i1, 0.0), w_i1)
                for t in range(k):
                    xt = load(x, (begin + t) * d + c)
                    h_r0, h_i0 = _turn(a_r0, a_i0, h_r0, h_i0, xt)
                    h_r1, h_i1 = _turn(a_r1, a_i1, h_r1, h_i1, xt)
                    read = fma(minus0, h_i0, fma(w_r0, h_r0, load(out, t * W)))
                    store(out, t * W, fma(minus1, h_i1, fma(w_r1, h_r1, read)))
                store(h_r, here, h_r0)
                store(h_i, here, h_i0)
                store(h_r, here + d, h_r1)
                store(h_i, here + d, h_i1)
            for t in range(k):
                store(y, (begin + t) * d + c, load(out, t * W))


@njit(nogil=True, error_model="numpy", cache=True)
def _ssm_backward(inputs: Arrays, grads: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Gradients of items [first, stop): gx filled; ga, gw (b, m, d) and gD (b, d) added to; g, the last state's, is
    replaced by the first one's."""
    x, a_r, a_i, w_r, w_i, D, starts_r, starts_i, gy = inputs
    g_r, g_i, gx, ga_r, ga_i, gw_r, gw_i, gD = grads
    length, d, m, W = sizes
    out, before_r, before_i = np.empty((3, BLOCK_BARS * W), x.dtype)
    blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    for item in range(first, stop):
        b, c = item * W // d, item * W % d
        for block in range(blocks - 1, -1, -1):
            begin, k = b * length + block * BLOCK_BARS, min(BLOCK_BARS, length - block * BLOCK_BARS)
            sum_D = load(gD, b * d + c)
            for t in range(k):
                g = load(gy, (begin + t) * d + c)
                store(out, t * W, mul(load(D, c), g))
                sum_D = fma(g, load(x, (begin + t) * d + c), sum_D)
            store(gD, b * d + c, sum_D)
            for j in range(m):
                at, here, kept = j * d + c, (b * m + j) * d + c, ((b * blocks + block) * m + j) * d + c
                ar, ai, wr, wi = load(a_r, at), load(a_i, at), load(w_r, at), load(w_i, at)
                hr, hi = load(starts_r, kept), load(starts_i, kept)
                for t in range(k):
                    store(before_r, t * W, hr)
                    store(before_i, t * W, hi)
                    hr, hi = _turn(ar, ai, hr, hi, load(x, (begin + t) * d + c))
                gr, gi = load(g_r, here), load(g_i, here)
                sum_ar, sum_ai, sum_wr, sum_wi = load(ga_r, here), load(ga_i, here), load(gw_r, here), load(gw_i, here)
                minus_a, minus_w = sub(constant(ai, 0.0), ai), sub(constant(wi, 0.0), wi)
                for t in range(k - 1, -1, -1):
                    g, w = load(gy, (begin + t) * d + c), t * W
                    sum_wr, sum_wi = fma(g, hr, sum_wr), fma(g, hi, sum_wi)
                    gr, gi = fma(g, wr, gr), fma(g, minus_w, gi)
                    hr, hi = load(before_r, w), load(before_i, w)
                    store(out, w, add(gr, load(out, w)))
                    sum_ar = fma(gi, hi, fma(gr, hr, sum_ar))
                    sum_ai = fma(gi, hr, sub(sum_ai, mul(gr, hi)))
                    gr, gi = fma(ar, gr, mul(ai, gi)), fma(ar, gi, mul(minus_a, gr))
                store(g_r, here, gr)
                store(g_i, here, gi)
                store(ga_r, here, sum_ar)
                store(ga_i, here, sum_ai)
                store(gw_r, here, sum_wr)
                store(gw_i, here, sum_wi)
            for t in range(k):
                store(gx, (begin + t) * d + c, load(out, t * W))


@njit(nogil=True, error_model="numpy", cache=True)
def _scan(inputs: Arrays, outputs: Arrays, sizes: Places, first: int, stop: int) -> None:
    """y_t = a_t y_{t−1} + x_t from y_{−1} = h, for items (sequence, W states) in [first, stop); ``a`` is found at
    (by_sequence · b + by_bar · t) · p."""
    a_r, a_i, x_r, x_i, h_r, h_i = inputs
    y_r, y_i = outputs
    length, p, W, by_sequence, by_bar = sizes
    for item in range(first, stop):
        b, c = item * W // p, item * W % p
        hr, hi = load(h_r, b * p + c), load(h_i, b * p + c)
        for t in range(length):
            at, here = (by_sequence * b + by_bar * t) * p + c, (b * length + t) * p + c
            ar, ai = load(a_r, at), load(a_i, at)
            hr, hi = _turn(ar, ai, hr, hi, load(x_r, here))
            hi = add(hi, load(x_i, here))
            store(y_r, here, hr)
            store(y_i, here, hi)


@njit(nogil=True, error_model="numpy", cache=True)
def _scan_backward(inputs: Arrays, grads: Arrays, sizes: Places, first: int, stop: int) -> None:
    """Gradients of x into ``g`` (b, l, p), of h into ``gh`` (b, p), of a added to ``ga`` (b, l or 1, p)."""
    a_r, a_i, y_r, y_i, h_r, h_i, gy_r, gy_i = inputs
    ga_r, ga_i, g_r, g_i, gh_r, gh_i = grads
    length, p, W, by_sequence, by_bar = sizes
    for item in range(first, stop):
        b, c = item * W // p, item * W % p
        gr = constant(load(h_r, b * p + c), 0.0)
        gi = gr
        for t in range(length - 1, -1, -1):
            at, here = (by_sequence * b + by_bar * t) * p + c, (b * length + t) * p + c
            summed = (b * (length if by_bar else 1) + by_bar * t) * p + c
            gr, gi = add(gr, load(gy_r, here)), add(gi, load(gy_i, here))
            store(g_r, here, gr)
            store(g_i, here, gi)
            hr = load(y_r, here - p) if t else load(h_r, b * p + c)
            hi = load(y_i, here - p) if t else load(h_i, b * p + c)
            store(ga_r, summed, fma(gi, hi, fma(gr, hr, load(ga_r, summed))))
            store(ga_i, summed, fma(gi, hr, sub(load(ga_i, summed), mul(gr, hi))))
            ar, ai = load(a_r, at), load(a_i, at)
            gr, gi = fma(ar, gr, mul(ai, gi)), sub(mul(ar, gi), mul(ai, gr))
        store(gh_r, b * p + c, gr)
        store(gh_i, b * p + c, gi)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=True)
def ssm_step(x: Array, weights: Array, D: Array, h: Array, y: Array, after: Array) -> None:
    """One bar: ``y`` (b, d) and ``after`` (b, d, m, 2) filled from x (b, d), D (d,), h (b, d, m, 2) and ``weights``
    (d, m, 4), real and imaginary part of a, then of w."""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            xt, read = x[b, c], D[c] * x[b, c]
            for j in range(weights.shape[1]):
                a_r, a_i, w_r, w_i = weights[c, j, 0], weights[c, j, 1], weights[c, j, 2], weights[c, j, 3]
                real = a_r * h[b, c, j, 0] - a_i * h[b, c, j, 1] + xt
                imag = a_r * h[b, c, j, 1] + a_i * h[b, c, j, 0]
                after[b, c, j, 0], after[b, c, j, 1] = real, imag
                read += w_r * real - w_i * imag
            y[b, c] = read


@njit(nogil=True, error_model="numpy", cache=True)
def ssm_gap_step(x: Array, gap: Array, weights: Array, held: Array, D: Array, h: Array, y: Array, after: Array) -> None:
    """As ``ssm_step`` after gaps (b,) of any length, held zero-order: a = exp(z g) and x enters times (a − 1) k.

    ``held`` (d, m, 4): real and imaginary part of z = AΔ, then of k = 1 / (exp(z) − 1).
    """
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            xt = x[b, c] if gap[b] > 0 else D[c] * 0  # what stands at a padded bar never matters
            read = D[c] * 0
            for j in range(weights.shape[1]):
                z_r, half = held[c, j, 0] * gap[b], held[c, j, 1] * gap[b] / 2
                grown, sine = math.expm1(z_r), math.sin(half)
                e_r = grown * (1 - 2 * sine * sine) - 2 * sine * sine  # of a − 1, exact also for a short gap
                a_r, a_i = 1 + e_r, (1 + grown) * 2 * sine * math.cos(half)
                k_r, k_i = held[c, j, 2], held[c, j, 3]
                real = a_r * h[b, c, j, 0] - a_i * h[b, c, j, 1] + (e_r * k_r - a_i * k_i) * xt
                imag = a_r * h[b, c, j, 1] + a_i * h[b, c, j, 0] + (e_r * k_i + a_i * k_r) * xt
                after[b, c, j, 0], after[b, c, j, 1] = real, imag
                read += weights[c, j, 2] * real - weights[c, j, 3] * imag
            y[b, c] = read + D[c] * xt


def diagonal_ssm(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, m): see scan.py."""
    d, m = a.shape
    channels, states = -d % lanes_of(as_array(D).dtype), m % 2
    parts = [v.transpose(-1, -2) for z in (a, w, h) for v in (z.real, z.imag)]
    if channels or states:  # the kernels know whole vectors and pairs of states; what is added stays zero
        x, D = pad(x, (0, channels)), pad(D, (0, channels))
        parts = [pad(v, (0, channels, 0, states)) for v in parts]
    given = [v.contiguous() for v in (x, *parts[:4], D, *parts[4:])]
    y, real, imag = _Ssm.apply(*given, torch.is_grad_enabled())
    return y[..., :d], torch.complex(real, imag)[:, :m, :d].transpose(1, 2)


def diagonal_scan(a: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states (b, l, p) and the last (b, p): see scan.py."""
    p = x.shape[2]
    added = -p % lanes_of(np.float32 if x.dtype == torch.complex64 else np.float64)
    parts = [pad(v, (0, added)).contiguous() for z in (a, x, h) for v in (z.real, z.imag)]
    states = torch.complex(*_Scan.apply(*parts))[..., :p]
    return states, states[:, -1]


class _Ssm(torch.autograd.Function):
    """x, a_r, a_i, w_r, w_i, D, h_r, h_i → y, last h_r, h_i; a, w (m, d), h (b, m, d)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, h_r, h_i, keep = arguments
        (b, length, d), m = inputs[0].shape, len(inputs[1])
        W = lanes_of(as_array(h_r).dtype)
        y, last = torch.empty_like(inputs[0]), (h_r.clone(), h_i.clone())
        starts = h_r.new_empty(2, b, -(-length // BLOCK_BARS), m, d) if keep else h_r.new_empty(2, 0)
        ctx.sizes = (length, d, m, W)
        parallel_for(_ssm, b * d // W, as_arrays(*inputs), as_arrays(*last, y, *starts), ctx.sizes)
        ctx.save_for_backward(*inputs, starts)
        return y, *last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh_r: Tensor, gh_i: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        b, (_, d, m, W) = len(gy), ctx.sizes
        g = (gh_r.contiguous().clone(), gh_i.contiguous().clone())
        gx, sums, gD = torch.empty_like(inputs[0]), gy.new_zeros(4, b, m, d), gy.new_zeros(b, d)
        given = as_arrays(*inputs, *starts, gy.contiguous())
        parallel_for(_ssm_backward, b * d // W, given, as_arrays(*g, gx, *sums, gD), ctx.sizes)
        ga_r, ga_i, gw_r, gw_i = sums.sum(1)
        return gx, ga_r, ga_i, gw_r, -gw_i, gD.sum(0), *g, None


class _Scan(torch.autograd.Function):
    """a_r, a_i (b or 1, l or 1, p), x_r, x_i (b, l, p), h_r, h_i (b, p) → y_r, y_i (b, l, p)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        a, x, h = inputs[0], inputs[2], inputs[4]
        b, length, p = x.shape
        W = lanes_of(as_array(h).dtype)
        by_bar = int(a.shape[1] > 1)
        y = (torch.empty_like(x), torch.empty_like(x))
        ctx.sizes = (length, p, W, a.shape[1] if a.shape[0] > 1 else 0, by_bar)
        parallel_for(_scan, b * p // W, as_arrays(*inputs), as_arrays(*y), ctx.sizes)
        ctx.save_for_backward(inputs[0], inputs[1], *y, *inputs[4:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy_r: Tensor, gy_i: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        a_r, _, y_r, _, h_r, _ = saved
        b, (_, p, W, _, _) = len(h_r), ctx.sizes
        ga = [a_r.new_zeros(b, a_r.shape[1], p) for _ in range(2)]
        g, gh = [torch.empty_like(y_r) for _ in range(2)], [torch.empty_like(h_r) for _ in range(2)]
        given = as_arrays(*saved, gy_r.contiguous(), gy_i.contiguous())
        parallel_for(_scan_backward, b * p // W, given, as_arrays(*ga, *g, *gh), ctx.sizes)
        ga = [v if len(a_r) == b else v.sum(0, keepdim=True) for v in ga]
        return *ga, *g, *gh
