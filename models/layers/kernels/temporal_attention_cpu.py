"""Attention over the neighbours of nodes on a CPU.

The kernels gather the neighbours of one node into a buffer that fits the cache.

Glossary as in temporal_attention.py: q query nodes · k neighbour slots per node · h heads · n nodes of the table · m
channels of a table row · f features of an event · p channels of a time encoding, 2 per frequency · r = m + f + p
channels of a neighbour: its table row times fade, the features of its event, and the encoding of the elapsed time, in
this order.

The kernels read every array as one-dimensional: queries, attended (h, q, r); table (n, m); ids (q, k), the neighbour in
each slot, negative in an empty slot; fade, elapsed (q, k); features (q, k, f); weights (h, q, k). The weights of a
node's used slots come first, in slot order; the entries after them are undefined. Rows of buffers have w values: r
values, and zeros up to a whole number of vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.layers.kernels.parallel import FASTMATH_FLAGS, as_array, as_arrays, parallel_for
from models.layers.kernels.simd import constant, fma, lanes_per_vector, load, mul, reduce_add, splat, store
from models.layers.kernels.time_encoding_cpu import add_frequency_gradient, encode

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, int]  # k, h, m, f, p
LANES = lanes_per_vector(np.float32)


@njit(inline="always")
def copy(out: Array, i: int, source: Array, j: int, n: int) -> None:
    """Sets out[i : i + n] to source[j : j + n].

    It is faster than a slice assignment, which first checks for overlap.
    """
    x = out[i : i + n]
    y = source[j : j + n]
    for c in range(n):
        x[c] = y[c]


@njit(inline="always")
def _dot(a: Array, b: Array, j: int, w: int) -> Any:
    """a · b[j : j + w]."""
    summed = mul(load(a, 0), load(b, j))
    for c in range(LANES, w, LANES):
        summed = fma(load(a, c), load(b, j + c), summed)
    return reduce_add(summed)


@njit(inline="always")
def _weighted_sum(weights: Array, first: int, count: int, rows: Array, out: Array, w: int) -> None:
    """Sets ``out`` (w,) to Σ_j weights[first + j] · row j, for j < count."""
    for c in range(0, w, LANES):
        summed = constant(load(rows, c), 0.0)
        for j in range(count):
            summed = fma(splat(weights, first + j), load(rows, j * w + c), summed)
        store(out, c, summed)


@njit(inline="always")
def _gather(node: int, inputs: Arrays, sizes: Sizes, u: Array, used_slots: Array) -> int:
    """Fills ``used_slots`` (k,) with the positions in (q, k) of the used slots of ``node``, and ``u`` (k, w) with the r
    channels of their neighbours. Returns the number of used slots."""
    _, table, ids, fade, features, elapsed, frequency = inputs
    k, _, m, f, _ = sizes
    w = len(u) // k
    scale = np.float32(1 / math.sqrt(max(len(frequency), 1)))
    n_used = 0
    for slot in range(node * k, node * k + k):
        if ids[slot] >= 0:
            table_row = table[ids[slot] * m : ids[slot] * m + m]
            factor = fade[slot]
            faded = u[n_used * w : n_used * w + m]
            for c in range(m):
                faded[c] = factor * table_row[c]
            copy(u, n_used * w + m, features, slot * f, f)
            encode(elapsed[slot], frequency, scale, u, n_used * w + m + f)
            used_slots[n_used] = slot
            n_used += 1
    return n_used


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def attend(inputs: Arrays, weights: Array, attended: Array, sizes: Sizes, first: int, stop: int) -> None:
    """Fills ``weights`` and ``attended`` for the nodes [first, stop)."""
    k, h, m, f, p = sizes
    q = len(inputs[2]) // k
    r = m + f + p
    w = -(-r // LANES) * LANES
    u = np.zeros(k * w, np.float32)
    used_slots = np.empty(k, np.int64)
    query = np.zeros(w, np.float32)
    result = np.empty(w, np.float32)
    for i in range(first, stop):
        n_used = _gather(i, inputs, sizes, u, used_slots)
        for row in range(i, h * q, q):
            start = row * k
            highest = np.float32(-np.inf)
            total = np.float32(0.0)
            copy(query, 0, inputs[0], row * r, r)
            for j in range(n_used):
                weights[start + j] = _dot(query, u, j * w, w)
                highest = max(highest, weights[start + j])
            for j in range(n_used):
                weights[start + j] = np.float32(math.exp(weights[start + j] - highest))
                total += weights[start + j]
            for j in range(n_used):
                weights[start + j] /= total
            _weighted_sum(weights, start, n_used, u, result, w)
            copy(attended, row * r, result, 0, r)


@njit(inline="always")
def _backward_scores(
    u: Array, query: Array, g: Array, weights: Array, first: int, n_used: int, g_scores: Array, g_u: Array
) -> None:
    """Fills ``g_scores`` (k,), the gradients of one head's scores, and adds the gradients of the neighbours to ``g_u``.

    ``g`` (w,) is the gradient of the head's attended row.
    """
    w = len(g)
    mean_gradient = np.float32(0.0)
    for j in range(n_used):
        g_scores[j] = _dot(g, u, j * w, w)
        mean_gradient += weights[first + j] * g_scores[j]
    for j in range(n_used):
        g_scores[j] = weights[first + j] * (g_scores[j] - mean_gradient)
        weight = splat(weights, first + j)
        g_score = splat(g_scores, j)
        for c in range(0, w, LANES):
            summed = fma(weight, load(g, c), load(g_u, j * w + c))
            store(g_u, j * w + c, fma(g_score, load(query, c), summed))


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def _backward(
    inputs: Arrays, weights: Array, g_attended: Array, grads: Arrays, sizes: Sizes, first: int, stop: int
) -> None:
    """Fills ``grads`` for the nodes [first, stop).

    ``grads``: the gradients of queries (h, q, r), of the table row in each slot (q, k, m), of fade (q, k), of features
    (q, k, f), and of the frequencies for each node (q, p / 2). Entries of empty slots are not written.
    """
    _, table, ids, fade, _, elapsed, _ = inputs
    g_queries, g_rows, g_fade, g_features, g_frequency = grads
    k, h, m, f, p = sizes
    q = len(ids) // k
    r = m + f + p
    w = -(-r // LANES) * LANES
    u = np.zeros(k * w, np.float32)
    g_u = np.empty(k * w, np.float32)
    used_slots = np.empty(k, np.int64)
    g_scores = np.empty(k, np.float32)
    query = np.zeros(w, np.float32)
    g = np.zeros(w, np.float32)
    result = np.empty(w, np.float32)
    for i in range(first, stop):
        n_used = _gather(i, inputs, sizes, u, used_slots)
        g_u[:] = 0
        for row in range(i, h * q, q):
            copy(query, 0, inputs[0], row * r, r)
            copy(g, 0, g_attended, row * r, r)
            _backward_scores(u, query, g, weights, row * k, n_used, g_scores, g_u)
            _weighted_sum(g_scores, 0, n_used, u, result, w)
            copy(g_queries, row * r, result, 0, r)
        g_node_frequency = g_frequency[i * (p // 2) : (i + 1) * (p // 2)]
        for j in range(n_used):
            slot = used_slots[j]
            g_neighbour = g_u[j * w : (j + 1) * w]
            sum_fade = np.float32(0.0)
            table_row = table[ids[slot] * m : ids[slot] * m + m]
            g_row = g_rows[slot * m : slot * m + m]
            for c in range(m):
                sum_fade += g_neighbour[c] * table_row[c]
                g_row[c] = fade[slot] * g_neighbour[c]
            g_fade[slot] = sum_fade
            copy(g_features, slot * f, g_neighbour, m, f)
            add_frequency_gradient(elapsed[slot], u, j * w + m + f, g_neighbour[m + f :], g_node_frequency)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def _backward_table(ids: Array, g_rows: Array, g_table: Array, m: int, first: int, stop: int) -> None:
    """Adds the gradients ``g_rows`` (q, k, m) of the slots to the rows [first, stop) of ``g_table``.

    No two threads write to the same row, and the order of the sums does not depend on the number of threads.
    """
    for slot in range(len(ids)):
        if first <= ids[slot] < stop:
            out = g_table[ids[slot] * m : ids[slot] * m + m]
            g_row = g_rows[slot * m : slot * m + m]
            for c in range(m):
                out[c] += g_row[c]


class Attend(Function):
    """queries (h, q, r), table (n, m), ids (q, k), fade (q, k), features (q, k, f), elapsed (q, k), frequency (p / 2,)
    → attended (h, q, r). ids are int64, all other tensors float32. elapsed receives no gradient.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = tuple(x.contiguous() for x in inputs)
        queries, table, ids, _, features, _, frequency = inputs
        h, q, _ = queries.shape
        k = ids.shape[1]
        ctx.sizes = (k, h, table.shape[1], features.shape[2], 2 * len(frequency))
        weights = queries.new_empty(h, q, k)
        attended = queries.new_empty(queries.shape)
        parallel_for(attend, q, as_arrays(*inputs), as_array(weights), as_array(attended), ctx.sizes)
        ctx.save_for_backward(*inputs, weights)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weights = ctx.saved_tensors
        queries, table, ids, fade, features, _, frequency = inputs
        g_queries = queries.new_empty(queries.shape)
        g_rows = table.new_empty(*ids.shape, table.shape[1])
        g_table, g_fade, g_features = (x.new_zeros(x.shape) for x in (table, fade, features))
        g_frequency = frequency.new_zeros(len(ids), len(frequency))
        weights, g_attended = as_arrays(weights, g.contiguous())
        grads = as_arrays(g_queries, g_rows, g_fade, g_features, g_frequency)
        parallel_for(_backward, len(ids), as_arrays(*inputs), weights, g_attended, grads, ctx.sizes)
        if table.shape[1]:
            parallel_for(
                _backward_table, len(table), as_array(ids), as_array(g_rows), as_array(g_table), table.shape[1]
            )
        return g_queries, g_table, None, g_fade, g_features, None, g_frequency.sum(0)
