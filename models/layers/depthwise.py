"""The short causal convolution of Mamba before its scan, one kernel per channel, followed by SiLU.

Glossary: b sequences · l bars · d channels · k taps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from models.layers.kernels import convolution_cpu


def causal_depthwise_silu(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, gaps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """SiLU(y) (b, l, d) with y_t = bias + Σ_j weight[:, j] · x_{t−k+1+j}, and the new tail.

    ``x`` (b, l, d), ``weight`` (d, k), ``bias`` (d,); ``tail`` (b, k − 1, d) holds the bars before x, initially zeros.
    Padded bars, with a gap of 0, must all be at a sequence's end; the new tail ends with the last bar before them.
    """
    taps = weight.shape[1]
    length = x.shape[1]
    padded = torch.cat([tail.to(x.dtype), x], dim=1)
    if x.device.type == "cpu" and x.dtype == weight.dtype and not torch.compiler.is_exporting():
        y = convolution_cpu.depthwise_silu(padded, weight, bias)
    else:
        y = silu(bias + sum(padded[:, j : j + length] * weight[:, j] for j in range(taps)))
    if gaps is None:
        return y, padded[:, length:]
    last = (gaps > 0).sum(1, keepdim=True) + torch.arange(taps - 1, device=x.device)
    return y, padded.gather(1, last[..., None].expand(-1, -1, x.shape[2]))


def depthwise_silu_step(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """``causal_depthwise_silu`` of one bar x (b, d): y (b, d) and the new tail."""
    window = torch.cat([tail, x[:, None]], dim=1)
    return silu(torch.einsum("bkd,dk->bd", window, weight) + bias), window[:, 1:]
