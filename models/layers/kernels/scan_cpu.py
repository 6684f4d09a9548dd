"""The selective scan on a CPU: one pass over the bars, states in registers, run again in the backward pass.

Glossary as in scan.py: b sequences · l bars · d channels · n states · h state. Further: W lanes of a vector, one
channel each · T = BLOCK_BARS, the bars between two stored states · k bars of the block at hand, from row ``begin`` on ·
c first channel, j state at hand.

Within a block the outer loop runs over the n states, so A, h and their gradients stay in registers while the block's
inputs stay in the first-level cache. Work is cut into items, (sequence, W channels) forward and (sequence, channel
group) backward, which threads share. Arrays are flat, channels last: u, delta, z, y (b, l, d); A (n, d); B, C (b, l,
n); h (b, n, d); D, bias (d,); gaps (b, l). An array of no elements stands for None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from models.layers.kernels.parallel import as_array, as_arrays, parallel_for
from models.layers.kernels.simd import (
    add,
    constant,
    exp,
    fma,
    lanes_of,
    load,
    mul,
    phi,
    phi_slope,
    reduce_add,
    sigmoid,
    softplus,
    splat,
    store,
    sub,
)

BLOCK_BARS = 64
ZOH, EULER = 1, 2  # places in scan.RULES
Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, bool, int]  # l, d, n, W, softplus, rule


@njit(inline="always")
def _decay(rule: int, dA: Any) -> Any:
    """Ā of ΔA."""
    return add(constant(dA, 1.0), dA) if rule == EULER else exp(dA)


@njit(inline="always")
def _step_of(delta: Array, bias: Array, gaps: Array, at: int, channel: int, bar: int, soft: bool) -> tuple[Any, Any]:
    """Δ of a bar's W channels, and dΔ / d(delta)."""
    raw = load(delta, at)
    if bias.size:
        raw = add(raw, load(bias, channel))
    slope = constant(raw, 1.0)
    if soft:
        slope, raw = sigmoid(raw), softplus(raw)
    if gaps.size:
        gap = splat(gaps, bar)
        slope, raw = mul(slope, gap), mul(raw, gap)
    return raw, slope


@njit(inline="always")
def _rows(like_this: Array, width: int) -> Array:
    """Space for ``width`` values of each bar of a block."""
    return np.empty(BLOCK_BARS * width, like_this.dtype)


@njit(nogil=True, error_model="numpy", cache=True)
def _enter(inputs: Arrays, scratch: Arrays, sizes: Sizes, begin: int, k: int, c: int) -> None:
    """Fills step Δ, its slope, drive (what B multiplies) and out (D u) for the block's bars."""
    u, delta, _, _, _, D, _, bias, gaps = inputs
    step, slope, drive, out = scratch
    _, d, _, W, soft, rule = sizes
    for t in range(k):
        at = (begin + t) * d + c
        dt, dt_slope = _step_of(delta, bias, gaps, at, c, begin + t, soft)
        x = load(u, at)
        store(step, t * W, dt)
        store(slope, t * W, dt_slope)
        store(drive, t * W, x if rule == ZOH else mul(dt, x))
        store(out, t * W, mul(load(D, c), x) if D.size else constant(x, 0.0))


@njit(nogil=True, error_model="numpy", cache=True)
def _forward(inputs: Arrays, outputs: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Fills y, replaces h by the last state, and keeps in ``starts`` (b, blocks, n, d) the one before every block (none
    kept if it is empty), for items (sequence, W channels) in [first, stop)."""
    u, _, A, B, C, _, z, _, _ = inputs
    y, h, starts = outputs
    length, d, n, W, _, rule = sizes
    step, _, drive, out = scratch = _rows(u, W), _rows(u, W), _rows(u, W), _rows(u, W)
    blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    for item in range(first, stop):
        b, c = item * W // d, item * W % d
        for block in range(blocks):
            begin, k = b * length + block * BLOCK_BARS, min(BLOCK_BARS, length - block * BLOCK_BARS)
            _enter(inputs, scratch, sizes, begin, k, c)
            for j in range(0, n, 2):
                here, kept = (b * n + j) * d + c, ((b * blocks + block) * n + j) * d + c
                a0, a1, s0, s1 = load(A, j * d + c), load(A, j * d + d + c), load(h, here), load(h, here + d)
                if starts.size:
                    store(starts, kept, s0)
                    store(starts, kept + d, s1)
                for t in range(k):
                    w, bar = t * W, (begin + t) * n + j
                    dt, x = load(step, w), load(drive, w)
                    decay0, decay1 = _decay(rule, mul(dt, a0)), _decay(rule, mul(dt, a1))
                    x0, x1 = mul(x, splat(B, bar)), mul(x, splat(B, bar + 1))
                    if rule == ZOH:
                        x0 = mul(x0, mul(dt, phi(mul(dt, a0), decay0)))
                        x1 = mul(x1, mul(dt, phi(mul(dt, a1), decay1)))
                    s0, s1 = fma(decay0, s0, x0), fma(decay1, s1, x1)
                    store(out, w, fma(s1, splat(C, bar + 1), fma(s0, splat(C, bar), load(out, w))))
                store(h, here, s0)
                store(h, here + d, s1)
            for t in range(k):
                at, value = (begin + t) * d + c, load(out, t * W)
                if z.size:
                    gate = load(z, at)
                    value = mul(value, mul(gate, sigmoid(gate)))
                store(y, at, value)


@njit(nogil=True, error_model="numpy", cache=True)
def _again(
    inputs: Arrays, scratch: Arrays, kept: Arrays, sizes: Sizes, start: Any, begin: int, k: int, c: int, j: int
) -> Any:
    """State j run through the block from ``start``: its decays and the state before each bar kept, the last given."""
    _, _, A, B, C, _, z, _, _ = inputs
    step, _, drive, out = scratch
    decays, states = kept
    _, d, n, W, _, rule = sizes
    a, s = load(A, j * d + c), start
    for t in range(k):
        w, bar = t * W, (begin + t) * n + j
        dt, x = load(step, w), mul(load(drive, w), splat(B, bar))
        decay = _decay(rule, mul(dt, a))
        if rule == ZOH:
            x = mul(x, mul(dt, phi(mul(dt, a), decay)))
        store(decays, w, decay)
        store(states, w, s)
        s = fma(decay, s, x)
        if z.size:
            store(out, w, fma(s, splat(C, bar), load(out, w)))
    return s


@njit(nogil=True, error_model="numpy", cache=True)
def _adjoint(
    inputs: Arrays,
    scratch: Arrays,
    kept: Arrays,
    sums: Arrays,
    sizes: Sizes,
    s: Any,
    g: Any,
    sum_A: Any,
    begin: int,
    k: int,
    c: int,
    j: int,
) -> tuple[Any, Any]:
    """State j run backwards from its last value ``s`` and gradient ``g``: the gradient before the block, and that of A
    added to ``sum_A``. What B, C, drive and Δ get is added to ``sums``."""
    _, _, A, B, C, _, _, _, _ = inputs
    step, _, drive, _ = scratch
    decays, states = kept
    grad, gx, gdt, sum_B, sum_C = sums
    _, d, n, W, _, rule = sizes
    a, row = load(A, j * d + c), j * BLOCK_BARS * W
    for t in range(k - 1, -1, -1):
        w, bar = t * W, (begin + t) * n + j
        gy, dt, decay, x, before = load(grad, w), load(step, w), load(decays, w), load(drive, w), load(states, w)
        store(sum_C, row + w, fma(gy, s, load(sum_C, row + w)))
        s = before
        g = fma(gy, splat(C, bar), g)
        back = mul(g, decay)
        if rule == ZOH:
            dA, xb = mul(dt, a), mul(x, splat(B, bar))
            held = mul(g, mul(dt, phi(dA, decay)))
            bend = mul(mul(dt, dt), phi_slope(dA, decay))
            sum_A = fma(g, fma(mul(dt, decay), before, mul(xb, bend)), sum_A)
            store(gdt, w, fma(back, fma(before, a, xb), load(gdt, w)))
        else:
            held, q = g, mul(g if rule == EULER else back, before)
            sum_A = fma(q, dt, sum_A)
            store(gdt, w, fma(q, a, load(gdt, w)))
        store(sum_B, row + w, fma(held, x, load(sum_B, row + w)))
        store(gx, w, fma(held, splat(B, bar), load(gx, w)))
        g = back
    return g, sum_A


@njit(nogil=True, error_model="numpy", cache=True)
def _leave(
    inputs: Arrays,
    scratch: Arrays,
    sums: Arrays,
    grads: Arrays,
    gy: Array,
    sizes: Sizes,
    b: int,
    begin: int,
    k: int,
    c: int,
) -> None:
    """The block's sums through step size, skip and gate into the gradients of its inputs."""
    u, _, _, _, _, D, z, bias, _ = inputs
    step, slope, _, out = scratch
    grad, gx, gdt, _, _ = sums
    gu, gdelta, gD, gz, gbias = grads
    _, d, _, W, _, rule = sizes
    for t in range(k):
        at, w = (begin + t) * d + c, t * W
        x, g, into, by_dt = load(u, at), load(grad, w), load(gx, w), load(gdt, w)
        if rule != ZOH:
            into, by_dt = mul(into, load(step, w)), fma(into, x, by_dt)
        if D.size:
            into = fma(g, load(D, c), into)
            store(gD, b * d + c, fma(g, x, load(gD, b * d + c)))
        by_dt = mul(by_dt, load(slope, w))
        store(gu, at, into)
        store(gdelta, at, by_dt)
        if bias.size:
            store(gbias, b * d + c, add(by_dt, load(gbias, b * d + c)))
        if z.size:
            gate = load(z, at)
            share = sigmoid(gate)
            bent = fma(mul(gate, share), sub(constant(gate, 1.0), share), share)
            store(gz, at, mul(mul(load(gy, at), load(out, w)), bent))


@njit(nogil=True, error_model="numpy", cache=True)
def _backward(
    inputs: Arrays,
    starts: Array,
    gy: Array,
    states: Arrays,
    grads: Arrays,
    sizes: Sizes,
    groups: int,
    first: int,
    stop: int,
) -> None:
    """Gradients of items (sequence, group of channels) in [first, stop). Of ``states``, gh is the last state's gradient
    and is replaced by the first one's; gA (b, n, d) is added to; gB, gC (groups, b, l, n) are filled."""
    u, _, _, _, _, _, z, _, _ = inputs
    gh, gA, gB, gC = states
    length, d, n, W, _, _ = sizes
    scratch = _rows(u, W), _rows(u, W), _rows(u, W), _rows(u, W)
    kept = _rows(u, W), _rows(u, W)
    grad, gx, gdt, sum_B, sum_C = sums = _rows(u, W), _rows(u, W), _rows(u, W), _rows(u, W * n), _rows(u, W * n)
    blocks, sequences, span = (length + BLOCK_BARS - 1) // BLOCK_BARS, u.size // (length * d), d // groups
    for item in range(first, stop):
        b, group = item // groups, item % groups
        for block in range(blocks - 1, -1, -1):
            begin, k = b * length + block * BLOCK_BARS, min(BLOCK_BARS, length - block * BLOCK_BARS)
            sum_B[:], sum_C[:] = 0, 0
            for c in range(group * span, (group + 1) * span, W):
                _enter(inputs, scratch, sizes, begin, k, c)
                gx[:], gdt[:] = 0, 0
                for t in range(k):
                    g = load(gy, (begin + t) * d + c)
                    if z.size:
                        gate = load(z, (begin + t) * d + c)
                        g = mul(g, mul(gate, sigmoid(gate)))
                    store(grad, t * W, g)
                for j in range(n):
                    here, start = (b * n + j) * d + c, load(starts, ((b * blocks + block) * n + j) * d + c)
                    s = _again(inputs, scratch, kept, sizes, start, begin, k, c, j)
                    g, sum_A = load(gh, here), load(gA, here)
                    g, sum_A = _adjoint(inputs, scratch, kept, sums, sizes, s, g, sum_A, begin, k, c, j)
                    store(gh, here, g)
                    store(gA, here, sum_A)
                _leave(inputs, scratch, sums, grads, gy, sizes, b, begin, k, c)
            for t in range(k):
                for j in range(n):
                    at = ((group * sequences + b) * length + block * BLOCK_BARS + t) * n + j
                    gB[at] = reduce_add(load(sum_B, (j * BLOCK_BARS + t) * W))
                    gC[at] = reduce_add(load(sum_C, (j * BLOCK_BARS + t) * W))


def selective(inputs: Sequence[Tensor | None], h: Tensor, soft: bool, rule: int) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, n), all of one dtype, float32 or float64.

    ``inputs``: u, delta (b, l, d), A (d, n), B, C (b, l, n), D (d,), z (b, l, d), bias (d,), gaps (b, l).
    """
    u, delta, A, B, C, D, z, bias, gaps = (h.new_empty(0) if v is None else v for v in inputs)
    d, n = A.shape
    channels, states = -d % lanes_of(as_array(h.new_empty(0)).dtype), n % 2
    A, h = A.t(), h.transpose(1, 2)
    if channels or states:  # the kernels know whole vectors and pairs of states; what is added stays zero
        A, h = pad(A, (0, channels, 0, states), value=-1.0), pad(h, (0, channels, 0, states))
        B, C = pad(B, (0, states)), pad(C, (0, states))
        u, delta, D, z, bias = (pad(v, (0, channels)) if v.numel() else v for v in (u, delta, D, z, bias))
    given = [v.contiguous() for v in (u, delta, A, B, C, D, z, bias, gaps, h)]
    y, last = _Selective.apply(*given, soft, rule, torch.is_grad_enabled())
    return y[..., :d], last[:, :n, :d].transpose(1, 2)


class _Selective(torch.autograd.Function):
    """As ``selective``, with A (n, d) and h (b, n, d), whole vectors of channels and pairs of states."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, h, soft, rule, keep = arguments
        (b, length, d), n = inputs[0].shape, len(inputs[2])
        sizes = (length, d, n, lanes_of(as_array(h).dtype), soft, rule)
        y, last = torch.empty_like(inputs[0]), h.clone()
        starts = h.new_empty(b, -(-length // BLOCK_BARS), n, d) if keep else h.new_empty(0)
        parallel_for(_forward, b * d // sizes[3], as_arrays(*inputs), as_arrays(y, last, starts), sizes)
        ctx.save_for_backward(*inputs, starts)
        ctx.sizes = sizes
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        u, delta, _, B, C, D, z, bias, _ = inputs
        (b, _, d), (_, _, n, W, _, _) = u.shape, ctx.sizes
        groups = next((g for g in range(1, d // W) if b * g >= torch.get_num_threads() and d // W % g == 0), d // W)
        gy, gh = gy.contiguous(), gh.contiguous().clone()
        gA, gB, gC = u.new_zeros(b, n, d), u.new_empty(groups, *B.shape), u.new_empty(groups, *C.shape)
        gD, gbias = (u.new_zeros(b if v.numel() else 0, d) for v in (D, bias))
        gu, gdelta, gz = (torch.empty_like(v) for v in (u, delta, z))
        states, grads = as_arrays(gh, gA, gB, gC), as_arrays(gu, gdelta, gD, gz, gbias)
        parallel_for(
            _backward, b * groups, as_arrays(*inputs), as_array(starts), as_array(gy), states, grads, ctx.sizes, groups
        )
        gB, gC = (v[0] if groups == 1 else v.sum(0) for v in (gB, gC))
        by_input = (gu, gdelta, gA.sum(0), gB, gC, gD.sum(0), gz, gbias.sum(0), None, gh)
        given = [*inputs, gh]
        return *(g if v.numel() else None for g, v in zip(by_input, given, strict=True)), None, None, None
