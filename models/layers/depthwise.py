"""The short causal convolution that Mamba applies before its scan: one kernel per channel, followed by SiLU.

Glossary: b sequences · l bars · d channels · k taps, the weights of one channel's kernel · tail (b, k − 1, d) the last
k − 1 bars before the sequence, the newest last · gaps (b, l) time since the previous bar, 0 for a padded bar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from models.layers.kernels import convolution_cpu


def causal_depthwise_silu(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, gaps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """SiLU(p) (b, l, d) with p_t = bias + Σ_j weight[:, j] · x_{t−k+1+j}, and the tail after x.

    ``x`` (b, l, d), ``weight`` (d, k), ``bias`` (d,), ``tail`` (b, k − 1, d). The tail before the first bar is zeros.
    Padded bars must all be at a sequence's end, which is not checked. The tail after x does not contain padded bars.
    """
    n_taps = weight.shape[1]
    length = x.shape[1]
    with_tail = torch.cat([tail.to(x.dtype), x], dim=1)
    if x.device.type == "cpu" and x.dtype == weight.dtype and not torch.compiler.is_exporting():
        y = convolution_cpu.depthwise_silu(with_tail, weight, bias)
    else:
        y = silu(bias + sum(with_tail[:, j : j + length] * weight[:, j] for j in range(n_taps)))
    if gaps is None:
        return y, with_tail[:, length:]
    tail_positions = (gaps > 0).sum(1, keepdim=True) + torch.arange(n_taps - 1, device=x.device)
    return y, with_tail.gather(1, tail_positions[..., None].expand(-1, -1, x.shape[2]))


def depthwise_silu_step(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """As ``causal_depthwise_silu`` for one bar x (b, d): SiLU(p) (b, d), and the tail after x."""
    window = torch.cat([tail, x[:, None]], dim=1)
    return silu(torch.einsum("bkd,dk->bd", window, weight) + bias), window[:, 1:]
