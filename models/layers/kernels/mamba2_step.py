"""One bar of Mamba-2 on a CPU, in one kernel call: everything between the input and the output projection.

Glossary as in mamba2.py: b sequences · e = h p channels inside · h heads of p channels · g ``groups`` of heads that
share B and C · n states per channel · k taps · dt step size · A, D (h,). Also: m = e + 2 g n channels of the
convolution · w (m, k) weights and w_bias (m,) bias of the convolution · tail (b, k − 1, m) its last inputs, the newest
last · S (b, h, p, n) state · projected (b, e + m + h) the input projection of the bar: the gate z, the input of the
convolution, and dt, in this order.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

Array = np.ndarray


@njit(nogil=True, error_model="numpy", cache=True, fastmath=True)
def compute_bar(
    projected: Array,
    tail: Array,
    S: Array,
    w: Array,
    w_bias: Array,
    dt_bias: Array,
    A: Array,
    D: Array,
    norm: Array,
    groups: int,
    y: Array,
    tail_after: Array,
    S_after: Array,
) -> None:
    """Fills ``y`` (b, e), gated and normalised, and the new ``tail_after`` (b, k − 1, m) and ``S_after`` (b, h, p, n).

    ``dt_bias``, ``A`` and ``D`` (h,); ``norm`` (e,), the weight of the normalisation. All in float32.
    """
    _, n_heads, p, n = S.shape
    m = len(w)
    e = n_heads * p
    heads_per_group = n_heads // groups
    convolved = np.empty(m, projected.dtype)
    for b in range(len(projected)):
        _convolve(projected[b, e : e + m], tail[b], w, w_bias, convolved, tail_after[b])
        for g in range(groups):
            B = convolved[e + g * n : e + (g + 1) * n]
            C = convolved[e + (groups + g) * n :][:n]
            squares = np.float32(0.0)
            for head in range(g * heads_per_group, (g + 1) * heads_per_group):
                raw_dt = projected[b, e + m + head] + dt_bias[head]
                dt = np.float32(max(raw_dt, 0.0) + math.log1p(math.exp(-abs(raw_dt))))
                decay = np.float32(math.exp(dt * A[head]))
                for c in range(p):
                    channel = head * p + c
                    state_output = np.float32(0.0)
                    entering = dt * convolved[channel]
                    for j in range(n):
                        s = decay * S[b, head, c, j] + entering * B[j]
                        S_after[b, head, c, j] = s
                        state_output += s * C[j]
                    z = projected[b, channel]
                    gated = (
                        (state_output + D[head] * convolved[channel]) * z / (np.float32(1.0) + np.float32(math.exp(-z)))
                    )
                    y[b, channel] = gated
                    squares += gated * gated
            width = heads_per_group * p
            scale = np.float32(1.0 / math.sqrt(squares / width + 1e-5))
            for channel in range(g * width, (g + 1) * width):
                y[b, channel] *= scale * norm[channel]


@njit(inline="always")
def _convolve(x: Array, tail: Array, w: Array, w_bias: Array, convolved: Array, tail_after: Array) -> None:
    """Fills ``convolved`` (m,), the SiLU of the convolution at bar x (m,), and the new ``tail_after`` (k − 1, m)."""
    m, k = w.shape
    for c in range(m):
        value = w_bias[c] + w[c, k - 1] * x[c]
        for j in range(k - 1):
            value += w[c, j] * tail[j, c]
        convolved[c] = value / (np.float32(1.0) + np.float32(math.exp(-value)))
    for j in range(k - 2):
        tail_after[j] = tail[j + 1]
    if k > 1:
        tail_after[k - 2] = x
