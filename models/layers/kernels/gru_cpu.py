"""A gated recurrent unit on a CPU: its gates and their gradients in one pass each, between products of matrices.

Paper: Cho et al. 2014, 1406.1078, in the form of torch.nn.GRUCell (the reset gate acts after the recurrent product).
Glossary: g rows · m numbers of an input · d channels · x, y (g, 3d) what the input and the state say to reset, update
and candidate. Arrays are flat.
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

from models.layers.kernels.parallel import FAST, as_array, as_arrays, parallel_for

Array = np.ndarray
Arrays = tuple[Array, ...]
FEW = 1 << 16  # numbers of states
POWER = [np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8)]
P0, P1, P2, P3, P4, P5, P6, P7 = POWER


@njit(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x), by plain arithmetic alone, so that a compiler can take many at once."""
    power = min(max(x, np.float32(-87.0)), np.float32(87.0)) * np.float32(-1 / math.log(2))
    whole = np.floor(power + np.float32(0.5))
    f = power - whole
    part = P0 + f * (P1 + f * (P2 + f * (P3 + f * (P4 + f * (P5 + f * (P6 + f * P7))))))
    scale = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(1.0) / (np.float32(1.0) + part * scale)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def gates(x: Array, y: Array, s: Array, out: Array, d: int, first: int, stop: int) -> None:
    """Fills ``out`` with the states after ``s`` (g, d), and writes the gates over x, in the rows [first, stop)."""
    one, two = np.float32(1.0), np.float32(2.0)
    for i in range(first, stop):
        gate, said = x[3 * i * d : 3 * (i + 1) * d], y[3 * i * d : 3 * (i + 1) * d]
        before, after = s[i * d : (i + 1) * d], out[i * d : (i + 1) * d]
        for c in range(d):
            reset, update = sigmoid(gate[c] + said[c]), sigmoid(gate[d + c] + said[d + c])
            new = two * sigmoid(two * (gate[2 * d + c] + reset * said[2 * d + c])) - one  # tanh
            after[c] = new + update * (before[c] - new)
            gate[c], gate[d + c], gate[2 * d + c] = reset, update, new


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def _backward(kept: Arrays, g: Array, grads: Arrays, d: int, first: int, stop: int) -> None:
    """Fills the gradients of x, of y and of s but through y, in the rows [first, stop); ``kept``: gates, y, s."""
    x, y, s = kept
    one = np.float32(1.0)
    for i in range(first, stop):
        gate, said = x[3 * i * d : 3 * (i + 1) * d], y[3 * i * d : 3 * (i + 1) * d]
        of_x, of_y = grads[0][3 * i * d : 3 * (i + 1) * d], grads[1][3 * i * d : 3 * (i + 1) * d]
        before, of_s, of_out = s[i * d : (i + 1) * d], grads[2][i * d : (i + 1) * d], g[i * d : (i + 1) * d]
        for c in range(d):
            reset, update, new = gate[c], gate[d + c], gate[2 * d + c]
            of_new = of_out[c] * (one - update) * (one - new * new)
            of_reset = of_new * said[2 * d + c] * reset * (one - reset)
            of_update = of_out[c] * (before[c] - new) * update * (one - update)
            of_x[c], of_x[d + c], of_x[2 * d + c] = of_reset, of_update, of_new
            of_y[c], of_y[d + c], of_y[2 * d + c] = of_reset, of_update, of_new * reset
            of_s[c] = of_out[c] * update


def gated(message: Tensor, s: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The new states (g, d), the gates (g, 3d) and y, of what Gated takes."""
    from_message, from_s, bias, bias_s = weights
    x = torch.addmm(bias, message, from_message.t())
    y = torch.addmm(bias_s, s, from_s.t())
    out = torch.empty_like(s)
    _by_row(gates, s.shape, *as_arrays(x, y, s, out))
    return out, x, y


def _by_row(kernel: Callable[..., None], shape: Sequence[int], *arguments: Any) -> None:
    """``kernel`` over the rows of states of that shape; a second thread takes longer to wake than a few of them."""
    g, d = shape
    if g * d <= FEW:
        kernel(*arguments, d, 0, g)
    else:
        parallel_for(kernel, g, *arguments, d)


class Gated(Function):
    """s (g, d), weights (3d, m), (3d, d) and biases (3d,) as in torch.nn.GRUCell, float32, and the message (g, m)
    in pieces, so that no gradient is worked out of those that need none → the new states (g, d)."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, *inputs: Tensor) -> Tensor:
        s, weights, pieces = s.contiguous(), inputs[:4], inputs[4:]
        message = torch.cat(pieces, dim=1)
        out, x, y = gated(message, s, *weights)
        ctx.widths = [piece.shape[1] for piece in pieces]
        ctx.save_for_backward(message, s, *weights[:2], x, y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        message, s, from_message, from_s, x, y = ctx.saved_tensors
        g_x, g_y, g_s = grads = x.new_empty(x.shape), y.new_empty(y.shape), s.new_empty(s.shape)
        _by_row(_backward, s.shape, as_arrays(x, y, s), as_array(g.contiguous()), as_arrays(*grads))
        g_weights = g_x.t() @ message, g_y.t() @ s, g_x.sum(0), g_y.sum(0)
        g_before = g_s.addmm_(g_y, from_s) if ctx.needs_input_grad[0] else None
        columns = zip(from_message.split(ctx.widths, dim=1), ctx.needs_input_grad[5:], strict=True)
        return g_before, *g_weights, *(g_x @ weight if needed else None for weight, needed in columns)
