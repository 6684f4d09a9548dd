"""HiPPO matrices and spectra against the papers, and LegS as a memory of a signal (S4-09, S4-10, HYB-01, TRAP-01).

Ids such as S4-09: .github/sources.md.
"""

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

from models.layers.hippo import (
    inverse_spectrum,
    legs,
    legs_input,
    legs_spectrum,
    linear_spectrum,
    nplr,
    random_spectrum,
)


def relative_reconstruction_error(A: np.ndarray, length: int = 2000) -> float:
    """The root mean square error of a signal f rebuilt from its n LegS coefficients h, over the root mean square of f.

    h follows h' = (A h + B f) / t by the trapezoidal rule over ``length`` bars. The rebuilt signal is
    f(s) ≈ Σ_i h_i √(2i+1) P_i(2s/t − 1) for s in [0, t], with Legendre polynomials P_i.
    """
    n = len(A)
    B = legs_input(n)
    eye = np.eye(n)
    s = (np.arange(length) + 0.5) / length
    f = np.sin(9 * s) + 0.5 * np.cos(23 * s + 1) + s
    h = np.zeros(n)
    h[0] = f[0]  # the constant Legendre polynomial represents a history of one bar
    for k in range(1, length):
        explicit_half = h + A @ h / (2 * k) + B * f[k] * (1 / k + 1 / (k + 1)) / 2
        h = np.linalg.solve(eye - A / (2 * (k + 1)), explicit_half)
    rebuilt = legendre.legval(2 * s - 1, h * np.sqrt(2 * np.arange(n) + 1))
    return float(np.sqrt(np.mean((rebuilt - f) ** 2) / np.mean(f**2)))


def test_every_doubling_of_the_state_lowers_the_reconstruction_error_of_legs() -> None:
    error_4, error_8, error_16, error_32 = (relative_reconstruction_error(legs(n)) for n in (4, 8, 16, 32))
    assert error_8 < 0.6 * error_4  # 8 polynomials do not yet resolve the signal's fastest wave
    assert error_16 < 0.03 * error_8 and error_32 < 0.03 * error_16
    assert error_32 < 1e-4


def test_the_diagonal_of_legs_alone_does_not_rebuild_the_signal() -> None:
    """This control shows that the test above measures a property of the whole LegS matrix."""
    diagonal = np.diag(np.diag(legs(16)))
    assert relative_reconstruction_error(diagonal) > 100 * relative_reconstruction_error(legs(16))


def test_legs_is_zero_above_the_diagonal() -> None:
    """TRAP-01: a source article gives a matrix like that of LegT, nonzero above the diagonal, and calls it LegS."""
    expected = -np.array([[1, 0, 0], [np.sqrt(3), 2, 0], [np.sqrt(5), np.sqrt(15), 3]])
    np.testing.assert_allclose(legs(3), expected)
    np.testing.assert_allclose(legs_input(3), np.sqrt([1, 3, 5]))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 64])
def test_the_normal_plus_low_rank_decomposition_equals_legs(n: int) -> None:
    spectrum, P, B, V = nplr(n)
    normal_plus_low_rank = np.diag(spectrum) - np.outer(P, P.conj())
    np.testing.assert_allclose(V @ normal_plus_low_rank @ V.conj().T, legs(n), atol=1e-10)
    np.testing.assert_allclose(V @ B, legs_input(n), atol=1e-10)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(n), atol=1e-12)
    assert (spectrum.real == -0.5).all() and (np.diff(spectrum.imag) > 0).all()


@pytest.mark.parametrize("n", [5, 8, 64])
def test_the_second_half_of_each_array_is_the_reversed_conjugate_of_the_first(n: int) -> None:
    for array in nplr(n):
        np.testing.assert_allclose(array[..., ::-1].conj(), array, atol=1e-12)


def test_the_legs_spectrum_contains_the_eigenvalues_of_the_normal_part() -> None:
    n = 8
    p = np.sqrt(np.arange(n) + 0.5)
    normal = legs(n) + np.outer(p, p)
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-10)
    eigenvalues = np.linalg.eigvals(normal)
    one_per_pair = eigenvalues[eigenvalues.imag > 0]
    np.testing.assert_allclose(legs_spectrum(n), one_per_pair[np.argsort(one_per_pair.imag)], atol=1e-8)


def test_spectra_contain_one_eigenvalue_of_each_conjugate_pair_with_real_part_minus_one_half() -> None:
    for spectrum in (legs_spectrum(16), linear_spectrum(16), inverse_spectrum(16)):
        assert spectrum.shape == (8,)
        np.testing.assert_allclose(spectrum.real, -0.5)
        assert (spectrum.imag >= 0).all()


def test_linear_and_inverse_spectra_follow_their_formulas() -> None:
    np.testing.assert_allclose(linear_spectrum(8).imag, np.pi * np.arange(4))
    np.testing.assert_allclose(inverse_spectrum(4).imag, [12 / np.pi, 4 / np.pi / 3])


def test_the_highest_inverse_frequency_is_close_to_that_of_legs() -> None:
    """Section 4.2 of 2206.11893: S4D-Inv approximates S4D-LegS, whose highest frequency grows like n² / π."""
    assert inverse_spectrum(256).imag[0] == pytest.approx(legs_spectrum(256).imag[-1], rel=0.05)


def test_a_random_spectrum_is_stable_and_depends_on_torchs_seed() -> None:
    torch.manual_seed(3)
    first = random_spectrum(400)
    assert first.shape == (200,) and first.real.max() < 0 and first.real.min() >= -1 and first.imag.std() > 0.5
    torch.manual_seed(3)
    np.testing.assert_array_equal(random_spectrum(400), first)
    assert not np.array_equal(random_spectrum(400), first)
