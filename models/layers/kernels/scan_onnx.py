"""Recurrences as one Scan operator each, for graphs exported to ONNX: the graph's size does not depend on the length.

Glossary as in scan.py. Real arithmetic, without gradients. torch's scan operator is a prototype, so it is used for
export only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn.functional import silu, softplus

from models.layers.kernels import complex_pairs

State = tuple[Tensor, ...]


def over_bars(step: Callable[..., tuple[Tensor, State]], state: State, *by_bar: Tensor) -> tuple[Tensor, State]:
    """y (b, l, …) and the last state of ``step(state, *bars) → (y, state)`` over ``by_bar`` (b, l, …)."""

    def run(state: State, bars: State) -> tuple[State, Tensor]:
        y, after = step(state, *bars)
        return tuple(_copy(v) for v in after), _copy(y)

    last, y = scan(run, tuple(_copy(v) for v in state), tuple(_copy(v.transpose(0, 1)) for v in by_bar))
    return y.transpose(0, 1), last


def selective(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    return_last_state: bool,
    gaps: Tensor | None,
    discretise: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Any:
    """As ``scan.selective_scan_reference``; the operator contains the recurrence only."""
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = softplus(delta) if delta_softplus else delta
    delta = delta if gaps is None else delta * gaps[:, None]
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state

    def step(state: State, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, State]:
        decay, hold = discretise(delta[..., None], A)
        h = decay * state[0] + hold * u[..., None] * B[:, None]
        return (h * C[:, None]).sum(-1), (h,)

    y, (last,) = over_bars(step, (h,), *(v.transpose(1, 2) for v in (u, delta, B, C)))
    y = y.transpose(1, 2)
    y = y if D is None else y + u * D[:, None]
    y = y if z is None else y * silu(z)
    return (y, last) if return_last_state else y


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
    """As ``irregular.diagonal_ssm_irregular``; only weights and h use complex types, the recurrence uses pairs."""
    a, gain, read = (torch.view_as_real(v) for v in (A * dt[:, None], 1 / A if B is None else B / A, 2 * C))
    before = x.new_zeros(x.shape[0], *a.shape) if h is None else torch.view_as_real(h)

    def step(state: State, x: Tensor, gap: Tensor) -> tuple[Tensor, State]:
        exponent = a * gap[:, None, None, None]
        entering = complex_pairs.times(complex_pairs.expm1(exponent), gain) * x[..., None, None]
        h = complex_pairs.times(complex_pairs.exp(exponent), state[0]) + entering
        return complex_pairs.real_of_product(read, h).sum(-1) + D * x, (h,)

    held = x.masked_fill(gaps[..., None] == 0, 0.0)
    y, (last,) = over_bars(step, (before,), held, gaps.to(x.dtype))
    return y, torch.view_as_complex(last)


def _copy(x: Tensor) -> Tensor:
    """A contiguous copy; the operator's inputs and outputs must not share memory."""
    return x.clone(memory_format=torch.contiguous_format)
