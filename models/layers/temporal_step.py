"""One event at a time on a CPU: a memory's update and an embedding, each in one compiled pass.

What temporal_graph.py says in torch operations, for the paper's own parts: GRU, identity message, functional encoding,
one layer of attention. A single event is too small for them: calling some seventy operations costs more than their
work.

Glossary as in memory.py and temporal_attention.py: d channels · h heads · k slots · p numbers of a time · f features of
an end · r = d + f + p · m = 2d + p + f numbers of a message. Arrays are flat and float32, but for times (float64) and
nodes (int64). Matrices are (out, in), as torch keeps them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from models.layers.parallel import FAST
from models.layers.temporal_attention_cpu import attend
from models.layers.waves_cpu import encode

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, int]  # k, h, d, f, p


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


@njit(inline="always")
def _times(matrix: Array, bias: Array, x: Array, out: Array) -> None:
    """out = matrix · x + bias."""
    n = len(x)
    for i in range(len(out)):
        out[i] = bias[i] + _dot(matrix, i * n, x, 0, n)


@njit(inline="always")
def _left(memory: Arrays, rate: Any, node: int, t: float) -> tuple[Any, Any]:
    """exp(−λΔt) of a node's memory, and Δt."""
    _, updated, decay = memory
    elapsed = np.float32(max(0.0, t - updated[node]))
    return np.float32(math.exp(-rate * decay[node] * elapsed)), elapsed


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def tell(memory: Arrays, ends: Arrays, time: Arrays, rates: tuple[Any, Any], sizes: Sizes, out: Arrays) -> None:
    """Fills ``out``: the messages (r, m) of ends of events, and the faded memories (r, d) that hear them. ``memory``:
    vector, updated, decay; ``ends``: node, other, t, features; ``time``: the frequencies; ``rates``: the time
    encoding's factor, the rate of fading."""
    node, other, t, features = ends
    scale, rate = rates
    said, s = out
    _, _, d, f, p = sizes
    s[:], m = 0, 2 * d + p + f
    for i in range(len(node)):
        left, elapsed = _left(memory, rate, node[i], t[i])
        left_other, _ = _left(memory, rate, other[i], t[i])
        mine = said[i * m : (i + 1) * m]
        _add(s, i * d, left, memory[0], node[i] * d, d)
        mine[:d], mine[d : 2 * d] = s[i * d : (i + 1) * d], 0
        _add(mine, d, left_other, memory[0], other[i] * d, d)
        encode(elapsed, time[0], scale, mine, 2 * d)
        mine[2 * d + p :] = features[i * f : (i + 1) * f]


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def embed(
    memory: Arrays, ring: Arrays, asking: Arrays, weights: Arrays, rates: tuple[Any, Any], sizes: Sizes, out: Array
) -> None:
    """Embeddings (q, d) of the nodes ``asking[0]`` at the times ``asking[1]``. ``ring``: other, t, features;
    ``weights``: frequencies; query and bias; key, value; merge's two matrices, each with its bias."""
    nodes, t = asking
    _, rate = rates
    frequency, query, query_bias, key, value, merge, merge_bias, last, last_bias = weights
    k, h, d, f, p = sizes
    r, per = d + f + p, d // h
    asked, slots, heard = np.empty(h * r, np.float32), np.empty(h * k, np.float32), np.empty(h * r, np.float32)
    fade, elapsed, both = np.empty(k, np.float32), np.empty(k, np.float32), np.empty(2 * d, np.float32)
    z, q = np.empty(d, np.float32), np.empty(d, np.float32)
    hidden, answer = np.empty(d, np.float32), np.empty(d, np.float32)
    for i in range(len(nodes)):
        node = nodes[i]
        left, _ = _left(memory, rate, node, t[i])
        z[:] = 0
        _add(z, 0, left, memory[0], node * d, d)
        _times(query, query_bias, z, q)
        asked[:], both[:] = 0, 0
        for c in range(d):
            _add(asked, c // per * r, q[c] * np.float32(per**-0.5), key, c * r, r)
        ids, features = ring[0][node * k : (node + 1) * k], ring[2][node * k * f : (node + 1) * k * f]
        for j in range(k):
            if ids[j] >= 0:
                fade[j], _ = _left(memory, rate, ids[j], t[i])
                elapsed[j] = np.float32(t[i] - ring[1][node * k + j])
        attend((asked, memory[0], ids, fade, features, elapsed, frequency), slots, heard, (k, h, d, f, p), 0, 1)
        for c in range(h * r):
            _add(both, c // r * per, heard[c], value, c * per, per)
        both[d:] = z
        _times(merge, merge_bias, both, hidden)
        for c in range(d):
            hidden[c] = max(hidden[c], np.float32(0.0))
        _times(last, last_bias, hidden, answer)
        out[i * d : (i + 1) * d] = answer
