"""Causal convolutions of short kernels, without a Fourier transform.

A transform mixes every bar into every other by rounding, so a later bar would change an earlier result in its last
digits. As a matrix product the future enters as exact zeros, and at the lengths trained here it is as fast.

Glossary: b sequences, l bars, d channels, k taps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def causal_toeplitz(kernel: Tensor) -> Tensor:
    """The matrix T (d, l, l) with T[c, t, s] = kernel[c, t − s] for s ≤ t and 0 above, of a kernel (d, l)."""
    length = kernel.shape[-1]
    return pad(kernel, (length - 1, 0)).unfold(-1, length, 1).flip(-1)


def causal_depthwise(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, l, d) with y_t = bias + Σ_j weight[:, j] · x_{t−k+1+j}, and the new tail.

    ``x`` (b, l, d), ``weight`` (d, k), ``bias`` (d,); ``tail`` (b, k − 1, d) holds the bars before x, zeros at first.
    """
    taps, length = weight.shape[1], x.shape[1]
    padded = torch.cat([tail.to(x.dtype), x], dim=1)
    y = bias + padded[:, :length] * weight[:, 0]
    for j in range(1, taps):
        y = torch.addcmul(y, padded[:, j : j + length], weight[:, j])
    return y, padded[:, length:]
