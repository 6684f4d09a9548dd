"""The selective scan on a CPU, in one pass over the bars. The backward pass recomputes the states.

Glossary as in scan.py: b sequences · l bars · d channels · n states per channel · h state. Also: W lanes of a vector,
one channel per lane · k bars of the current block · begin position of its first bar in (b, l) · [c, c + W) channels of
the current vector · j index of the current state · gX gradient of X.

The forward pass stores the state before each block of BLOCK_BARS bars. Within a block, the outer loop runs over the n
states, so A, h and their gradients stay in registers while the block's inputs stay in the first-level cache. Threads
share the work by items. An item is W channels of one sequence in the forward pass, and a group of channels of one
sequence in the backward pass.

The kernels read every array as one-dimensional, channels last: u, delta, z, y (b, l, d); A (n, d); B, C (b, l, n);
h (b, n, d); D, bias (d,); gaps (b, l). An array without elements stands for None.
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
    lanes_per_vector,
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
ZOH, EULER = 1, 2  # positions in scan.DISCRETISATIONS
Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, bool, int]  # l, d, n, W, softplus, rule


@njit(inline="always")
def _decay(rule: int, dA: Any) -> Any:
    """The decay Ā of a bar, from dA = Δ A."""
    return add(constant(dA, 1.0), dA) if rule == EULER else exp(dA)


@njit(inline="always")
def _step_size(
    delta: Array, bias: Array, gaps: Array, index: int, channel: int, bar: int, soft: bool
) -> tuple[Any, Any]:
    """The step sizes Δ of W channels at one bar, and dΔ / d(delta)."""
    step = load(delta, index)
    if bias.size:
        step = add(step, load(bias, channel))
    slope = constant(step, 1.0)
    if soft:
        slope = sigmoid(step)
        step = softplus(step)
    if gaps.size:
        gap = splat(gaps, bar)
        slope = mul(slope, gap)
        step = mul(step, gap)
    return step, slope


@njit(inline="always")
def _block_buffer(like: Array, width: int) -> Array:
    """Uninitialised memory for ``width`` values per bar of a block, in the dtype of ``like``."""
    return np.empty(BLOCK_BARS * width, like.dtype)


@njit(nogil=True, error_model="numpy", cache=True)
def _load_block(inputs: Arrays, scratch: Arrays, sizes: Sizes, begin: int, k: int, c: int) -> None:
    """Fills the block buffers of ``scratch``: step (Δ), slope (dΔ / d(delta)), drive (the factor of B) and out (D
    u)."""
    u, delta, _, _, _, D, _, bias, gaps = inputs
    step, slope, drive, out = scratch
    _, d, _, W, soft, rule = sizes
    for t in range(k):
        index = (begin + t) * d + c
        dt, dt_slope = _step_size(delta, bias, gaps, index, c, begin + t, soft)
        x = load(u, index)
        store(step, t * W, dt)
        store(slope, t * W, dt_slope)
        store(drive, t * W, x if rule == ZOH else mul(dt, x))
        store(out, t * W, mul(load(D, c), x) if D.size else constant(x, 0.0))


@njit(nogil=True, error_model="numpy", cache=True)
def _forward(inputs: Arrays, outputs: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Fills y and replaces h by the last state, for items [first, stop).

    Stores the state before every block in ``starts`` (b, n_blocks, n, d), unless that array is empty. n is even.
    """
    u, _, A, B, C, _, z, _, _ = inputs
    y, h, starts = outputs
    length, d, n, W, _, rule = sizes
    scratch = _block_buffer(u, W), _block_buffer(u, W), _block_buffer(u, W), _block_buffer(u, W)
    step, _, drive, out = scratch
    n_blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    for item in range(first, stop):
        b = item * W // d
        c = item * W % d
        for block in range(n_blocks):
            begin = b * length + block * BLOCK_BARS
            k = min(BLOCK_BARS, length - block * BLOCK_BARS)
            _load_block(inputs, scratch, sizes, begin, k, c)
            for j in range(0, n, 2):
                h_index = (b * n + j) * d + c
                starts_index = ((b * n_blocks + block) * n + j) * d + c
                a0 = load(A, j * d + c)
                a1 = load(A, j * d + d + c)
                s0 = load(h, h_index)
                s1 = load(h, h_index + d)
                if starts.size:
                    store(starts, starts_index, s0)
                    store(starts, starts_index + d, s1)
                for t in range(k):
                    w = t * W
                    bc_index = (begin + t) * n + j
                    dt = load(step, w)
                    x = load(drive, w)
                    decay0 = _decay(rule, mul(dt, a0))
                    decay1 = _decay(rule, mul(dt, a1))
                    x0 = mul(x, splat(B, bc_index))
                    x1 = mul(x, splat(B, bc_index + 1))
                    if rule == ZOH:
                        x0 = mul(x0, mul(dt, phi(mul(dt, a0), decay0)))
                        x1 = mul(x1, mul(dt, phi(mul(dt, a1), decay1)))
                    s0 = fma(decay0, s0, x0)
                    s1 = fma(decay1, s1, x1)
                    store(out, w, fma(s1, splat(C, bc_index + 1), fma(s0, splat(C, bc_index), load(out, w))))
                store(h, h_index, s0)
                store(h, h_index + d, s1)
            for t in range(k):
                index = (begin + t) * d + c
                value = load(out, t * W)
                if z.size:
                    gate = load(z, index)
                    value = mul(value, mul(gate, sigmoid(gate)))
                store(y, index, value)


@njit(nogil=True, error_model="numpy", cache=True)
def _recompute_states(
    inputs: Arrays, scratch: Arrays, recomputed: Arrays, sizes: Sizes, start: Any, begin: int, k: int, c: int, j: int
) -> Any:
    """State j after the block, computed again from its value ``start`` before the block.

    Fills ``recomputed`` with the decay of each bar and the state before each bar.
    """
    _, _, A, B, C, _, z, _, _ = inputs
    step, _, drive, out = scratch
    decays, states = recomputed
    _, d, n, W, _, rule = sizes
    a = load(A, j * d + c)
    s = start
    for t in range(k):
        w = t * W
        bc_index = (begin + t) * n + j
        dt = load(step, w)
        x = mul(load(drive, w), splat(B, bc_index))
        decay = _decay(rule, mul(dt, a))
        if rule == ZOH:
            x = mul(x, mul(dt, phi(mul(dt, a), decay)))
        store(decays, w, decay)
        store(states, w, s)
        s = fma(decay, s, x)
        if z.size:
            store(out, w, fma(s, splat(C, bc_index), load(out, w)))
    return s


@njit(nogil=True, error_model="numpy", cache=True)
def _adjoint(
    inputs: Arrays,
    scratch: Arrays,
    recomputed: Arrays,
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
    """The gradient of state j before the block, and ``sum_A`` plus the block's gradient of A.

    Runs backwards from the last state ``s`` and its gradient ``g``. Adds the gradients of B, C, drive and Δ to
    ``sums``.
    """
    _, _, A, B, C, _, _, _, _ = inputs
    step, _, drive, _ = scratch
    decays, states = recomputed
    grad, gx, gdt, sum_B, sum_C = sums
    _, d, n, W, _, rule = sizes
    a = load(A, j * d + c)
    row = j * BLOCK_BARS * W
    for t in range(k - 1, -1, -1):
        w = t * W
        bc_index = (begin + t) * n + j
        gy = load(grad, w)
        dt = load(step, w)
        decay = load(decays, w)
        x = load(drive, w)
        before = load(states, w)
        store(sum_C, row + w, fma(gy, s, load(sum_C, row + w)))
        s = before
        g = fma(gy, splat(C, bc_index), g)
        g_before = mul(g, decay)
        if rule == ZOH:
            dA = mul(dt, a)
            xb = mul(x, splat(B, bc_index))
            g_input = mul(g, mul(dt, phi(dA, decay)))
            hold_slope = mul(mul(dt, dt), phi_slope(dA, decay))
            sum_A = fma(g, fma(mul(dt, decay), before, mul(xb, hold_slope)), sum_A)
            store(gdt, w, fma(g_before, fma(before, a, xb), load(gdt, w)))
        else:
            g_input = g
            g_dA = mul(g if rule == EULER else g_before, before)
            sum_A = fma(g_dA, dt, sum_A)
            store(gdt, w, fma(g_dA, a, load(gdt, w)))
        store(sum_B, row + w, fma(g_input, x, load(sum_B, row + w)))
        store(gx, w, fma(g_input, splat(B, bc_index), load(gx, w)))
        g = g_before
    return g, sum_A


@njit(nogil=True, error_model="numpy", cache=True)
def _input_gradients(
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
    """Fills the gradients of the block's inputs u, delta and z, and adds to those of D and bias.

    ``sums`` holds the gradients of drive and Δ; this function applies the chain rule through step size, skip and gate.
    """
    u, _, _, _, _, D, z, bias, _ = inputs
    step, slope, _, out = scratch
    grad, gx, gdt, _, _ = sums
    gu, gdelta, gD, gz, gbias = grads
    _, d, _, W, _, rule = sizes
    for t in range(k):
        index = (begin + t) * d + c
        w = t * W
        x = load(u, index)
        g = load(grad, w)
        g_u = load(gx, w)
        g_delta = load(gdt, w)
        if rule != ZOH:
            g_delta = fma(g_u, x, g_delta)
            g_u = mul(g_u, load(step, w))
        if D.size:
            g_u = fma(g, load(D, c), g_u)
            store(gD, b * d + c, fma(g, x, load(gD, b * d + c)))
        g_delta = mul(g_delta, load(slope, w))
        store(gu, index, g_u)
        store(gdelta, index, g_delta)
        if bias.size:
            store(gbias, b * d + c, add(g_delta, load(gbias, b * d + c)))
        if z.size:
            gate = load(z, index)
            gate_sigmoid = sigmoid(gate)
            silu_slope = fma(mul(gate, gate_sigmoid), sub(constant(gate, 1.0), gate_sigmoid), gate_sigmoid)
            store(gz, index, mul(mul(load(gy, index), load(out, w)), silu_slope))


@njit(nogil=True, error_model="numpy", cache=True)
def _backward(
    inputs: Arrays,
    starts: Array,
    gy: Array,
    state_grads: Arrays,
    grads: Arrays,
    sizes: Sizes,
    n_groups: int,
    first: int,
    stop: int,
) -> None:
    """Computes the gradients for items [first, stop). An item is a group of channels of one sequence.

    ``state_grads``: gh, gA, gB and gC. Reads gh as the gradient of the last state and replaces it by the gradient of
    the initial state. Adds to gA (b, n, d). Fills gB and gC (n_groups, b, l, n).
    """
    u, _, _, _, _, _, z, _, _ = inputs
    gh, gA, gB, gC = state_grads
    length, d, n, W, _, _ = sizes
    scratch = _block_buffer(u, W), _block_buffer(u, W), _block_buffer(u, W), _block_buffer(u, W)
    recomputed = _block_buffer(u, W), _block_buffer(u, W)
    grad, gx, gdt = _block_buffer(u, W), _block_buffer(u, W), _block_buffer(u, W)
    sum_B, sum_C = _block_buffer(u, W * n), _block_buffer(u, W * n)
    sums = grad, gx, gdt, sum_B, sum_C
    n_blocks = (length + BLOCK_BARS - 1) // BLOCK_BARS
    n_sequences = u.size // (length * d)
    group_width = d // n_groups
    for item in range(first, stop):
        b = item // n_groups
        group = item % n_groups
        for block in range(n_blocks - 1, -1, -1):
            begin = b * length + block * BLOCK_BARS
            k = min(BLOCK_BARS, length - block * BLOCK_BARS)
            sum_B[:] = 0
            sum_C[:] = 0
            for c in range(group * group_width, (group + 1) * group_width, W):
                _load_block(inputs, scratch, sizes, begin, k, c)
                gx[:] = 0
                gdt[:] = 0
                for t in range(k):
                    g = load(gy, (begin + t) * d + c)
                    if z.size:
                        gate = load(z, (begin + t) * d + c)
                        g = mul(g, mul(gate, sigmoid(gate)))
                    store(grad, t * W, g)
                for j in range(n):
                    h_index = (b * n + j) * d + c
                    start = load(starts, ((b * n_blocks + block) * n + j) * d + c)
                    s = _recompute_states(inputs, scratch, recomputed, sizes, start, begin, k, c, j)
                    g = load(gh, h_index)
                    sum_A = load(gA, h_index)
                    g, sum_A = _adjoint(inputs, scratch, recomputed, sums, sizes, s, g, sum_A, begin, k, c, j)
                    store(gh, h_index, g)
                    store(gA, h_index, sum_A)
                _input_gradients(inputs, scratch, sums, grads, gy, sizes, b, begin, k, c)
            for t in range(k):
                for j in range(n):
                    index = ((group * n_sequences + b) * length + block * BLOCK_BARS + t) * n + j
                    gB[index] = reduce_add(load(sum_B, (j * BLOCK_BARS + t) * W))
                    gC[index] = reduce_add(load(sum_C, (j * BLOCK_BARS + t) * W))


def selective(inputs: Sequence[Tensor | None], h: Tensor, soft: bool, rule: int) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, n). All tensors have one dtype, float32 or float64.

    ``inputs``: u, delta (b, l, d), A (d, n), B, C (b, l, n), D (d,), z (b, l, d), bias (d,), gaps (b, l). The last four
    may be None. ``h`` (b, d, n): the initial state. ``soft``: apply softplus to delta. ``rule``: a position in
    scan.DISCRETISATIONS.
    """
    u, delta, A, B, C, D, z, bias, gaps = (h.new_empty(0) if v is None else v for v in inputs)
    d, n = A.shape
    extra_channels = -d % lanes_per_vector(as_array(h.new_empty(0)).dtype)
    extra_states = n % 2
    A = A.t()
    h = h.transpose(1, 2)
    if extra_channels or extra_states:  # the kernels process whole vectors and pairs of states; the padding stays zero
        padding = (0, extra_channels, 0, extra_states)
        A = pad(A, padding, value=-1.0)
        h = pad(h, padding)
        B = pad(B, (0, extra_states))
        C = pad(C, (0, extra_states))
        u, delta, D, z, bias = (pad(v, (0, extra_channels)) if v.numel() else v for v in (u, delta, D, z, bias))
    padded = [v.contiguous() for v in (u, delta, A, B, C, D, z, bias, gaps, h)]
    y, last = _Selective.apply(*padded, soft, rule, torch.is_grad_enabled())
    return y[..., :d], last[:, :n, :d].transpose(1, 2)


class _Selective(torch.autograd.Function):
    """As ``selective``, with A (n, d) and h (b, n, d); d is a multiple of W and n is even."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, h, soft, rule, stores_starts = arguments
        b, length, d = inputs[0].shape
        n = len(inputs[2])
        sizes = (length, d, n, lanes_per_vector(as_array(h).dtype), soft, rule)
        y = torch.empty_like(inputs[0])
        last = h.clone()
        starts = h.new_empty(b, -(-length // BLOCK_BARS), n, d) if stores_starts else h.new_empty(0)
        parallel_for(_forward, b * d // sizes[3], as_arrays(*inputs), as_arrays(y, last, starts), sizes)
        ctx.save_for_backward(*inputs, starts)
        ctx.sizes = sizes
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        u, delta, _, B, C, D, z, bias, _ = inputs
        b, _, d = u.shape
        _, _, n, W, _, _ = ctx.sizes
        n_groups = next((g for g in range(1, d // W) if b * g >= torch.get_num_threads() and d // W % g == 0), d // W)
        gy = gy.contiguous()
        gh = gh.contiguous().clone()
        gA = u.new_zeros(b, n, d)
        gB, gC = (u.new_empty(n_groups, *v.shape) for v in (B, C))
        gD, gbias = (u.new_zeros(b if v.numel() else 0, d) for v in (D, bias))
        gu, gdelta, gz = (torch.empty_like(v) for v in (u, delta, z))
        state_grads = as_arrays(gh, gA, gB, gC)
        grads = as_arrays(gu, gdelta, gD, gz, gbias)
        parallel_for(
            _backward,
            b * n_groups,
            as_arrays(*inputs),
            as_array(starts),
            as_array(gy),
            state_grads,
            grads,
            ctx.sizes,
            n_groups,
        )
        gB, gC = (v[0] if n_groups == 1 else v.sum(0) for v in (gB, gC))
        by_input = (gu, gdelta, gA.sum(0), gB, gC, gD.sum(0), gz, gbias.sum(0), None, gh)
        inputs.append(gh)
        return *(g if v.numel() else None for g, v in zip(by_input, inputs, strict=True)), None, None, None
