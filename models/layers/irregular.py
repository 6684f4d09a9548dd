"""Recurrences over bars that are not evenly spaced: the step size of every bar is Δ times its gap.

A time-invariant layer is a convolution only if its step size is constant. With gaps, it is a recurrence whose decay
differs between bars and sequences. A tensor of all decays would have the shape (b, l, d, m). To avoid it, the
recurrence runs in blocks of bars, and the backward pass recomputes each block (Chen et al. 2016, 1604.06174). Stored
memory is then proportional to the inputs, the outputs and one state per block.

Glossary: b sequences · l bars · k bars of one block · d channels · m states per channel · h (b, d, m) complex
state · A, B, C, D coefficients of the system · gaps (b, l) time since the previous bar, in bars: 1 for a regular bar, 0
for a padded bar, which leaves the state unchanged · Δ (d,) step size of a gap of 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.layers.scan import diagonal_scan

MAX_BLOCK_ELEMENTS = 1 << 18  # maximum b · k · d · m of one block, about the capacity of the last-level cache
RunBlock = Callable[..., tuple[Tensor, Tensor]]


def run_in_blocks(run: RunBlock, state: Tensor, *by_bar: Tensor, block_bars: int) -> tuple[Tensor, Tensor]:
    """y (b, l, …) and the last state, from one call of ``run`` per block of at most ``block_bars`` bars.

    ``by_bar``: tensors (b, l, …), which are split into blocks (b, k, …). ``run(state, *blocks)`` returns y (b, k, …) of
    the block and the state after it. With gradients enabled, autograd stores only the inputs of each block, and the
    backward pass runs the block a second time.
    """
    outputs = []
    for blocks in zip(*(value.split(block_bars, dim=1) for value in by_bar), strict=True):
        if torch.is_grad_enabled():
            y, state = checkpoint(run, state, *blocks, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = run(state, *blocks)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def diagonal_ssm_irregular(
    x: Tensor,
    A: Tensor,
    dt: Tensor,
    gaps: Tensor,
    C: Tensor,
    D: Tensor,
    h: Tensor | None = None,
    B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h of a diagonal system, by zero-order hold with step sizes Δ_t = Δ · gap_t:

        h_t = exp(A Δ_t) h_{t−1} + (exp(A Δ_t) − 1) / A · B x_t        y_t = 2 Re Σ_m C h_t + D x_t

    ``x`` (b, l, d) real; ``A``, ``B`` and ``C`` (d, m) complex; ``dt`` is Δ (d,); ``D`` (d,). ``h`` is the state before
    the first bar, zeros by default; B is 1 by default. At a gap of 0, h stays bit-identical for any value of x, even
    NaN.
    """
    x = x.masked_fill(gaps[..., None] == 0, 0.0)
    h = A.new_zeros(x.shape[0], *A.shape) if h is None else h
    a = A * dt[:, None]
    gain = 1 / A if B is None else B / A

    def run_block(h: Tensor, x: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        decay_minus_one = torch.expm1(a * gaps[..., None, None])  # (b, k, d, m)
        inputs = decay_minus_one * (gain * x[..., None])
        states, last = diagonal_scan((decay_minus_one + 1).flatten(2), inputs.flatten(2), h.flatten(1))
        states = states.unflatten(2, A.shape)
        y = 2 * (states.real * C.real - states.imag * C.imag).sum(-1) + D * x
        return y, last.unflatten(1, A.shape)

    block_bars = max(1, MAX_BLOCK_ELEMENTS // max(1, h.numel()))
    return run_in_blocks(run_block, h, x, gaps.to(x.dtype), block_bars=block_bars)
