"""cos ωt and sin ωt on a CPU, vectorised, which is many times faster than calling a library for each number.

Glossary: t elapsed time · ω frequency. A turn is a whole period.

The float32 angle ωt is reduced by whole turns in double precision, so that long times lose no more accuracy than the
angle itself has. Taylor series give sine and cosine of half the remaining angle; the double-angle formulas then give
the waves, to within 1e-6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from models.layers.kernels.parallel import FAST

Array = np.ndarray
TURN = 2 * math.pi
SINE = tuple(np.float32((-1) ** k / math.factorial(2 * k + 1)) for k in range(6))
COSINE = tuple(np.float32((-1) ** k / math.factorial(2 * k)) for k in range(7))


@njit(inline="always")
def encode(elapsed: Any, frequency: Array, scale: Any, out: Array, start: int) -> None:
    """Writes scale · [cos ωt, sin ωt] to ``out`` from position ``start`` on."""
    n = len(frequency)
    cos, sin = out[start : start + n], out[start + n : start + 2 * n]
    for i in range(n):
        turns = np.float64(np.float32(elapsed * frequency[i])) * (1 / TURN)
        half = np.float32((turns - np.floor(turns + 0.5)) * (TURN / 2))
        x = half * half
        s = SINE[3] + x * (SINE[4] + x * SINE[5])
        s = half * (SINE[0] + x * (SINE[1] + x * (SINE[2] + x * s)))
        c = COSINE[3] + x * (COSINE[4] + x * (COSINE[5] + x * COSINE[6]))
        c = COSINE[0] + x * (COSINE[1] + x * (COSINE[2] + x * c))
        cos[i] = scale * (np.float32(1.0) - np.float32(2.0) * s * s)
        sin[i] = scale * (np.float32(2.0) * s * c)


@njit(inline="always")
def add_frequency_gradient(elapsed: Any, waves: Array, start: int, g: Array, out: Array) -> None:
    """Adds the gradient of ω to ``out``, from the waves at ``start`` and their gradient ``g``."""
    n = len(out)
    cos, sin = waves[start : start + n], waves[start + n : start + 2 * n]
    g_cos, g_sin = g[:n], g[n : 2 * n]
    for i in range(n):
        out[i] += elapsed * (g_sin[i] * cos[i] - g_cos[i] * sin[i])


@njit(nogil=True, error_model="numpy", cache=True, fastmath=FAST)
def encode_all(elapsed: Array, frequency: Array, scale: Any, out: Array, first: int, stop: int) -> None:
    """Fills ``out`` with scale · [cos ωt, sin ωt] of the times [first, stop), one row per time."""
    for i in range(first, stop):
        encode(elapsed[i], frequency, scale, out, 2 * i * len(frequency))
