"""A gated recurrent unit on a CPU, with compiled passes for the gates and for their gradients.

torch computes the matrix products.

Paper: Cho et al. 2014, 1406.1078, in the form of torch.nn.GRUCell (the reset gate acts after the recurrent product).

Glossary: g rows, each an input and a state · m channels of an input · d channels of a state · s (g, d) states · x (g,
3d) products of the weights with the inputs, plus bias · y (g, 3d) products of the weights with the states, plus bias.
Each row of x and y contains the reset gate, the update gate and the candidate, in this order. The kernels read every
array as one-dimensional, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.layers.kernels.parallel import FASTMATH_FLAGS, as_array, as_arrays, parallel_for

Array = np.ndarray
Arrays = tuple[Array, ...]
MAX_SERIAL_VALUES = 1 << 16  # maximum g · d for one thread; with more values, several threads are faster
POWER_COEFFICIENTS = [np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8)]  # Taylor coefficients of 2^x
P0, P1, P2, P3, P4, P5, P6, P7 = POWER_COEFFICIENTS


@njit(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x) in float32, with x clipped to ±87.

    It uses basic arithmetic only, so the compiler can vectorise it.
    """
    power = min(max(x, np.float32(-87.0)), np.float32(87.0)) * np.float32(-1 / math.log(2))
    whole_power = np.floor(power + np.float32(0.5))
    fraction = power - whole_power
    power_of_fraction = P0 + fraction * (
        P1 + fraction * (P2 + fraction * (P3 + fraction * (P4 + fraction * (P5 + fraction * (P6 + fraction * P7)))))
    )
    scale = np.int32((np.int32(whole_power) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(1.0) / (np.float32(1.0) + power_of_fraction * scale)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def apply_gates(x: Array, y: Array, s: Array, out: Array, d: int, first: int, stop: int) -> None:
    """Fills ``out`` (g, d) with the new states, for rows [first, stop), and overwrites x with gates and candidates."""
    one = np.float32(1.0)
    two = np.float32(2.0)
    for i in range(first, stop):
        from_x = x[3 * i * d : 3 * (i + 1) * d]
        from_s = y[3 * i * d : 3 * (i + 1) * d]
        before = s[i * d : (i + 1) * d]
        after = out[i * d : (i + 1) * d]
        for c in range(d):
            reset = sigmoid(from_x[c] + from_s[c])
            update = sigmoid(from_x[d + c] + from_s[d + c])
            candidate = two * sigmoid(two * (from_x[2 * d + c] + reset * from_s[2 * d + c])) - one  # tanh
            after[c] = candidate + update * (before[c] - candidate)
            from_x[c] = reset
            from_x[d + c] = update
            from_x[2 * d + c] = candidate


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def _backward(saved: Arrays, g_new_states: Array, grads: Arrays, d: int, first: int, stop: int) -> None:
    """Fills ``grads`` for rows [first, stop): the gradients of x, of y and of s. The gradient of s
    excludes the path through y.

    ``saved``: x as ``apply_gates`` overwrites it, y and s. ``g_new_states`` (g, d): the gradient
    of the new states.
    """
    x, y, s = saved
    one = np.float32(1.0)
    for i in range(first, stop):
        gates = x[3 * i * d : 3 * (i + 1) * d]
        from_s = y[3 * i * d : 3 * (i + 1) * d]
        g_x = grads[0][3 * i * d : 3 * (i + 1) * d]
        g_y = grads[1][3 * i * d : 3 * (i + 1) * d]
        g_s = grads[2][i * d : (i + 1) * d]
        before = s[i * d : (i + 1) * d]
        g_out = g_new_states[i * d : (i + 1) * d]
        for c in range(d):
            reset = gates[c]
            update = gates[d + c]
            candidate = gates[2 * d + c]
            g_candidate = g_out[c] * (one - update) * (one - candidate * candidate)
            g_reset = g_candidate * from_s[2 * d + c] * reset * (one - reset)
            g_update = g_out[c] * (before[c] - candidate) * update * (one - update)
            g_x[c] = g_reset
            g_x[d + c] = g_update
            g_x[2 * d + c] = g_candidate
            g_y[c] = g_reset
            g_y[d + c] = g_update
            g_y[2 * d + c] = g_candidate * reset
            g_s[c] = g_out[c] * update


def gru_cell(message: Tensor, s: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The new states (g, d), the gates and candidates (g, 3d), and y (g, 3d).

    ``message`` (g, m): the inputs; ``s`` (g, d): the states; ``weights``: input weights (3d, m), state weights (3d, d),
    input bias (3d,) and state bias (3d,).
    """
    message_weight, s_weight, message_bias, s_bias = weights
    x = torch.addmm(message_bias, message, message_weight.t())
    y = torch.addmm(s_bias, s, s_weight.t())
    out = torch.empty_like(s)
    _run_by_row(apply_gates, s.shape, *as_arrays(x, y, s, out))
    return out, x, y


def _run_by_row(kernel: Callable[..., None], shape: Sequence[int], *arguments: Any) -> None:
    """Runs ``kernel`` over all rows of states of this shape (g, d), in several threads above MAX_SERIAL_VALUES."""
    g, d = shape
    if g * d <= MAX_SERIAL_VALUES:
        kernel(*arguments, d, 0, g)
    else:
        parallel_for(kernel, g, *arguments, d)


class GRUCell(Function):
    """States s (g, d), the weights of ``gru_cell`` and parts of the message → the new states (g, d).

    The weights are ordered as in torch.nn.GRUCell, all in float32. The message (g, m) is the concatenation of the parts
    (g, …) along the channels. No gradient is computed for a part that does not require one.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, *inputs: Tensor) -> Tensor:
        s = s.contiguous()
        weights = inputs[:4]
        message_parts = inputs[4:]
        message = torch.cat(message_parts, dim=1)
        out, x, y = gru_cell(message, s, *weights)
        ctx.widths = [part.shape[1] for part in message_parts]
        ctx.save_for_backward(message, s, *weights[:2], x, y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        message, s, message_weight, s_weight, x, y = ctx.saved_tensors
        g_x, g_y, g_s = (v.new_empty(v.shape) for v in (x, y, s))
        _run_by_row(_backward, s.shape, as_arrays(x, y, s), as_array(g.contiguous()), as_arrays(g_x, g_y, g_s))
        g_weights = (g_x.t() @ message, g_y.t() @ s, g_x.sum(0), g_y.sum(0))
        g_states = g_s.addmm_(g_y, s_weight) if ctx.needs_input_grad[0] else None
        part_weights = message_weight.split(ctx.widths, dim=1)
        needs_grad = ctx.needs_input_grad[5:]
        g_parts = (g_x @ w if needed else None for w, needed in zip(part_weights, needs_grad, strict=True))
        return g_states, *g_weights, *g_parts
