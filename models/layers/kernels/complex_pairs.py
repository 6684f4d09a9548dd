"""Complex arithmetic on real tensors (…, 2) of real and imaginary part.

Networks exported to ONNX need it, because ONNX operators do not accept complex types. Shapes (…) broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product a · b, (…, 2)."""
    a_r, a_i = a.unbind(-1)
    b_r, b_i = b.unbind(-1)
    return torch.stack([a_r * b_r - a_i * b_i, a_r * b_i + a_i * b_r], dim=-1)


def exp(a: Tensor) -> Tensor:
    """exp(a), (…, 2)."""
    real, imag = a.unbind(-1)
    return torch.exp(real)[..., None] * torch.stack([torch.cos(imag), torch.sin(imag)], dim=-1)


def expm1(a: Tensor) -> Tensor:
    """exp(a) − 1, (…, 2), without loss of accuracy for small a."""
    real, imag = a.unbind(-1)
    sin_half = torch.sin(imag / 2)
    real_part = torch.expm1(real) * torch.cos(imag) - 2 * sin_half * sin_half
    return torch.stack([real_part, torch.exp(real) * torch.sin(imag)], dim=-1)


def add_real(a: Tensor, real: float | Tensor) -> Tensor:
    """a + real, (…, 2)."""
    a_r, a_i = a.unbind(-1)
    return torch.stack([a_r + real, a_i], dim=-1)


def real_of_product(a: Tensor, b: Tensor) -> Tensor:
    """The real part of a · b, (…)."""
    return a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
