"""Attention over neighbours on a CPU: a node's neighbours are put together where the core reads them again at once, and
nowhere else.

Glossary as in temporal_attention.py: q nodes that ask · k slots · h heads · a neighbour's r numbers are its faded row
of the table (m), what is said of the event (f) and the waves of the time since (p = 2 · frequencies), in this order.
Arrays are flat: asked, heard (h, q, r); ids (q, k), negative in empty slots; fade, elapsed (q, k); said (q, k, f);
table (n, m); weights (h, q, k), of the slots in use, in their order. In scratch, rows are filled up with zeros to whole
vectors, w numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.layers.kernels.parallel import FAST, as_array, as_arrays, parallel_for
from models.layers.kernels.simd import constant, fma, lanes_of, load, mul, reduce_add, splat, store
from models.layers.kernels.time_encoding_cpu import encode, slopes

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, int]  # k, h, m, f, p
LANES = lanes_of(np.float32)


@njit(inline="always")
def copy(out: Array, i: int, source: Array, j: int, n: int) -> None:
    """out[i : i + n] = source[j : j + n], as vectors; an assignment of slices first asks whether they overlap."""
    x, y = out[i : i + n], source[j : j + n]
    for c in range(n):
        x[c] = y[c]


@njit(inline="always")
def _dot(a: Array, b: Array, j: int, w: int) -> Any:
    """a · b[j : j + w]."""
    one = mul(load(a, 0), load(b, j))
    for c in range(LANES, w, LANES):
        one = fma(load(a, c), load(b, j + c), one)
    return reduce_add(one)


@njit(inline="always")
def _weighted(by: Array, first: int, count: int, rows: Array, out: Array, w: int) -> None:
    """out = Σ_j by[first + j] · row j."""
    for c in range(0, w, LANES):
        one = constant(load(rows, c), 0.0)
        for j in range(count):
            one = fma(splat(by, first + j), load(rows, j * w + c), one)
        store(out, c, one)


@njit(inline="always")
def _gather(node: int, inputs: Arrays, sizes: Sizes, u: Array, live: Array) -> int:
    """How many of a node's slots are in use; ``live`` has their positions, ``u`` (k, w) their numbers."""
    _, table, ids, fade, said, elapsed, frequency = inputs
    k, _, m, f, _ = sizes
    w, scale, count = len(u) // k, np.float32(1 / math.sqrt(max(len(frequency), 1))), 0
    for slot in range(node * k, node * k + k):
        if ids[slot] >= 0:
            row, left, mine = table[ids[slot] * m : ids[slot] * m + m], fade[slot], u[count * w : count * w + m]
            for c in range(m):
                mine[c] = left * row[c]
            copy(u, count * w + m, said, slot * f, f)
            encode(elapsed[slot], frequency, scale, u, count * w + m + f)
            live[count] = slot
            count += 1
    return count


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def attend(inputs: Arrays, weights: Array, heard: Array, sizes: Sizes, first: int, stop: int) -> None:
    """Fills ``weights`` and ``heard`` for the nodes [first, stop)."""
    k, h, m, f, p = sizes
    q, r = len(inputs[2]) // k, m + f + p
    w = -(-r // LANES) * LANES
    u, live = np.zeros(k * w, np.float32), np.empty(k, np.int64)
    asked, answer = np.zeros(w, np.float32), np.empty(w, np.float32)
    for i in range(first, stop):
        count = _gather(i, inputs, sizes, u, live)
        for at in range(i, h * q, q):
            mine, highest, whole = at * k, np.float32(-np.inf), np.float32(0.0)
            copy(asked, 0, inputs[0], at * r, r)
            for j in range(count):
                weights[mine + j] = _dot(asked, u, j * w, w)
                highest = max(highest, weights[mine + j])
            for j in range(count):
                weights[mine + j] = np.float32(math.exp(weights[mine + j] - highest))
                whole += weights[mine + j]
            for j in range(count):
                weights[mine + j] /= whole
            _weighted(weights, mine, count, u, answer, w)
            copy(heard, at * r, answer, 0, r)


@njit(inline="always")
def _of_scores(u: Array, both: Arrays, weights: Array, first: int, count: int, score: Array, g_u: Array) -> None:
    """Fills the gradients of one head's scores, and adds to ``g_u`` those of the neighbours; ``both``: asked, and the
    gradient of heard."""
    asked, g = both
    w, mean = len(g), np.float32(0.0)
    for j in range(count):
        score[j] = _dot(g, u, j * w, w)
        mean += weights[first + j] * score[j]
    for j in range(count):
        score[j] = weights[first + j] * (score[j] - mean)
        by_g, by_asked = splat(weights, first + j), splat(score, j)
        for c in range(0, w, LANES):
            one = fma(by_g, load(g, c), load(g_u, j * w + c))
            store(g_u, j * w + c, fma(by_asked, load(asked, c), one))


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def _backward(inputs: Arrays, given: Arrays, grads: Arrays, sizes: Sizes, first: int, stop: int) -> None:
    """Fills the gradients of asked, of the rows in the slots, of fade and of said, and each node's of the frequencies,
    for the nodes [first, stop); ``given``: weights, and the gradient of heard."""
    _, table, ids, fade, _, elapsed, _ = inputs
    weights, g_heard = given
    g_asked, g_rows, g_fade, g_said, g_frequency = grads
    k, h, m, f, p = sizes
    q, r = len(ids) // k, m + f + p
    w = -(-r // LANES) * LANES
    u, g_u = np.zeros(k * w, np.float32), np.empty(k * w, np.float32)
    live, score = np.empty(k, np.int64), np.empty(k, np.float32)
    asked, g, answer = np.zeros(w, np.float32), np.zeros(w, np.float32), np.empty(w, np.float32)
    for i in range(first, stop):
        count = _gather(i, inputs, sizes, u, live)
        g_u[:] = 0
        for at in range(i, h * q, q):
            copy(asked, 0, inputs[0], at * r, r)
            copy(g, 0, g_heard, at * r, r)
            _of_scores(u, (asked, g), weights, at * k, count, score, g_u)
            _weighted(score, 0, count, u, answer, w)
            copy(g_asked, at * r, answer, 0, r)
        of_waves = g_frequency[i * (p // 2) : (i + 1) * (p // 2)]
        for j in range(count):
            slot, mine, of_fade = live[j], g_u[j * w : (j + 1) * w], np.float32(0.0)
            row, out = table[ids[slot] * m : ids[slot] * m + m], g_rows[slot * m : slot * m + m]
            for c in range(m):
                of_fade += mine[c] * row[c]
                out[c] = fade[slot] * mine[c]
            g_fade[slot] = of_fade
            copy(g_said, slot * f, mine, m, f)
            slopes(elapsed[slot], u, j * w + m + f, mine[m + f :], of_waves)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def _backward_table(ids: Array, g_rows: Array, g_table: Array, m: int, first: int, stop: int) -> None:
    """Adds the slots' rows to the rows [first, stop) of the table: threads meet in none, and the order is one."""
    for slot in range(len(ids)):
        if first <= ids[slot] < stop:
            row, by = g_table[ids[slot] * m : ids[slot] * m + m], g_rows[slot * m : slot * m + m]
            for c in range(m):
                row[c] += by[c]


class Attend(Function):
    """asked (h, q, r), table (n, m), ids (q, k), fade (q, k), said (q, k, f), elapsed (q, k), frequency (p / 2,) →
    heard (h, q, r), all but ids in float32. The gradient of elapsed is not worked out."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = tuple(x.contiguous() for x in inputs)
        asked, table, ids, _, said, _, frequency = inputs
        (h, q, _), k = asked.shape, ids.shape[1]
        ctx.sizes = (k, h, table.shape[1], said.shape[2], 2 * len(frequency))
        weights, heard = asked.new_empty(h, q, k), asked.new_empty(asked.shape)
        parallel_for(attend, q, as_arrays(*inputs), as_array(weights), as_array(heard), ctx.sizes)
        ctx.save_for_backward(*inputs, weights)
        return heard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weights = ctx.saved_tensors
        asked, table, ids, fade, said, _, frequency = inputs
        g_asked, g_rows = asked.new_empty(asked.shape), table.new_empty(*ids.shape, table.shape[1])
        g_table, g_fade, g_said = (x.new_zeros(x.shape) for x in (table, fade, said))
        g_frequency = frequency.new_zeros(len(ids), len(frequency))
        given, grads = as_arrays(weights, g.contiguous()), as_arrays(g_asked, g_rows, g_fade, g_said, g_frequency)
        parallel_for(_backward, len(ids), as_arrays(*inputs), given, grads, ctx.sizes)
        if table.shape[1]:
            parallel_for(
                _backward_table, len(table), as_array(ids), as_array(g_rows), as_array(g_table), table.shape[1]
            )
        return g_asked, g_table, None, g_fade, g_said, None, g_frequency.sum(0)
