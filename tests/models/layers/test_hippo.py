"""HiPPO matrices against the papers' numbers (S4-09, HYB-01, TRAP-01)."""

import numpy as np

from models.layers.hippo import legs, legs_spectrum, linear_spectrum


def test_legs_is_zero_above_the_diagonal() -> None:
    """TRAP-01: the prose of a source gives the LegT-like form and calls it LegS."""
    expected = -np.array([[1, 0, 0], [np.sqrt(3), 2, 0], [np.sqrt(5), np.sqrt(15), 3]])
    np.testing.assert_allclose(legs(3), expected)


def test_the_spectrum_is_that_of_legs_made_normal() -> None:
    n = 8
    p = np.sqrt(np.arange(n) + 0.5)
    normal = legs(n) + np.outer(p, p)
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-10)
    every = np.linalg.eigvals(normal)
    upper = every[every.imag > 0]
    np.testing.assert_allclose(legs_spectrum(n), upper[np.argsort(upper.imag)], atol=1e-8)


def test_one_of_each_conjugate_pair_with_decay_one_half() -> None:
    for spectrum in (legs_spectrum(16), linear_spectrum(16)):
        assert spectrum.shape == (8,)
        np.testing.assert_allclose(spectrum.real, -0.5)
        assert (spectrum.imag >= 0).all()
    np.testing.assert_allclose(linear_spectrum(8).imag, np.pi * np.arange(4))
