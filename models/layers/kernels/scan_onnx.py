"""Recurrences for networks exported to ONNX, each as one Scan operator.

The size of an exported file does not depend on the number of bars. The functions compute in real numbers and without
gradients. torch's scan operator is a prototype, so only the export uses it. Glossary as in scan.py: b sequences · l
bars · d channels · h state · gaps (b, l) time since the previous bar, in bars; 0 marks a padded bar.
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


def scan_over_bars(step: Callable[..., tuple[Tensor, State]], state: State, *by_bar: Tensor) -> tuple[Tensor, State]:
    """y (b, l, …) and the last state of ``step``, which runs once per bar.

    ``by_bar``: tensors (b, l, …). ``step(state, *bar)`` receives each of them at one bar (b, …), and returns y (b, …)
    of the bar and the state after it.
    """

    def copying_step(state: State, bar: State) -> tuple[State, Tensor]:
        y, after = step(state, *bar)
        return tuple(_copy(v) for v in after), _copy(y)

    initial = tuple(_copy(v) for v in state)
    bars_first = tuple(_copy(v.transpose(0, 1)) for v in by_bar)
    last, y = scan(copying_step, initial, bars_first)
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
    """As ``scan.selective_scan_reference``. Only the recurrence is inside the Scan operator.

    ``discretise(delta, A)`` returns the decay of the state and the factor of B u, as in scan.py.
    """
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = softplus(delta) if delta_softplus else delta
    delta = delta if gaps is None else delta * gaps[:, None]
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state

    def step(state: State, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, State]:
        decay, input_factor = discretise(delta[..., None], A)
        (h,) = state
        h = decay * h + input_factor * u[..., None] * B[:, None]
        return (h * C[:, None]).sum(-1), (h,)

    y, (last,) = scan_over_bars(step, (h,), *(v.transpose(1, 2) for v in (u, delta, B, C)))
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
    """As ``irregular.diagonal_ssm_irregular``. The recurrence computes with pairs of real and imaginary part."""
    a = torch.view_as_real(A * dt[:, None])
    gain = torch.view_as_real(1 / A if B is None else B / A)
    output_weights = torch.view_as_real(2 * C)
    initial = x.new_zeros(x.shape[0], *a.shape) if h is None else torch.view_as_real(h)

    def step(state: State, x: Tensor, gap: Tensor) -> tuple[Tensor, State]:
        exponent = a * gap[:, None, None, None]
        entering = complex_pairs.multiply(complex_pairs.expm1(exponent), gain) * x[..., None, None]
        (h,) = state
        h = complex_pairs.multiply(complex_pairs.exp(exponent), h) + entering
        return complex_pairs.real_of_product(output_weights, h).sum(-1) + D * x, (h,)

    real_bars = x.masked_fill(gaps[..., None] == 0, 0.0)
    y, (last,) = scan_over_bars(step, (initial,), real_bars, gaps.to(x.dtype))
    return y, torch.view_as_complex(last)


def _copy(x: Tensor) -> Tensor:
    """A contiguous copy, because inputs and outputs of the Scan operator must not share memory."""
    return x.clone(memory_format=torch.contiguous_format)
