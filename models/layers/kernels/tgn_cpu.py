"""Events on a CPU where nothing is learned from them: what surrounds the products of matrices, in compiled passes.

What temporal_graph.py says in torch operations, for the paper's own parts: GRU, identity message, functional encoding,
one layer of attention. A few events are too small for them: calling some seventy operations costs more than their work.

Glossary as in memory.py and temporal_attention.py: d channels · h heads · k slots · p numbers of a time · f features of
an end · r = d + f + p · m = 2d + p + f numbers of a message. Arrays are flat and float32, but for times (float64) and
nodes (int64). Matrices are (out, in), as torch keeps them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from models.layers.kernels.parallel import FAST
from models.layers.kernels.temporal_attention_cpu import attend, copy
from models.layers.kernels.time_encoding_cpu import encode

Array = np.ndarray
Arrays = tuple[Array, ...]
Rates = tuple[np.float32, np.float32]  # the time encoding's factor, the rate of fading
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


@njit(nogil=True, error_model="numpy", cache=True)
def newest(events: Arrays, nodes: int, rows: Array, once: bool) -> int:
    """How many nodes the events touch; ``rows`` (2e,) begins with the newest end of each: i is the end of event i's
    source, e + i that of its destination. −1 where an event cannot be, or a node's ends are simultaneous, not in order,
    of events that are not, or several though ``once`` is said."""
    src, dst, t = events
    e, count = len(src), 0
    for i in range(e):
        if min(src[i], dst[i]) < 0 or max(src[i], dst[i]) >= nodes or src[i] == dst[i] or not t[i] >= 0:
            return -1
    if e == 1:
        rows[0], rows[1] = 0, 1
        return 2
    node = np.concatenate((src, dst))
    order = np.argsort(node, kind="mergesort")
    for place in range(2 * e):
        at, after = order[place], order[min(place + 1, 2 * e - 1)]
        if place + 1 < 2 * e and node[at] == node[after]:
            if once or after % e < at % e or not t[after % e] > t[at % e]:
                return -1
        else:
            rows[count] = at
            count += 1
    return count


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def write_messages(
    memory: Arrays, events: Arrays, rows: Array, time: Array, rates: Rates, sizes: Sizes, out: Arrays
) -> None:
    """Fills ``out``: the nodes (g,) of the ends ``rows``, their messages (g, m) and faded memories (g, d). ``memory``:
    vector, updated, decay; ``events``: src, dst, t, features; ``time``: the frequencies."""
    src, dst, t, features = events
    scale, rate = rates
    nodes, said, s = out
    _, _, d, f, p = sizes
    e, m, s[:] = len(src), 2 * d + p + f, 0
    for i in range(len(rows)):
        event, back = rows[i] % e, rows[i] >= e
        node, other = (dst[event], src[event]) if back else (src[event], dst[event])
        left, elapsed = _left(memory, rate, node, t[event])
        left_other, _ = _left(memory, rate, other, t[event])
        mine, nodes[i] = said[i * m : (i + 1) * m], node
        _add(s, i * d, left, memory[0], node * d, d)
        copy(mine, 0, s, i * d, d)
        mine[d : 2 * d] = 0
        _add(mine, d, left_other, memory[0], other * d, d)
        encode(elapsed, time, scale, mine, 2 * d)
        copy(mine, 2 * d + p, features, event * (f - 1), f - 1)
        mine[m - 1] = np.float32(-1.0 if back else 1.0)


@njit(nogil=True, error_model="numpy", cache=True)
def write_neighbours(buffer: Arrays, counted: Arrays, events: Arrays, slots: int) -> None:
    """Writes both ends of every event, in order; ``buffer``: other, t, features; ``counted``: updated, event_count."""
    (src, dst, t, features), (updated, event_count) = events, counted
    said = len(features) // len(src)
    for event in range(len(src)):
        for back in range(2):
            node, other = (dst[event], src[event]) if back else (src[event], dst[event])
            slot = node * slots + event_count[node] % slots
            buffer[0][slot], buffer[1][slot] = other, t[event]
            copy(buffer[2], slot * (said + 1), features, event * said, said)
            buffer[2][slot * (said + 1) + said] = np.float32(1 - 2 * back)
            updated[node], event_count[node] = max(updated[node], t[event]), event_count[node] + 1


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def embed(
    memory: Arrays, buffer: Arrays, asking: Arrays, weights: Arrays, rates: Rates, sizes: Sizes, out: Array
) -> bool:
    """Embeddings (q, d) of the nodes ``asking[0]`` at the times ``asking[1]``; False, and none, where there is no such
    node. ``buffer``: other, t, features; ``weights``: frequencies; query and bias; key, value; merge's two matrices, each
    with its bias."""
    nodes, t = asking
    for node in nodes:
        if not 0 <= node < len(memory[1]):
            return False
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
        ids, features = buffer[0][node * k : (node + 1) * k], buffer[2][node * k * f : (node + 1) * k * f]
        for j in range(k):
            if ids[j] >= 0:
                fade[j], _ = _left(memory, rate, ids[j], t[i])
                elapsed[j] = np.float32(t[i] - buffer[1][node * k + j])
        attend((asked, memory[0], ids, fade, features, elapsed, frequency), slots, heard, (k, h, d, f, p), 0, 1)
        for c in range(h * r):
            _add(both, c // r * per, heard[c], value, c * per, per)
        copy(both, d, z, 0, d)
        _times(merge, merge_bias, both, hidden)
        for c in range(d):
            hidden[c] = max(hidden[c], np.float32(0.0))
        _times(last, last_bias, hidden, answer)
        copy(out, i * d, answer, 0, d)
    return True
