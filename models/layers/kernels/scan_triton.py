"""The selective scan on a GPU, in Triton: a forward and a backward pass as in scan_cpu.py.

Glossary as in scan.py: b sequences · l bars · d channels · n states per channel · N = n rounded up to a power of two ·
WIDTH channels per program · gX gradient of X.

A program processes WIDTH channels of one sequence. It holds their states (WIDTH, N) in registers, runs over the bars
and stores the states before every block of BLOCK_BARS bars. The backward pass recomputes the states of each block into
scratch memory, then runs through the block in reverse. All tensors are float32, channels last: u, delta, z, y
(b, l, d); A (d, n); h (b, d, n); B, C (b, l, n); D, bias (d,); gaps (b, l).

RULE is a position in scan.DISCRETISATIONS: 1 is zero-order hold, 2 is Euler. The switches SOFT (softplus of delta),
SKIP (D), GATE (z), BIAS, GAPS and KEEP (store the states before the blocks) say which optional parts a call has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BARS = 64
CHANNELS_PER_PROGRAM = 16


@triton.jit
def _step_size(delta, bias, gaps, index, c, c_mask, bar, SOFT: tl.constexpr, BIAS: tl.constexpr, GAPS: tl.constexpr):
    """The step size Δ (WIDTH,) of one bar, and its derivative dΔ / d(delta)."""
    raw = tl.load(delta + index, mask=c_mask, other=0.0)
    if BIAS:
        raw += tl.load(bias + c, mask=c_mask, other=0.0)
    slope = tl.full(raw.shape, 1.0, tl.float32)
    if SOFT:
        slope = tl.sigmoid(raw)
        e = tl.exp(-tl.abs(raw))
        s = e / (2.0 + e)  # log(1 + e) = 2 artanh(s), accurate also for small e
        q = s * s
        series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
        raw = tl.maximum(raw, 0.0) + 2.0 * s * series
    if GAPS:
        gap = tl.load(gaps + bar)
        slope = slope * gap
        raw = raw * gap
    return raw, slope


@triton.jit
def _phi(x, exp_x):
    """(e^x − 1) / x. A series replaces the difference for small x, where it would lose accuracy."""
    series = 1.0 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    return tl.where(tl.abs(x) < 0.3, series, (exp_x - 1.0) / tl.where(x == 0.0, 1.0, x))


@triton.jit
def _phi_slope(x, exp_x):
    """The derivative of (e^x − 1) / x."""
    series = 1 / 2 + x * (1 / 3 + x * (1 / 8 + x * (1 / 30 + x * (1 / 144 + x * (1 / 840 + x / 5760)))))
    return tl.where(tl.abs(x) < 0.3, series, (x * exp_x - exp_x + 1.0) / tl.where(x == 0.0, 1.0, x * x))


@triton.jit
def _advance(h, dt, A, x, B, RULE: tl.constexpr):
    """The decay Ā, the state after the bar, and the factor of B u, each (WIDTH, N)."""
    decay = 1.0 + dt[:, None] * A if RULE == 2 else tl.exp(dt[:, None] * A)
    hold = dt[:, None] * _phi(dt[:, None] * A, decay) if RULE == 1 else dt[:, None] + tl.zeros_like(A)
    return decay, decay * h + hold * x[:, None] * B[None, :], hold


@triton.jit
def _forward(
    u, delta, A, B, C, D, z, bias, gaps, h, y, last, starts, length, d, n,
    SOFT: tl.constexpr, RULE: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    GAPS: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Fills y, the last state and, if KEEP is set, the states before the blocks (b, blocks, d, n)."""
    b = tl.program_id(0)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    j = tl.arange(0, N)
    c_mask = c < d
    j_mask = j < n
    state_mask = c_mask[:, None] & j_mask[None, :]
    offset = c[:, None] * n + j[None, :]
    a = tl.load(A + offset, mask=state_mask, other=-1.0)
    state = tl.load(h + b * d * n + offset, mask=state_mask, other=0.0)
    for t in range(length):
        if KEEP and t % BLOCK == 0:
            block = b * tl.cdiv(length, BLOCK) + t // BLOCK
            tl.store(starts + block * d * n + offset, state, mask=state_mask)
        bar = b * length + t
        index = bar * d + c
        dt, _ = _step_size(delta, bias, gaps, index, c, c_mask, bar, SOFT, BIAS, GAPS)
        x = tl.load(u + index, mask=c_mask, other=0.0)
        Bt = tl.load(B + bar * n + j, mask=j_mask, other=0.0)
        Ct = tl.load(C + bar * n + j, mask=j_mask, other=0.0)
        _, state, _ = _advance(state, dt, a, x, Bt, RULE)
        out = tl.sum(state * Ct[None, :], 1)
        if SKIP:
            out += tl.load(D + c, mask=c_mask, other=0.0) * x
        if GATE:
            gate = tl.load(z + index, mask=c_mask, other=0.0)
            out *= gate * tl.sigmoid(gate)
        tl.store(y + index, out, mask=c_mask)
    tl.store(last + b * d * n + offset, state, mask=state_mask)


@triton.jit
def _backward(
    u, delta, A, B, C, D, z, bias, gaps, starts, scratch, gy, gh, gu, gdelta, gA, gB, gC, gD, gz, gbias, gstart,
    length, d, n,
    SOFT: tl.constexpr, RULE: tl.constexpr, SKIP: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    GAPS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Fills the gradients: gA, gstart (b, d, n), gD, gbias (b, d) per sequence; gB, gC (parts, b, l, n) per program."""
    b = tl.program_id(0)
    part = tl.program_id(1)  # the program's position in its sequence
    parts = tl.num_programs(1)  # programs per sequence
    c = part * WIDTH + tl.arange(0, WIDTH)
    j = tl.arange(0, N)
    c_mask = c < d
    j_mask = j < n
    state_mask = c_mask[:, None] & j_mask[None, :]
    offset = c[:, None] * n + j[None, :]
    a = tl.load(A + offset, mask=state_mask, other=-1.0)
    g = tl.load(gh + b * d * n + offset, mask=state_mask, other=0.0)
    sum_A = tl.zeros([WIDTH, N], tl.float32)
    sum_D = tl.zeros([WIDTH], tl.float32)
    sum_bias = tl.zeros([WIDTH], tl.float32)
    block_states = scratch + (b * parts + part) * BLOCK * WIDTH * N + tl.arange(0, WIDTH)[:, None] * N + j[None, :]
    blocks = tl.cdiv(length, BLOCK)
    for reverse in range(blocks):
        block = blocks - 1 - reverse
        begin = block * BLOCK
        stop = tl.minimum(begin + BLOCK, length)
        state = tl.load(starts + (b * blocks + block) * d * n + offset, mask=state_mask, other=0.0)
        for t in range(begin, stop):
            tl.store(block_states + (t - begin) * WIDTH * N, state)
            bar = b * length + t
            index = bar * d + c
            dt, _ = _step_size(delta, bias, gaps, index, c, c_mask, bar, SOFT, BIAS, GAPS)
            x = tl.load(u + index, mask=c_mask, other=0.0)
            Bt = tl.load(B + bar * n + j, mask=j_mask, other=0.0)
            _, state, _ = _advance(state, dt, a, x, Bt, RULE)
        tl.debug_barrier()
        for back in range(stop - begin):
            t = stop - 1 - back
            bar = b * length + t
            index = bar * d + c
            dt, slope = _step_size(delta, bias, gaps, index, c, c_mask, bar, SOFT, BIAS, GAPS)
            x = tl.load(u + index, mask=c_mask, other=0.0)
            Bt = tl.load(B + bar * n + j, mask=j_mask, other=0.0)
            Ct = tl.load(C + bar * n + j, mask=j_mask, other=0.0)
            before = tl.load(block_states + (t - begin) * WIDTH * N)
            decay, after, hold = _advance(before, dt, a, x, Bt, RULE)
            grad = tl.load(gy + index, mask=c_mask, other=0.0)
            if GATE:
                gate = tl.load(z + index, mask=c_mask, other=0.0)
                gate_sigmoid = tl.sigmoid(gate)
                out = tl.sum(after * Ct[None, :], 1)
                if SKIP:
                    out += tl.load(D + c, mask=c_mask, other=0.0) * x
                tl.store(gz + index, grad * out * gate_sigmoid * (1.0 + gate * (1.0 - gate_sigmoid)), mask=c_mask)
                grad *= gate * gate_sigmoid
            row = (part * tl.num_programs(0) * length + bar) * n + j
            tl.store(gC + row, tl.sum(grad[:, None] * after, 0), mask=j_mask)
            g += grad[:, None] * Ct[None, :]
            tl.store(gB + row, tl.sum(g * hold * x[:, None], 0), mask=j_mask)
            g_u = tl.sum(g * hold * Bt[None, :], 1)
            xb = x[:, None] * Bt[None, :]
            if RULE == 2:
                g_decay = g * before
                g_delta = tl.sum(g_decay * a + g * xb, 1)
                sum_A += g_decay * dt[:, None]
            else:
                g_decay = g * decay * before
                if RULE == 1:
                    g_delta = tl.sum(g_decay * a + g * decay * xb, 1)
                    hold_slope = dt[:, None] * dt[:, None] * _phi_slope(dt[:, None] * a, decay)
                    sum_A += g_decay * dt[:, None] + g * xb * hold_slope
                else:
                    g_delta = tl.sum(g_decay * a + g * xb, 1)
                    sum_A += g_decay * dt[:, None]
            if SKIP:
                g_u += grad * tl.load(D + c, mask=c_mask, other=0.0)
                sum_D += grad * x
            g_delta *= slope
            sum_bias += g_delta
            tl.store(gu + index, g_u, mask=c_mask)
            tl.store(gdelta + index, g_delta, mask=c_mask)
            g *= decay
        tl.debug_barrier()
    tl.store(gA + b * d * n + offset, sum_A, mask=state_mask)
    tl.store(gstart + b * d * n + offset, g, mask=state_mask)
    if SKIP:
        tl.store(gD + b * d + c, sum_D, mask=c_mask)
    if BIAS:
        tl.store(gbias + b * d + c, sum_bias, mask=c_mask)


def selective(inputs: Sequence[Tensor | None], h: Tensor, soft: bool, rule: int) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, n), in the dtype of the initial state ``h`` (b, d, n).

    ``inputs``: u, delta (b, l, d), A (d, n), B, C (b, l, n), D (d,), z (b, l, d), bias (d,), gaps (b, l). The last four
    may be None. ``soft``: apply softplus to delta. ``rule``: a position in scan.DISCRETISATIONS.
    """
    tensors = (h.new_empty(0) if v is None else v for v in (*inputs, h))
    y, last = _Selective.apply(*(v.float().contiguous() for v in tensors), soft, rule, torch.is_grad_enabled())
    return y.to(h.dtype), last.to(h.dtype)


class _Selective(torch.autograd.Function):
    """As ``selective``, with contiguous float32 tensors; a tensor without elements stands for None."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, h, soft, rule, store_starts = arguments
        u, _, A, _, _, D, z, bias, gaps = inputs
        b, length, d = u.shape
        n = A.shape[1]
        y = torch.empty_like(u)
        last = torch.empty_like(h)
        starts = h.new_empty(b, triton.cdiv(length, BLOCK_BARS), d, n) if store_starts else h.new_empty(0)
        switches = {name: v.numel() > 0 for name, v in (("SKIP", D), ("GATE", z), ("BIAS", bias), ("GAPS", gaps))}
        sizes = {"BLOCK": BLOCK_BARS, "WIDTH": CHANNELS_PER_PROGRAM, "N": triton.next_power_of_2(n)}
        ctx.switches = {"SOFT": soft, "RULE": rule, **switches, **sizes}
        grid = (b, triton.cdiv(d, CHANNELS_PER_PROGRAM))
        _forward[grid](*inputs, h, y, last, starts, length, d, n, KEEP=store_starts, **ctx.switches)
        ctx.save_for_backward(*inputs, starts)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts = ctx.saved_tensors
        u, delta, A, B, C, D, z, bias, _ = inputs
        b, length, d = u.shape
        n = A.shape[1]
        parts = triton.cdiv(d, CHANNELS_PER_PROGRAM)
        N = ctx.switches["N"]
        scratch = u.new_empty(b * parts, BLOCK_BARS, CHANNELS_PER_PROGRAM, N)
        gA, gstart, gB, gC = (u.new_empty(s) for s in ((b, d, n), (b, d, n), (parts, *B.shape), (parts, *C.shape)))
        gD, gbias = (u.new_empty(b, v.numel()) for v in (D, bias))
        gu, gdelta, gz = (torch.empty_like(v) for v in (u, delta, z))
        grads = (gu, gdelta, gA, gB, gC, gD, gz, gbias, gstart)
        saved = (*inputs, starts, scratch, gy.contiguous(), gh.contiguous())
        _backward[(b, parts)](*saved, *grads, length, d, n, **ctx.switches)
        by_input = (gu, gdelta, gA.sum(0), gB.sum(0), gC.sum(0), gD.sum(0), gz, gbias.sum(0), None)
        gradients = (g if v.numel() else None for g, v in zip(by_input, inputs, strict=True))
        return *gradients, gstart, None, None, None
