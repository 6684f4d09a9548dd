"""Recurrences over bars that are not evenly spaced: the step size of every bar is Δ times its gap.

A time-invariant layer is a convolution only while its step is constant. With gaps it is a recurrence whose decay
changes with every bar and sequence. All decays together would be a tensor (b, l, d, m), so the recurrence runs in
blocks of bars that the backward pass recomputes (Chen et al. 2016, 1604.06174); memory stays that of the inputs and
outputs.

Glossary: b sequences · l bars · k bars of one block · d channels · m states per channel · gaps (b, l): time since the
previous bar in bars, 1 when regular, 0 where a padded bar holds the state · Δ (d,) step size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.layers.scan import diagonal_scan

BLOCK_ELEMENTS = 1 << 18  # most elements (b, k, d, m) of one block: about what the last-level cache holds
Block = Callable[..., tuple[Tensor, Tensor]]


def in_blocks(run: Block, state: Tensor, *by_bar: Tensor, bars: int) -> tuple[Tensor, Tensor]:
    """y (b, l, …) and the last state of ``run(state, *blocks) → (y (b, k, …), state)``, over blocks of k ≤ ``bars``.

    ``by_bar``: tensors (b, l, …). With gradients enabled, only a block's inputs are stored and the block runs twice.
    """
    outputs = []
    for blocks in zip(*(value.split(bars, dim=1) for value in by_bar), strict=True):
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
    """y (b, l, d) and the last h (b, d, m) of a diagonal system held zero-order over steps of Δ · gap:

        h_t = exp(A Δ_t) h_{t−1} + (exp(A Δ_t) − 1) / A · B x_t        y_t = 2 Re Σ_m C h_t + D x_t

    ``x`` (b, l, d) real; ``A``, ``C`` and ``B`` (d, m) complex, B is 1 by default; ``dt``, ``D`` (d,). A gap of 0
    leaves h unchanged to the bit, whatever the value of x.
    """
    x = x.masked_fill(gaps[..., None] == 0, 0.0)
    h = A.new_zeros(x.shape[0], *A.shape) if h is None else h
    a = A * dt[:, None]
    gain = 1 / A if B is None else B / A

    def run(h: Tensor, x: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        change = torch.expm1(a * gaps[..., None, None])  # (b, k, d, m)
        entering = change * (gain * x[..., None])
        states, last = diagonal_scan((change + 1).flatten(2), entering.flatten(2), h.flatten(1))
        states = states.unflatten(2, A.shape)
        y = 2 * (states.real * C.real - states.imag * C.imag).sum(-1) + D * x
        return y, last.unflatten(1, A.shape)

    bars = max(1, BLOCK_ELEMENTS // max(1, h.numel()))
    return in_blocks(run, h, x, gaps.to(x.dtype), bars=bars)
