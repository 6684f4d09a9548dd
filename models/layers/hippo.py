"""HiPPO matrices and the diagonal spectra that S4D starts from.

Papers: HiPPO (Gu et al. 2020, 2008.07669, equation 2: LegS); "On the Parameterization and Initialization of Diagonal
State Space Models" (Gu et al. 2022, 2206.11893, section 4).

Glossary: N state size · A (N, N) transition matrix of h' = A h + B x · P (N,) the low-rank part, A = normal − P Pᵀ.
"""

from __future__ import annotations

import numpy as np


def legs(n: int) -> np.ndarray:
    """The LegS transition matrix A (n, n), float64: −√(2i+1)√(2k+1) below the diagonal, −(i+1) on it, 0 above."""
    scale = np.sqrt(2 * np.arange(n) + 1.0)
    return -np.tril(np.outer(scale, scale), -1) - np.diag(np.arange(n) + 1.0)


def legs_spectrum(n: int) -> np.ndarray:
    """Eigenvalues of LegS's normal part, A + P Pᵀ with P = √(i + ½): one of each conjugate pair, (n // 2,) complex.

    The normal part is −½ I plus a skew-symmetric matrix, so every real part is exactly −½. Ascending imaginary part.
    """
    p = np.sqrt(np.arange(n) + 0.5)
    skew = legs(n) + np.outer(p, p) + 0.5 * np.eye(n)
    return -0.5 + 1j * np.linalg.eigvalsh(-1j * skew)[(n + 1) // 2 :]


def linear_spectrum(n: int) -> np.ndarray:
    """S4D-Lin: −½ + iπk for k = 0 … n/2 − 1, (n // 2,) complex."""
    return -0.5 + 1j * np.pi * np.arange(n // 2)
