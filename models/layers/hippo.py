"""HiPPO matrices, and the diagonal spectra with which state-space layers are initialised.

Papers: HiPPO (Gu et al. 2020, 2008.07669, theorem 2: LegS); S4 (Gu, Goel, Ré 2022, 2111.00396, theorem 1: normal plus
low rank); "On the Parameterization and Initialization of Diagonal State Space Models" (Gu et al. 2022, 2206.11893,
section 4: S4D-LegS, S4D-Lin, S4D-Inv).

Glossary: n state size · A (n, n) transition matrix and B (n,) input map of h' = A h + B x · P (n,) the low-rank part,
A = S − P Pᵀ with a normal matrix S · V (n, n) unitary, the eigenvectors of S · Λ (n,) the eigenvalues of S ·
P̃ = V* P · B̃ = V* B.

A spectrum (n // 2,), complex128, contains one eigenvalue of each conjugate pair, with imaginary part ≥ 0.
"""

from __future__ import annotations

import numpy as np
import torch


def legs(n: int) -> np.ndarray:
    """The LegS transition matrix A (n, n), float64.

    A[i, k] = −√(2i+1)√(2k+1) for k < i, −(i+1) for k = i, and 0 for k > i; i and k count from 0.
    """
    scale = legs_input(n)
    return -np.tril(np.outer(scale, scale), -1) - np.diag(np.arange(n) + 1.0)


def legs_input(n: int) -> np.ndarray:
    """The LegS input map B (n,), float64: B[i] = √(2i+1) for i = 0 … n − 1."""
    return np.sqrt(2 * np.arange(n) + 1.0)


def nplr(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """LegS as normal plus low rank, in the normal part's eigenbasis: Λ (n,), P̃ (n,), B̃ (n,) and V (n, n), complex.

    A = V (diag Λ − P̃ P̃*) V* and B = V B̃, with P[i] = √(i + ½). The normal part is −½ I plus a skew-symmetric matrix, so
    every eigenvalue has a real part of exactly −½. The eigenvalues ascend by imaginary part. In Λ, P̃, B̃ and the columns
    of V, entry n − 1 − i is the conjugate of entry i, so the second half determines the first. An odd n has one real
    eigenvalue in the middle.
    """
    p = np.sqrt(np.arange(n) + 0.5)
    skew = legs(n) + np.outer(p, p) + 0.5 * np.eye(n)
    frequency, V = np.linalg.eigh(-1j * skew)
    half = n // 2
    frequency = frequency[n - half :]
    V = V[:, n - half :]
    middle = np.zeros((n, 0))
    if n % 2:  # the skew part's null vector, which is real
        middle = np.linalg.svd(skew)[2][-1:].T
    V = np.concatenate([V[:, ::-1].conj(), middle, V], axis=1)
    spectrum = -0.5 + 1j * np.concatenate([-frequency[::-1], np.zeros(n % 2), frequency])
    return spectrum, V.conj().T @ p, V.conj().T @ legs_input(n), V


def legs_spectrum(n: int) -> np.ndarray:
    """S4D-LegS: the eigenvalues of the normal part of LegS with a positive imaginary part, in ascending order of it."""
    eigenvalues, _, _, _ = nplr(n)
    return eigenvalues[(n + 1) // 2 :]


def linear_spectrum(n: int) -> np.ndarray:
    """S4D-Lin: −½ + iπk for k = 0 … n // 2 − 1, in ascending order of frequency."""
    return -0.5 + 1j * np.pi * np.arange(n // 2)


def inverse_spectrum(n: int) -> np.ndarray:
    """S4D-Inv: −½ + i (n/π) (n/(2k+1) − 1) for k = 0 … n // 2 − 1, in descending order of frequency."""
    return -0.5 + 1j * n / np.pi * (n / (2 * np.arange(n // 2) + 1) - 1)


def random_spectrum(n: int) -> np.ndarray:
    """A random stable spectrum, for an ablation of the HiPPO spectra.

    Each eigenvalue is −decay + i · frequency, with decay uniform in (0, 1] and log frequency standard normal. Both are
    drawn from torch's global generator, like a network's other initial weights.
    """
    decay = 1 - torch.rand(n // 2, dtype=torch.float64)
    frequency = torch.exp(torch.randn(n // 2, dtype=torch.float64))
    return (-decay + 1j * frequency).numpy()


SPECTRA = {"legs": legs_spectrum, "linear": linear_spectrum, "inverse": inverse_spectrum, "random": random_spectrum}
