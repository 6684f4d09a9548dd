"""Diagonal recurrences of complex states on a CPU, in one pass over the bars.

Glossary as in scan.py: b sequences · l bars · d channels · m complex states per channel · p complex states of a
sequence in ``diagonal_scan``. Also: W lanes of a vector, one channel per lane · k bars of the current block · _r, _i
real and imaginary part · gX gradient of X.

The kernels read every array as one-dimensional, channels last: x, y (b, l, d); a, w (m, d); h (b, m, d). The forward
pass stores the state before each block of BLOCK_BARS bars. Within a block, the outer loop runs over the states: h, a, w
and their gradients stay in registers while x stays in the first-level cache. The backward pass recomputes the states
block by block and runs the recurrence of the adjoint, g_{t−1} = conj(a) g_t + conj(w) gy_{t−1}.
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
from models.layers.kernels.simd import add, constant, fma, lanes_per_vector, load, mul, store, sub

BLOCK_BARS = 64
Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int]  # l, d, m, W
ScanSizes = tuple[int, int, int, int, int]  # l, p, W, and the strides of a: per sequence and per bar, in units of p


@njit(inline="always")
def _recur(a_r: Any, a_i: Any, h_r: Any, h_i: Any, x: Any) -> tuple[Any, Any]:
    """Real and imaginary part of a · h + x, for real x."""
    return fma(a_r, h_r, fma(a_i, sub(constant(h_i, 0.0), h_i), x)), fma(a_r, h_i, mul(a_i, h_r))


@njit(nogil=True, error_model="numpy", cache=True)
def _ssm(inputs: Arrays, outputs: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Fills ``y`` and replaces h by the last state, for items [first, stop). An item is W channels of one sequence.

    Stores the state before every block in ``starts`` (b, n_blocks, m, d), unless that array is empty. m is even.
    """
    x, a_r, a_i, w_r, w_i, D = inputs
    h_r, h_i, y, starts_r, starts_i = outputs
    length, d, m, W = sizes
    out = np.empty(BLOCK_BARS * W, x.dtype)
    n_blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    for item in range(first, stop):
        b = item * W // d
        c = item * W % d
        for block in range(n_blocks):
            first_bar = b * length + block * BLOCK_BARS
            k = min(BLOCK_BARS, length - block * BLOCK_BARS)
            for t in range(k):
                store(out, t * W, mul(load(D, c), load(x, (first_bar + t) * d + c)))
            for j in range(0, m, 2):
                a_index = j * d + c
                h_index = (b * m + j) * d + c
                starts_index = ((b * n_blocks + block) * m + j) * d + c
                a_r0, a_i0 = load(a_r, a_index), load(a_i, a_index)
                a_r1, a_i1 = load(a_r, a_index + d), load(a_i, a_index + d)
                w_r0, w_i0 = load(w_r, a_index), load(w_i, a_index)
                w_r1, w_i1 = load(w_r, a_index + d), load(w_i, a_index + d)
                h_r0, h_i0 = load(h_r, h_index), load(h_i, h_index)
                h_r1, h_i1 = load(h_r, h_index + d), load(h_i, h_index + d)
                if starts_r.size:
                    store(starts_r, starts_index, h_r0)
                    store(starts_i, starts_index, h_i0)
                    store(starts_r, starts_index + d, h_r1)
                    store(starts_i, starts_index + d, h_i1)
                minus_w_i0 = sub(constant(w_i0, 0.0), w_i0)
                minus_w_i1 = sub(constant(w_i1, 0.0), w_i1)
                for t in range(k):
                    xt = load(x, (first_bar + t) * d + c)
                    h_r0, h_i0 = _recur(a_r0, a_i0, h_r0, h_i0, xt)
                    h_r1, h_i1 = _recur(a_r1, a_i1, h_r1, h_i1, xt)
                    partial = fma(minus_w_i0, h_i0, fma(w_r0, h_r0, load(out, t * W)))
                    store(out, t * W, fma(minus_w_i1, h_i1, fma(w_r1, h_r1, partial)))
                store(h_r, h_index, h_r0)
                store(h_i, h_index, h_i0)
                store(h_r, h_index + d, h_r1)
                store(h_i, h_index + d, h_i1)
            for t in range(k):
                store(y, (first_bar + t) * d + c, load(out, t * W))


@njit(nogil=True, error_model="numpy", cache=True)
def _ssm_backward(inputs: Arrays, grads: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Computes the gradients for items [first, stop). An item is W channels of one sequence.

    Fills gx. Adds to ga, gw (b, m, d) and gD (b, d). Reads g (b, m, d) as the gradient of the last state and replaces
    it by the gradient of the initial state. gw_i gets the opposite sign; the caller changes it back.
    """
    x, a_r, a_i, w_r, w_i, D, starts_r, starts_i, gy = inputs
    g_r, g_i, gx, ga_r, ga_i, gw_r, gw_i, gD = grads
    length, d, m, W = sizes
    out, before_r, before_i = np.empty((3, BLOCK_BARS * W), x.dtype)
    n_blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    for item in range(first, stop):
        b = item * W // d
        c = item * W % d
        for block in range(n_blocks - 1, -1, -1):
            first_bar = b * length + block * BLOCK_BARS
            k = min(BLOCK_BARS, length - block * BLOCK_BARS)
            sum_D = load(gD, b * d + c)
            for t in range(k):
                g = load(gy, (first_bar + t) * d + c)
                store(out, t * W, mul(load(D, c), g))
                sum_D = fma(g, load(x, (first_bar + t) * d + c), sum_D)
            store(gD, b * d + c, sum_D)
            for j in range(m):
                a_index = j * d + c
                h_index = (b * m + j) * d + c
                starts_index = ((b * n_blocks + block) * m + j) * d + c
                ar, ai = load(a_r, a_index), load(a_i, a_index)
                wr, wi = load(w_r, a_index), load(w_i, a_index)
                hr, hi = load(starts_r, starts_index), load(starts_i, starts_index)
                for t in range(k):
                    store(before_r, t * W, hr)
                    store(before_i, t * W, hi)
                    hr, hi = _recur(ar, ai, hr, hi, load(x, (first_bar + t) * d + c))
                gr, gi = load(g_r, h_index), load(g_i, h_index)
                sum_ar, sum_ai = load(ga_r, h_index), load(ga_i, h_index)
                sum_wr, sum_wi = load(gw_r, h_index), load(gw_i, h_index)
                minus_ai = sub(constant(ai, 0.0), ai)
                minus_wi = sub(constant(wi, 0.0), wi)
                for t in range(k - 1, -1, -1):
                    g = load(gy, (first_bar + t) * d + c)
                    offset = t * W
                    sum_wr, sum_wi = fma(g, hr, sum_wr), fma(g, hi, sum_wi)
                    gr, gi = fma(g, wr, gr), fma(g, minus_wi, gi)
                    hr, hi = load(before_r, offset), load(before_i, offset)
                    store(out, offset, add(gr, load(out, offset)))
                    sum_ar = fma(gi, hi, fma(gr, hr, sum_ar))
                    sum_ai = fma(gi, hr, sub(sum_ai, mul(gr, hi)))
                    gr, gi = fma(ar, gr, mul(ai, gi)), fma(ar, gi, mul(minus_ai, gr))
                store(g_r, h_index, gr)
                store(g_i, h_index, gi)
                store(ga_r, h_index, sum_ar)
                store(ga_i, h_index, sum_ai)
                store(gw_r, h_index, sum_wr)
                store(gw_i, h_index, sum_wi)
            for t in range(k):
                store(gx, (first_bar + t) * d + c, load(out, t * W))


@njit(nogil=True, error_model="numpy", cache=True)
def _scan(inputs: Arrays, outputs: Arrays, sizes: ScanSizes, first: int, stop: int) -> None:
    """Fills y_t = a_t y_{t−1} + x_t from y_{−1} = h, for items [first, stop). An item is W states of one sequence.

    The coefficients a of sequence b and bar t begin at (a_sequence_stride · b + a_bar_stride · t) · p.
    """
    a_r, a_i, x_r, x_i, h_r, h_i = inputs
    y_r, y_i = outputs
    length, p, W, a_sequence_stride, a_bar_stride = sizes
    for item in range(first, stop):
        b = item * W // p
        c = item * W % p
        hr, hi = load(h_r, b * p + c), load(h_i, b * p + c)
        for t in range(length):
            a_index = (a_sequence_stride * b + a_bar_stride * t) * p + c
            index = (b * length + t) * p + c
            ar, ai = load(a_r, a_index), load(a_i, a_index)
            hr, hi = _recur(ar, ai, hr, hi, load(x_r, index))
            hi = add(hi, load(x_i, index))
            store(y_r, index, hr)
            store(y_i, index, hi)


@njit(nogil=True, error_model="numpy", cache=True)
def _scan_backward(inputs: Arrays, grads: Arrays, sizes: ScanSizes, first: int, stop: int) -> None:
    """Computes the gradients for items [first, stop). An item is W states of one sequence.

    Fills the gradients ``g`` (b, l, p) of x and ``gh`` (b, p) of h. Adds the gradient of a to ``ga`` (b, l or 1, p).
    """
    a_r, a_i, y_r, y_i, h_r, h_i, gy_r, gy_i = inputs
    ga_r, ga_i, g_r, g_i, gh_r, gh_i = grads
    length, p, W, a_sequence_stride, a_bar_stride = sizes
    for item in range(first, stop):
        b = item * W // p
        c = item * W % p
        gr = constant(load(h_r, b * p + c), 0.0)
        gi = gr
        for t in range(length - 1, -1, -1):
            a_index = (a_sequence_stride * b + a_bar_stride * t) * p + c
            index = (b * length + t) * p + c
            ga_index = (b * (length if a_bar_stride else 1) + a_bar_stride * t) * p + c
            gr, gi = add(gr, load(gy_r, index)), add(gi, load(gy_i, index))
            store(g_r, index, gr)
            store(g_i, index, gi)
            hr = load(y_r, index - p) if t else load(h_r, b * p + c)
            hi = load(y_i, index - p) if t else load(h_i, b * p + c)
            store(ga_r, ga_index, fma(gi, hi, fma(gr, hr, load(ga_r, ga_index))))
            store(ga_i, ga_index, fma(gi, hr, sub(load(ga_i, ga_index), mul(gr, hi))))
            ar, ai = load(a_r, a_index), load(a_i, a_index)
            gr, gi = fma(ar, gr, mul(ai, gi)), sub(mul(ar, gi), mul(ai, gr))
        store(gh_r, b * p + c, gr)
        store(gh_i, b * p + c, gi)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=True)
def ssm_step(x: Array, weights: Array, D: Array, h: Array, y: Array, h_after: Array) -> None:
    """Computes one bar: fills the output ``y`` (b, d) and the new state ``h_after`` (b, d, m, 2).

    ``x`` (b, d), ``D`` (d,), ``h`` (b, d, m, 2). ``weights`` (d, m, 4): real and imaginary part of a, then of w.
    """
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            xt = x[b, c]
            total = D[c] * x[b, c]
            for j in range(weights.shape[1]):
                a_r, a_i = weights[c, j, 0], weights[c, j, 1]
                w_r, w_i = weights[c, j, 2], weights[c, j, 3]
                real = a_r * h[b, c, j, 0] - a_i * h[b, c, j, 1] + xt
                imag = a_r * h[b, c, j, 1] + a_i * h[b, c, j, 0]
                h_after[b, c, j, 0] = real
                h_after[b, c, j, 1] = imag
                total += w_r * real - w_i * imag
            y[b, c] = total


@njit(nogil=True, error_model="numpy", cache=True)
def ssm_gap_step(
    x: Array, gap: Array, weights: Array, hold: Array, D: Array, h: Array, y: Array, h_after: Array
) -> None:
    """As ``ssm_step``, by zero-order hold over a gap g (b,) in bars: h_after = a · h + (a − 1) · s · x, a = exp(z g).

    ``hold`` (d, m, 4): real and imaginary part of z = AΔ, then of s = 1 / (exp(z) − 1). From ``weights``, only w is
    read. A gap of 0 marks a padded bar: the state does not change, and x counts as 0.
    """
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            xt = x[b, c] if gap[b] > 0 else D[c] * 0  # the value of a padded bar is ignored, even NaN
            total = D[c] * 0
            for j in range(weights.shape[1]):
                z_r = hold[c, j, 0] * gap[b]
                half = hold[c, j, 1] * gap[b] / 2
                growth = math.expm1(z_r)
                sine = math.sin(half)
                e_r = growth * (1 - 2 * sine * sine) - 2 * sine * sine  # Re(a − 1), accurate also for a short gap
                a_r, a_i = 1 + e_r, (1 + growth) * 2 * sine * math.cos(half)
                s_r, s_i = hold[c, j, 2], hold[c, j, 3]
                real = a_r * h[b, c, j, 0] - a_i * h[b, c, j, 1] + (e_r * s_r - a_i * s_i) * xt
                imag = a_r * h[b, c, j, 1] + a_i * h[b, c, j, 0] + (e_r * s_i + a_i * s_r) * xt
                h_after[b, c, j, 0] = real
                h_after[b, c, j, 1] = imag
                total += weights[c, j, 2] * real - weights[c, j, 3] * imag
            y[b, c] = total + D[c] * xt


def diagonal_ssm(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs y (b, l, d) and the last state (b, d, m), see ``scan.diagonal_ssm``. ``h`` is the initial state."""
    d, m = a.shape
    extra_channels = -d % lanes_per_vector(as_array(D).dtype)
    extra_states = m % 2
    real_and_imag = [v.transpose(-1, -2) for z in (a, w, h) for v in (z.real, z.imag)]  # a_r, a_i, w_r, w_i, h_r, h_i
    if extra_channels or extra_states:  # the kernels process whole vectors and pairs of states; the padding stays zero
        x = pad(x, (0, extra_channels))
        D = pad(D, (0, extra_channels))
        real_and_imag = [pad(v, (0, extra_channels, 0, extra_states)) for v in real_and_imag]
    padded = [v.contiguous() for v in (x, *real_and_imag[:4], D, *real_and_imag[4:])]
    y, real, imag = _Ssm.apply(*padded, torch.is_grad_enabled())
    return y[..., :d], torch.complex(real, imag)[:, :m, :d].transpose(1, 2)


def diagonal_scan(a: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states (b, l, p) and the last state (b, p), as ``scan.diagonal_scan``."""
    p = x.shape[2]
    extra_states = -p % lanes_per_vector(np.float32 if x.dtype == torch.complex64 else np.float64)
    real_and_imag = [pad(v, (0, extra_states)).contiguous() for z in (a, x, h) for v in (z.real, z.imag)]
    states = torch.complex(*_Scan.apply(*real_and_imag))[..., :p]
    return states, states[:, -1]


class _Ssm(torch.autograd.Function):
    """x, a_r, a_i, w_r, w_i, D, h_r, h_i → y and the last h_r, h_i. a, w are (m, d), h is (b, m, d)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, h_r, h_i, stores_starts = arguments
        b, length, d = inputs[0].shape
        m = len(inputs[1])
        W = lanes_per_vector(as_array(h_r).dtype)
        y = torch.empty_like(inputs[0])
        last = (h_r.clone(), h_i.clone())
        starts = h_r.new_empty(2, b, -(-length // BLOCK_BARS), m, d) if stores_starts else h_r.new_empty(2, 0)
        ctx.sizes = (length, d, m, W)
        parallel_for(_ssm, b * d // W, as_arrays(*inputs), as_arrays(*last, y, *starts), ctx.sizes)
        ctx.save_for_backward(*inputs, starts)
        return y, *last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh_r: Tensor, gh_i: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        b = len(gy)
        _, d, m, W = ctx.sizes
        g = (gh_r.contiguous().clone(), gh_i.contiguous().clone())
        gx = torch.empty_like(inputs[0])
        sums = gy.new_zeros(4, b, m, d)
        gD = gy.new_zeros(b, d)
        arrays = as_arrays(*inputs, *starts, gy.contiguous())
        parallel_for(_ssm_backward, b * d // W, arrays, as_arrays(*g, gx, *sums, gD), ctx.sizes)
        ga_r, ga_i, gw_r, gw_i = sums.sum(1)
        return gx, ga_r, ga_i, gw_r, -gw_i, gD.sum(0), *g, None


class _Scan(torch.autograd.Function):
    """a_r, a_i (b or 1, l or 1, p), x_r, x_i (b, l, p), h_r, h_i (b, p) → y_r, y_i (b, l, p)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        a, _, x, _, h, _ = inputs
        b, length, p = x.shape
        W = lanes_per_vector(as_array(h).dtype)
        a_bar_stride = int(a.shape[1] > 1)
        y = (torch.empty_like(x), torch.empty_like(x))
        ctx.sizes = (length, p, W, a.shape[1] if a.shape[0] > 1 else 0, a_bar_stride)
        parallel_for(_scan, b * p // W, as_arrays(*inputs), as_arrays(*y), ctx.sizes)
        ctx.save_for_backward(inputs[0], inputs[1], *y, *inputs[4:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy_r: Tensor, gy_i: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        a_r, _, y_r, _, h_r, _ = saved
        b = len(h_r)
        _, p, W, _, _ = ctx.sizes
        ga = [a_r.new_zeros(b, a_r.shape[1], p) for _ in range(2)]
        g = [torch.empty_like(y_r) for _ in range(2)]
        gh = [torch.empty_like(h_r) for _ in range(2)]
        arrays = as_arrays(*saved, gy_r.contiguous(), gy_i.contiguous())
        parallel_for(_scan_backward, b * p // W, arrays, as_arrays(*ga, *g, *gh), ctx.sizes)
        ga = [v if len(a_r) == b else v.sum(0, keepdim=True) for v in ga]
        return *ga, *g, *gh
