"""The short causal convolution of Mamba followed by SiLU, on a CPU, in one pass. The backward pass recomputes p.

    p_t = bias + Σ_j w_j x_{t+j} for j = 0 … k − 1        y_t = p_t · sigmoid(p_t)

Glossary: b sequences · l bars · d channels · k taps · W lanes of a vector, one channel per lane · x (b, l + k − 1, d)
the k − 1 bars before the sequence, then its l bars · w (k, d) · bias (d,) · y (b, l, d) · gX gradient of X.
The kernels read every array as one-dimensional. d is a multiple of W.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from models.layers.kernels.parallel import as_array, as_arrays, parallel_for
from models.layers.kernels.simd import add, constant, fma, lanes_per_vector, load, mul, sigmoid, store, sub

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int]  # l, d, k, W


@njit(inline="always")
def _pre_activation(x: Array, w: Array, bias: Array, start: int, c: int, d: int, k: int) -> Any:
    """p of the W channels [c, c + W). ``start`` is the position in x of channel c at the first of the k bars."""
    p = load(bias, c)
    for j in range(k):
        p = fma(load(w, j * d + c), load(x, start + j * d), p)
    return p


@njit(nogil=True, error_model="numpy", cache=True)
def _forward(inputs: Arrays, y: Array, sizes: Sizes, first: int, stop: int) -> None:
    """Fills ``y`` for items [first, stop). An item is W channels of one sequence."""
    x, w, bias = inputs
    length, d, k, W = sizes
    for item in range(first, stop):
        b = item * W // d
        c = item * W % d
        for t in range(length):
            p = _pre_activation(x, w, bias, (b * (length + k - 1) + t) * d + c, c, d, k)
            store(y, (b * length + t) * d + c, mul(p, sigmoid(p)))


@njit(nogil=True, error_model="numpy", cache=True)
def _backward(inputs: Arrays, grads: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Adds the gradients of items [first, stop) to gx, gw (b, k, d) and gbias (b, d), each per sequence."""
    x, w, bias, gy = inputs
    gx, gw, gbias = grads
    length, d, k, W = sizes
    for item in range(first, stop):
        b = item * W // d
        c = item * W % d
        for t in range(length):
            start = (b * (length + k - 1) + t) * d + c
            p = _pre_activation(x, w, bias, start, c, d, k)
            sigmoid_p = sigmoid(p)
            gp = mul(
                load(gy, (b * length + t) * d + c),
                mul(sigmoid_p, fma(p, sub(constant(p, 1.0), sigmoid_p), constant(p, 1.0))),
            )
            store(gbias, b * d + c, add(gp, load(gbias, b * d + c)))
            for j in range(k):
                w_index = (b * k + j) * d + c
                store(gx, start + j * d, fma(gp, load(w, j * d + c), load(gx, start + j * d)))
                store(gw, w_index, fma(gp, load(x, start + j * d), load(gw, w_index)))


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution and SiLU: y (b, l, d) from x (b, l + k − 1, d), weight (d, k) and bias (d,)."""
    d = x.shape[2]
    extra_channels = -d % lanes_per_vector(as_array(bias).dtype)
    w = weight.t()
    if extra_channels:  # the kernels process whole vectors
        x, w, bias = (pad(v, (0, extra_channels)) for v in (x, w, bias))
    return _DepthwiseSilu.apply(x.contiguous(), w.contiguous(), bias)[..., :d]


class _DepthwiseSilu(Function):
    """As ``depthwise_silu``, with contiguous w (k, d); d is a multiple of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        b, bars_with_tail, d = x.shape
        k = len(w)
        W = lanes_per_vector(as_array(bias).dtype)
        length = bars_with_tail - k + 1
        y = x.new_empty(b, length, d)
        ctx.save_for_backward(x, w, bias)
        ctx.sizes = (length, d, k, W)
        parallel_for(_forward, b * d // W, as_arrays(x, w, bias), as_array(y), ctx.sizes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, ...]:
        x, w, bias = ctx.saved_tensors
        b = len(x)
        _, d, k, W = ctx.sizes
        gx = x.new_zeros(x.shape)
        gw = x.new_zeros(b, k, d)
        gbias = x.new_zeros(b, d)
        inputs = as_arrays(x, w, bias, gy.contiguous())
        parallel_for(_backward, b * d // W, inputs, as_arrays(gx, gw, gbias), ctx.sizes)
        return gx, gw.sum(0), gbias.sum(0)
