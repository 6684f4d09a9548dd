"""Attention over neighbours on a CPU: every neighbour is read where it stands, nothing is gathered or put side by side.

Glossary as in temporal_attention.py: q nodes that ask · k slots · h heads · a neighbour's r numbers are its faded row
of the table (m), the event's features (f) and the time encoding (p), in this order. Arrays are flat: asked, heard (q,
h, r); ids (q, k), negative in empty slots; fade (q, k); e (q, k, f); phi (q, k, p); weights, slopes (q, h, k), the
latter the gradients of the scores; table (n, m).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.layers.parallel import flat, flats, side_by_side

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, int]  # k, h, m, f, p


@njit(inline="always")
def _dot(a: Array, i: int, b: Array, j: int, n: int) -> Any:
    x, y = a[i : i + n], b[j : j + n]  # from 0 on, so that the compiler need not ask whether a position is negative
    total = np.float32(0.0)
    for c in range(n):
        total += x[c] * y[c]
    return total


@njit(inline="always")
def _add(out: Array, i: int, by: float, b: Array, j: int, n: int) -> None:
    x, y = out[i : i + n], b[j : j + n]
    for c in range(n):
        x[c] += by * y[c]


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def _forward(inputs: Arrays, weights: Array, heard: Array, sizes: Sizes, first: int, stop: int) -> None:
    """Fills ``weights`` and ``heard`` for the nodes [first, stop)."""
    asked, table, ids, fade, e, phi = inputs
    k, h, m, f, p = sizes
    r = m + f + p
    for at in range(first * h, stop * h):
        slot, row, mine = at // h * k, at * r, at * k
        weights[mine : mine + k], heard[row : row + r] = 0, 0
        highest = np.float32(-np.inf)
        for j in range(k):
            if ids[slot + j] >= 0:
                score = fade[slot + j] * _dot(asked, row, table, ids[slot + j] * m, m)
                score += _dot(asked, row + m, e, (slot + j) * f, f) + _dot(asked, row + m + f, phi, (slot + j) * p, p)
                weights[mine + j] = score
                highest = max(highest, score)
        total = np.float32(0.0)
        for j in range(k):
            if ids[slot + j] >= 0:
                weights[mine + j] = np.float32(math.exp(weights[mine + j] - highest))
                total += weights[mine + j]
        for j in range(k):
            if ids[slot + j] >= 0:
                weights[mine + j] /= total
                w = weights[mine + j]
                _add(heard, row, w * fade[slot + j], table, ids[slot + j] * m, m)
                _add(heard, row + m, w, e, (slot + j) * f, f)
                _add(heard, row + m + f, w, phi, (slot + j) * p, p)


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def _backward(inputs: Arrays, weights: Array, grads: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Fills slopes and the gradients of asked, fade and phi for the nodes [first, stop)."""
    asked, table, ids, fade, e, phi, g = inputs
    slopes, g_asked, g_fade, g_phi = grads
    k, h, m, f, p = sizes
    r = m + f + p
    for at in range(first * h, stop * h):
        slot, row, mine = at // h * k, at * r, at * k
        slopes[mine : mine + k], g_asked[row : row + r] = 0, 0
        if at % h == 0:
            g_fade[slot : slot + k], g_phi[slot * p : (slot + k) * p] = 0, 0
        mean = np.float32(0.0)
        for j in range(k):
            if ids[slot + j] >= 0:
                of_table = _dot(g, row, table, ids[slot + j] * m, m)
                of_rest = _dot(g, row + m, e, (slot + j) * f, f) + _dot(g, row + m + f, phi, (slot + j) * p, p)
                slopes[mine + j] = fade[slot + j] * of_table + of_rest
                mean += weights[mine + j] * slopes[mine + j]
                g_fade[slot + j] += weights[mine + j] * of_table
        for j in range(k):
            if ids[slot + j] >= 0:
                w = weights[mine + j]
                s = w * (slopes[mine + j] - mean)
                slopes[mine + j] = s
                g_fade[slot + j] += s * _dot(asked, row, table, ids[slot + j] * m, m)
                _add(g_asked, row, s * fade[slot + j], table, ids[slot + j] * m, m)
                _add(g_asked, row + m, s, e, (slot + j) * f, f)
                _add(g_asked, row + m + f, s, phi, (slot + j) * p, p)
                _add(g_phi, (slot + j) * p, w, g, row + m + f, p)
                _add(g_phi, (slot + j) * p, s, asked, row + m + f, p)


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def _backward_table(
    inputs: Arrays, weights: Array, slopes: Array, g_table: Array, sizes: Sizes, first: int, stop: int
) -> None:
    """Adds the table's gradient, its columns [first, stop); columns, so that threads do not meet in a row."""
    asked, _, ids, fade, _, _, g = inputs
    k, h, m, f, p = sizes
    n = stop - first
    for at in range(len(weights) // k):
        slot, row, mine = at // h * k, at * (m + f + p) + first, at * k
        for j in range(k):
            if ids[slot + j] >= 0:
                place = ids[slot + j] * m + first
                _add(g_table, place, weights[mine + j] * fade[slot + j], g, row, n)
                _add(g_table, place, slopes[mine + j] * fade[slot + j], asked, row, n)


class Attend(Function):
    """asked (q, h, r), table (n, m), ids (q, k), fade (q, k), e (q, k, f), phi (q, k, p), float32 → heard (q, h, r)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = tuple(x.contiguous() for x in inputs)
        asked, table, ids, _, e, phi = inputs
        (q, k), h = ids.shape, asked.shape[1]
        ctx.sizes = (k, h, table.shape[1], e.shape[2], phi.shape[2])
        weights, heard = asked.new_empty(q, h, k), asked.new_empty(asked.shape)
        side_by_side(_forward, q, flats(*inputs), flat(weights), flat(heard), ctx.sizes)
        ctx.save_for_backward(*inputs, weights)
        return heard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weights = ctx.saved_tensors
        asked, table, ids, fade, _, phi = inputs
        slopes, g_asked, g_fade, g_phi = (x.new_empty(x.shape) for x in (weights, asked, fade, phi))
        g_table = table.new_zeros(table.shape)
        arrays = flats(*inputs, g.contiguous())
        grads = flats(slopes, g_asked, g_fade, g_phi)
        side_by_side(_backward, len(ids), arrays, flat(weights), grads, ctx.sizes)
        if table.shape[1]:
            of_table = (flat(weights), flat(slopes), flat(g_table))
            side_by_side(_backward_table, table.shape[1], arrays, *of_table, ctx.sizes)
        return g_asked, g_table, None, g_fade, None, g_phi
