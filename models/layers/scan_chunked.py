"""Diagonal recurrences as matrix products over blocks of bars, for devices without a kernel.

Glossary: b sequences · l bars · d channels · m complex states per channel · p states of ``diagonal_scan`` · k bars of a
block · x input · a decay factors · w output weights · D skip · h state before the first bar · y output. Names end in _r
for real parts, in _i for imaginary parts. Within a block of CHUNK_BARS the output is a Toeplitz matrix product with the
bars of the block, plus the response to the state before the block. Later bars enter every product as exact zeros, so
they change no earlier output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.convolution import causal_toeplitz

CHUNK_BARS = 64


def diagonal_ssm(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, m), as ``diagonal_ssm_reference``."""
    y, last_pairs = diagonal_ssm_pairs(x, torch.view_as_real(a), torch.view_as_real(w), D, torch.view_as_real(h))
    return y, torch.view_as_complex(last_pairs.contiguous())


def diagonal_ssm_pairs(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """As ``diagonal_ssm``, in real arithmetic; the last axis of a, w (d, m, 2), h (b, d, m, 2): real, imaginary."""
    blocks = x.split(CHUNK_BARS, dim=1)
    power_r, power_i = _powers(a, blocks[0].shape[1] + 1)  # a^j, (d, m, k + 1)
    w_r = w[..., :1]
    w_i = w[..., 1:]
    response_r = w_r * power_r - w_i * power_i  # w a^j
    response_i = w_r * power_i + w_i * power_r
    kernel = response_r[..., :-1].sum(1)
    from_x = causal_toeplitz(torch.cat([kernel[:, :1] + D[:, None], kernel[:, 1:]], dim=1))
    from_h = torch.cat([response_r[..., 1:], -response_i[..., 1:]], dim=1).transpose(1, 2)  # (d, k, 2m)
    into_h = torch.cat([power_r[..., :-1], power_i[..., :-1]], dim=1)  # (d, 2m, k)
    h_r, h_i = h.permute(3, 1, 2, 0).unbind(0)  # (d, m, b)
    outputs = []
    for block in blocks:
        k = block.shape[1]
        signal = block.permute(2, 1, 0)  # (d, k, b)
        y = torch.bmm(from_x[:, :k, :k], signal) + torch.bmm(from_h[:, :k], torch.cat([h_r, h_i], dim=1))
        added_r, added_i = torch.bmm(into_h[..., :k].flip(2), signal).chunk(2, dim=1)
        a_r = power_r[..., k, None]
        a_i = power_i[..., k, None]
        h_r, h_i = a_r * h_r - a_i * h_i + added_r, a_r * h_i + a_i * h_r + added_i
        outputs.append(y.permute(2, 1, 0))
    return torch.cat(outputs, dim=1), torch.stack([h_r, h_i], dim=-1).permute(2, 0, 1, 3)


def diagonal_scan(a: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states (b, l, p) and the last (b, p), as ``diagonal_scan_reference``, by doubling.

    At the start of a round, every x includes the effect of the last ``reach`` bars, including its own bar. A round
    doubles ``reach``.
    """
    a = a.expand_as(x)
    x = torch.cat([(x[:, :1] + a[:, :1] * h[:, None]), x[:, 1:]], dim=1)
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat([x[:, :reach], x[:, reach:] + a[:, reach:] * x[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return x, x[:, -1]


def _powers(a: Tensor, n_powers: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of a^0 … a^(n_powers − 1), (d, m, n_powers), by repeated products; ``a`` (d, m, 2)."""
    a_r = a[..., :1]  # real part of a^j, where j is the number of powers computed so far
    a_i = a[..., 1:]
    power_r = torch.ones_like(a_r)
    power_i = torch.zeros_like(a_i)
    while power_r.shape[-1] < n_powers:
        next_r = a_r * power_r - a_i * power_i
        next_i = a_r * power_i + a_i * power_r
        power_r = torch.cat([power_r, next_r], dim=-1)
        power_i = torch.cat([power_i, next_i], dim=-1)
        a_r, a_i = a_r * a_r - a_i * a_i, 2 * a_r * a_i
    return power_r[..., :n_powers], power_i[..., :n_powers]
