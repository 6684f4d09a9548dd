"""Compiled passes of the temporal graph network on a CPU, without gradients.

The passes compute the same as temporal_graph.py does in torch operations, except for the matrix products of the GRU.
They support only the modules of the paper: GRU, identity message, functional encoding, one layer of attention. For a
few events, the overhead of about seventy torch operations would take longer than the computation.

Glossary as in memory.py and temporal_attention.py: n nodes · e events · end one of the two nodes of an event · g ends
that receive a message · q nodes to embed · d channels of a memory · h heads · k neighbour slots per node · p channels
of a time encoding · f features of an end: the f − 1 features of its event, then 1 for the source or −1 for the
destination · r = d + f + p channels of a neighbour · m = 2d + p + f channels of a message · λ fading rate · Δt time
since a node's last event.

The kernels read every array as one-dimensional. Arrays are float32, except times (float64) and nodes (int64). Matrices
are (out, in), as in torch. ``memory``: vector (n, d), updated (n,), decay (n,). ``buffer``: other (n, k), negative in
an empty slot, t (n, k), features (n, k, f).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from models.layers.kernels.parallel import FASTMATH_FLAGS
from models.layers.kernels.temporal_attention_cpu import attend, copy
from models.layers.kernels.time_encoding_cpu import encode

Array = np.ndarray
Arrays = tuple[Array, ...]
Rates = tuple[np.float32, np.float32]  # the factor of the time encoding, and the rate λ at which memories fade
Sizes = tuple[int, int, int, int, int]  # k, h, d, f, p


@njit(inline="always")
def _dot(a: Array, i: int, b: Array, j: int, n: int) -> Any:
    """a[i : i + n] · b[j : j + n]."""
    x = a[i : i + n]  # a slice tells the compiler that no index is negative
    y = b[j : j + n]
    total = np.float32(0.0)
    for c in range(n):
        total += x[c] * y[c]
    return total


@njit(inline="always")
def _add_scaled(out: Array, i: int, factor: float, b: Array, j: int, n: int) -> None:
    """Adds factor · b[j : j + n] to out[i : i + n]."""
    x = out[i : i + n]
    y = b[j : j + n]
    for c in range(n):
        x[c] += factor * y[c]


@njit(inline="always")
def _apply_linear(matrix: Array, bias: Array, x: Array, out: Array) -> None:
    """Sets ``out`` to matrix · x + bias."""
    n = len(x)
    for i in range(len(out)):
        out[i] = bias[i] + _dot(matrix, i * n, x, 0, n)


@njit(inline="always")
def _decay_factor(memory: Arrays, rate: Any, node: int, t: float) -> tuple[Any, Any]:
    """The factor exp(−λ · decay · Δt) by which a node's memory has faded at time ``t``, and Δt ≥ 0."""
    _, updated, decay = memory
    elapsed = np.float32(max(0.0, t - updated[node]))
    return np.float32(math.exp(-rate * decay[node] * elapsed)), elapsed


@njit(nogil=True, error_model="numpy", cache=True)
def find_newest_ends(events: Arrays, n_nodes: int, rows: Array, has_one_end_each: bool) -> int:
    """Fills the start of ``rows`` (2e,) with the newest end of each node. Returns the number of distinct nodes.

    End i is the source of event i, and end e + i is its destination. Returns −1 if an event is invalid, if the ends of
    a node are not in strictly ascending order of time, or if ``has_one_end_each`` is True and a node has several ends.
    An event is invalid if a node is outside [0, n_nodes), if both nodes are the same, or if its time is negative or
    NaN.
    """
    src, dst, t = events
    e = len(src)
    n_newest = 0
    for i in range(e):
        if min(src[i], dst[i]) < 0 or max(src[i], dst[i]) >= n_nodes or src[i] == dst[i] or not t[i] >= 0:
            return -1
    if e == 1:
        rows[0] = 0
        rows[1] = 1
        return 2
    node_of_end = np.concatenate((src, dst))
    order = np.argsort(node_of_end, kind="mergesort")
    for i in range(2 * e):
        end = order[i]
        next_end = order[min(i + 1, 2 * e - 1)]
        if i + 1 < 2 * e and node_of_end[end] == node_of_end[next_end]:
            if has_one_end_each or next_end % e < end % e or not t[next_end % e] > t[end % e]:
                return -1
        else:
            rows[n_newest] = end
            n_newest += 1
    return n_newest


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def write_messages(
    memory: Arrays, events: Arrays, rows: Array, frequency: Array, rates: Rates, sizes: Sizes, out: Arrays
) -> None:
    """Fills ``out`` for the ends ``rows`` (g,): their nodes (g,), messages (g, m) and faded memories (g, d).

    ``events``: src, dst, t (e,), features (e, f − 1). ``frequency`` (p / 2,): the frequencies of the time encoding.
    """
    src, dst, t, features = events
    scale, rate = rates
    nodes, messages, s = out
    _, _, d, f, p = sizes
    e = len(src)
    m = 2 * d + p + f
    s[:] = 0
    for i in range(len(rows)):
        event = rows[i] % e
        is_destination = rows[i] >= e
        node, other = (dst[event], src[event]) if is_destination else (src[event], dst[event])
        factor, elapsed = _decay_factor(memory, rate, node, t[event])
        other_factor, _ = _decay_factor(memory, rate, other, t[event])
        message = messages[i * m : (i + 1) * m]
        nodes[i] = node
        _add_scaled(s, i * d, factor, memory[0], node * d, d)
        copy(message, 0, s, i * d, d)
        message[d : 2 * d] = 0
        _add_scaled(message, d, other_factor, memory[0], other * d, d)
        encode(elapsed, frequency, scale, message, 2 * d)
        copy(message, 2 * d + p, features, event * (f - 1), f - 1)
        message[m - 1] = np.float32(-1.0 if is_destination else 1.0)


@njit(nogil=True, error_model="numpy", cache=True)
def write_neighbours(buffer: Arrays, counters: Arrays, events: Arrays, n_slots: int) -> None:
    """Writes both ends of every event to ``buffer``, in the order of the events, and updates ``counters``.

    ``counters``: updated (n,), the time of each node's last event, and event_count (n,). ``events``: src, dst, t (e,),
    features (e, f − 1). ``n_slots`` is k; a new event replaces the oldest one of its node.
    """
    src, dst, t, features = events
    updated, event_count = counters
    n_event_features = len(features) // len(src)
    for event in range(len(src)):
        for is_destination in range(2):
            node, other = (dst[event], src[event]) if is_destination else (src[event], dst[event])
            slot = node * n_slots + event_count[node] % n_slots
            buffer[0][slot] = other
            buffer[1][slot] = t[event]
            copy(buffer[2], slot * (n_event_features + 1), features, event * n_event_features, n_event_features)
            buffer[2][slot * (n_event_features + 1) + n_event_features] = np.float32(1 - 2 * is_destination)
            updated[node] = max(updated[node], t[event])
            event_count[node] += 1


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def embed(
    memory: Arrays, buffer: Arrays, queries: Arrays, weights: Arrays, rates: Rates, sizes: Sizes, out: Array
) -> bool:
    """Fills ``out`` (q, d) with the embeddings of the ``queries``: nodes (q,) at times (q,).

    Returns True on success. Returns False, and fills nothing, if a node is outside [0, n). ``weights``: frequencies of
    the time encoding; query matrix and bias; key matrix; value matrix; the two merge matrices, each with its bias.
    """
    nodes, t = queries
    for node in nodes:
        if not 0 <= node < len(memory[1]):
            return False
    _, rate = rates
    frequency, query, query_bias, key, value, merge_1, merge_1_bias, merge_2, merge_2_bias = weights
    k, h, d, f, p = sizes
    r = d + f + p
    head_width = d // h
    key_query = np.empty(h * r, np.float32)
    slot_weights = np.empty(h * k, np.float32)
    attended = np.empty(h * r, np.float32)
    fade = np.empty(k, np.float32)
    elapsed = np.empty(k, np.float32)
    merge_input = np.empty(2 * d, np.float32)
    z = np.empty(d, np.float32)
    q = np.empty(d, np.float32)
    hidden = np.empty(d, np.float32)
    embedding = np.empty(d, np.float32)
    for i in range(len(nodes)):
        node = nodes[i]
        factor, _ = _decay_factor(memory, rate, node, t[i])
        z[:] = 0
        _add_scaled(z, 0, factor, memory[0], node * d, d)
        _apply_linear(query, query_bias, z, q)
        key_query[:] = 0
        merge_input[:] = 0
        for c in range(d):
            _add_scaled(key_query, c // head_width * r, q[c] * np.float32(head_width**-0.5), key, c * r, r)
        ids = buffer[0][node * k : (node + 1) * k]
        features = buffer[2][node * k * f : (node + 1) * k * f]
        for j in range(k):
            if ids[j] >= 0:
                fade[j], _ = _decay_factor(memory, rate, ids[j], t[i])
                elapsed[j] = np.float32(t[i] - buffer[1][node * k + j])
        inputs = (key_query, memory[0], ids, fade, features, elapsed, frequency)
        attend(inputs, slot_weights, attended, (k, h, d, f, p), 0, 1)
        for c in range(h * r):
            _add_scaled(merge_input, c // r * head_width, attended[c], value, c * head_width, head_width)
        copy(merge_input, d, z, 0, d)
        _apply_linear(merge_1, merge_1_bias, merge_input, hidden)
        for c in range(d):
            hidden[c] = max(hidden[c], np.float32(0.0))
        _apply_linear(merge_2, merge_2_bias, hidden, embedding)
        copy(out, i * d, embedding, 0, d)
    return True
