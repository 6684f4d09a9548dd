"""Diagonal recurrences as matrix products over blocks of bars, for devices without a kernel.

Glossary as in scan.py. Within a block of CHUNK_BARS the response to the bars of the block is a Toeplitz matrix product,
to which the response to the state before the block is added. Later bars enter every product as exact zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.convolution import causal_toeplitz

CHUNK_BARS = 64


def diagonal_ssm(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, m), as ``diagonal_ssm_reference``."""
    pairs_a, pairs_w, pairs_h = (torch.view_as_real(v) for v in (a, w, h))
    y, last = diagonal_ssm_pairs(x, pairs_a, pairs_w, D, pairs_h)
    return y, torch.view_as_complex(last.contiguous())


def diagonal_ssm_pairs(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """As ``diagonal_ssm``, in real arithmetic: ``a``, ``w`` (d, m, 2) and h (b, d, m, 2), real and imaginary part."""
    blocks = x.split(CHUNK_BARS, dim=1)
    p_r, p_i = _powers(a, blocks[0].shape[1] + 1)  # (d, m, k + 1)
    w_r, w_i = w[..., :1], w[..., 1:]
    read_r, read_i = w_r * p_r - w_i * p_i, w_r * p_i + w_i * p_r
    kernel = read_r[..., :-1].sum(1)
    from_x = causal_toeplitz(torch.cat([kernel[:, :1] + D[:, None], kernel[:, 1:]], dim=1))
    from_h = torch.cat([read_r[..., 1:], -read_i[..., 1:]], dim=1).transpose(1, 2)  # (d, k, 2m)
    into_h = torch.cat([p_r[..., :-1], p_i[..., :-1]], dim=1)  # (d, 2m, k)
    h_r, h_i = h.permute(3, 1, 2, 0).unbind(0)  # (d, m, b)
    outputs = []
    for block in blocks:
        k = block.shape[1]
        signal = block.permute(2, 1, 0)  # (d, k, b)
        y = torch.bmm(from_x[:, :k, :k], signal) + torch.bmm(from_h[:, :k], torch.cat([h_r, h_i], dim=1))
        added_r, added_i = torch.bmm(into_h[..., :k].flip(2), signal).chunk(2, dim=1)
        a_r, a_i = p_r[..., k, None], p_i[..., k, None]
        h_r, h_i = a_r * h_r - a_i * h_i + added_r, a_r * h_i + a_i * h_r + added_i
        outputs.append(y.permute(2, 1, 0))
    return torch.cat(outputs, dim=1), torch.stack([h_r, h_i], dim=-1).permute(2, 0, 1, 3)


def diagonal_scan(a: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states (b, l, p) and the last (b, p), by doubling: after round k a bar includes the 2^k bars before it."""
    a = a.expand_as(x)
    x = torch.cat([(x[:, :1] + a[:, :1] * h[:, None]), x[:, 1:]], dim=1)
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat([x[:, :reach], x[:, reach:] + a[:, reach:] * x[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return x, x[:, -1]


def _powers(a: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of a^0 … a^(count − 1), (d, m, count), by repeated products; ``a`` (d, m, 2)."""
    a_r, a_i = a[..., :1], a[..., 1:]
    r, i = torch.ones_like(a_r), torch.zeros_like(a_i)
    while r.shape[-1] < count:
        r, i = torch.cat([r, a_r * r - a_i * i], dim=-1), torch.cat([i, a_r * i + a_i * r], dim=-1)
        a_r, a_i = a_r * a_r - a_i * a_i, 2 * a_r * a_i
    return r[..., :count], i[..., :count]
