"""Complex numbers as pairs (…, 2) of real and imaginary part, for graphs that know no complex type."""

from __future__ import annotations

import torch
from torch import Tensor


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b."""
    (a_r, a_i), (b_r, b_i) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a_r * b_r - a_i * b_i, a_r * b_i + a_i * b_r], dim=-1)


def over(a: Tensor, b: Tensor) -> Tensor:
    """a / b."""
    b_r, b_i = b.unbind(-1)
    return times(a, torch.stack([b_r, -b_i], dim=-1)) / (b_r * b_r + b_i * b_i)[..., None]


def exp(a: Tensor) -> Tensor:
    """exp(a)."""
    real, imag = a.unbind(-1)
    return torch.exp(real)[..., None] * torch.stack([torch.cos(imag), torch.sin(imag)], dim=-1)


def expm1(a: Tensor) -> Tensor:
    """exp(a) − 1, exact also where a is small."""
    real, imag = a.unbind(-1)
    half = torch.sin(imag / 2)
    less_one = torch.expm1(real) * torch.cos(imag) - 2 * half * half
    return torch.stack([less_one, torch.exp(real) * torch.sin(imag)], dim=-1)


def plus(a: Tensor, real: float | Tensor) -> Tensor:
    """a + a real number."""
    a_r, a_i = a.unbind(-1)
    return torch.stack([a_r + real, a_i], dim=-1)


def real_of_product(a: Tensor, b: Tensor) -> Tensor:
    """Re(a b), (…)."""
    return a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
