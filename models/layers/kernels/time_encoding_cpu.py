"""cos ωt and sin ωt on a CPU, in a form that the compiler vectorises.

Glossary: t elapsed time · ω angular frequency · turn a whole period, 2π · waves the values cos ωt and sin ωt.

The angle ωt is a float32. Whole turns are subtracted from it in double precision, so a long time adds no error to that
of the angle. Taylor series give sine and cosine of half the remaining angle, and the double-angle formulas give the
waves. Their absolute error is below 1e-6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from models.layers.kernels.parallel import FASTMATH_FLAGS

Array = np.ndarray
TURN_RADIANS = 2 * math.pi
SIN_TAYLOR = tuple(np.float32((-1) ** k / math.factorial(2 * k + 1)) for k in range(6))
COS_TAYLOR = tuple(np.float32((-1) ** k / math.factorial(2 * k)) for k in range(7))


@njit(inline="always")
def encode(elapsed: Any, frequency: Array, scale: Any, out: Array, start: int) -> None:
    """Writes scale · [cos ωt, sin ωt] of one elapsed time t and all frequencies (n,) to out[start : start + 2 n]."""
    n = len(frequency)
    cos = out[start : start + n]
    sin = out[start + n : start + 2 * n]
    for i in range(n):
        turns = np.float64(np.float32(elapsed * frequency[i])) * (1 / TURN_RADIANS)
        half = np.float32((turns - np.floor(turns + 0.5)) * (TURN_RADIANS / 2))
        x = half * half
        s = SIN_TAYLOR[3] + x * (SIN_TAYLOR[4] + x * SIN_TAYLOR[5])
        s = half * (SIN_TAYLOR[0] + x * (SIN_TAYLOR[1] + x * (SIN_TAYLOR[2] + x * s)))
        c = COS_TAYLOR[3] + x * (COS_TAYLOR[4] + x * (COS_TAYLOR[5] + x * COS_TAYLOR[6]))
        c = COS_TAYLOR[0] + x * (COS_TAYLOR[1] + x * (COS_TAYLOR[2] + x * c))
        cos[i] = scale * (np.float32(1.0) - np.float32(2.0) * s * s)
        sin[i] = scale * (np.float32(2.0) * s * c)


@njit(inline="always")
def add_frequency_gradient(elapsed: Any, waves: Array, start: int, g: Array, out: Array) -> None:
    """Adds the gradient of ω to ``out`` (n,), from waves[start : start + 2 n] of one time and their gradient ``g``
    (2 n,)."""
    n = len(out)
    cos = waves[start : start + n]
    sin = waves[start + n : start + 2 * n]
    g_cos = g[:n]
    g_sin = g[n : 2 * n]
    for i in range(n):
        out[i] += elapsed * (g_sin[i] * cos[i] - g_cos[i] * sin[i])


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FASTMATH_FLAGS)
def encode_all(elapsed: Array, frequency: Array, scale: Any, out: Array, first: int, stop: int) -> None:
    """Fills ``out`` (times, 2 n) with scale · [cos ωt, sin ωt] for the elapsed times [first, stop)."""
    for i in range(first, stop):
        encode(elapsed[i], frequency, scale, out, 2 * i * len(frequency))
