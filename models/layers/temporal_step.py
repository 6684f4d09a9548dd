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

from models.layers.temporal_attention_cpu import _add, _dot, _forward

Array = np.ndarray
Arrays = tuple[Array, ...]
Sizes = tuple[int, int, int, int, int]  # k, h, d, f, p


@njit(inline="always")
def _times(matrix: Array, bias: Array, x: Array, out: Array) -> None:
    """out = matrix · x + bias."""
    n = len(x)
    for i in range(len(out)):
        out[i] = bias[i] + _dot(matrix, i * n, x, 0, n)


@njit(inline="always")
def _encode(elapsed: Any, frequency: Array, scale: Any, out: Array, at: int) -> None:
    waves = len(frequency)
    cos, sin = out[at : at + waves], out[at + waves : at + 2 * waves]
    for i in range(waves):
        angle = np.float32(elapsed) * frequency[i]
        cos[i], sin[i] = np.float32(math.cos(angle)) * scale, np.float32(math.sin(angle)) * scale


@njit(inline="always")
def _left(memory: Arrays, rate: Any, node: int, t: float) -> tuple[Any, Any]:
    """exp(−λΔt) of a node's memory, and Δt."""
    _, updated, decay = memory
    elapsed = np.float32(max(0.0, t - updated[node]))
    return np.float32(math.exp(-rate * decay[node] * elapsed)), elapsed


@njit(inline="always")
def _sigmoid(x: Any) -> Any:
    return np.float32(1.0) / (np.float32(1.0) + np.float32(math.exp(-x)))


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def update(
    memory: Arrays, ends: Arrays, time: Arrays, weights: Arrays, scale: Any, rate: Any, sizes: Sizes, out: Array
) -> None:
    """New memories (2, d) of the two ends of one event. ``memory``: vector, updated, decay; ``ends``: node, other, t,
    features; ``time``: the frequencies; ``weights``: those of the GRU, from message and memory, and their biases."""
    node, other, t, features = ends
    _, _, d, f, p = sizes
    said, s = np.zeros(2 * d + p + f, np.float32), np.empty(d, np.float32)
    from_x, from_s = np.empty(3 * d, np.float32), np.empty(3 * d, np.float32)
    for i in range(len(node)):
        left, elapsed = _left(memory, rate, node[i], t[i])
        left_other, _ = _left(memory, rate, other[i], t[i])
        said[: 2 * d] = 0
        _add(said, 0, left, memory[0], node[i] * d, d)
        _add(said, d, left_other, memory[0], other[i] * d, d)
        _encode(elapsed, time[0], scale, said, 2 * d)
        said[2 * d + p :] = features[i * f : (i + 1) * f]
        s[:] = said[:d]
        _times(weights[0], weights[2], said, from_x)
        _times(weights[1], weights[3], s, from_s)
        for c in range(d):
            gate = _sigmoid(from_x[c] + from_s[c])
            keep = _sigmoid(from_x[d + c] + from_s[d + c])
            new = np.float32(math.tanh(from_x[2 * d + c] + gate * from_s[2 * d + c]))
            out[i * d + c] = new + keep * (s[c] - new)


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def embed(
    memory: Arrays, ring: Arrays, asking: Arrays, weights: Arrays, scale: Any, rate: Any, sizes: Sizes, out: Array
) -> None:
    """Embeddings (q, d) of the nodes ``asking[0]`` at the times ``asking[1]``. ``ring``: other, t, features;
    ``weights``: frequencies; query and bias; key, value; merge's two matrices, each with its bias."""
    nodes, t = asking
    frequency, query, query_bias, key, value, merge, merge_bias, last, last_bias = weights
    k, h, d, f, p = sizes
    r, per = d + f + p, d // h
    asked, slots, heard = np.empty(h * r, np.float32), np.empty(h * k, np.float32), np.empty(h * r, np.float32)
    fade, phi, both = np.empty(k, np.float32), np.empty(k * p, np.float32), np.empty(2 * d, np.float32)
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
                _encode(np.float32(t[i] - ring[1][node * k + j]), frequency, scale, phi, j * p)
        _forward((asked, memory[0], ids, fade, features, phi), slots, heard, (k, h, d, f, p), 0, 1)
        for c in range(h * r):
            _add(both, c // r * per, heard[c], value, c * per, per)
        both[d:] = z
        _times(merge, merge_bias, both, hidden)
        for c in range(d):
            hidden[c] = max(hidden[c], np.float32(0.0))
        _times(last, last_bias, hidden, answer)
        out[i * d : (i + 1) * d] = answer
