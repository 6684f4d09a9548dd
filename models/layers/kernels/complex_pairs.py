"""Complex arithmetic on pairs (…, 2) of real and imaginary part, for exported graphs, which have no complex type."""

from __future__ import annotations

import torch
from torch import Tensor


def times(a: Tensor, b: Tensor) -> Tensor:
    """The product a b, (…, 2)."""
    (a_r, a_i), (b_r, b_i) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a_r * b_r - a_i * b_i, a_r * b_i + a_i * b_r], dim=-1)


def exp(a: Tensor) -> Tensor:
    """exp(a), (…, 2)."""
    real, imag = a.unbind(-1)
    return torch.exp(real)[..., None] * torch.stack([torch.cos(imag), torch.sin(imag)], dim=-1)


def expm1(a: Tensor) -> Tensor:
    """exp(a) − 1, (…, 2), accurate also for small a."""
    real, imag = a.unbind(-1)
    half = torch.sin(imag / 2)
    real_part = torch.expm1(real) * torch.cos(imag) - 2 * half * half
    return torch.stack([real_part, torch.exp(real) * torch.sin(imag)], dim=-1)


def plus(a: Tensor, real: float | Tensor) -> Tensor:
    """a plus a real number, (…, 2)."""
    a_r, a_i = a.unbind(-1)
    return torch.stack([a_r + real, a_i], dim=-1)


def real_of_product(a: Tensor, b: Tensor) -> Tensor:
    """The real part of a b, (…)."""
    return a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
