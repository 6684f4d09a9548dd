"""Causal convolutions inside blocks of bars as matrix products, and the table of the fastest block lengths.

A Fourier transform mixes every bar into every other by rounding, so a later bar would change an earlier result in its
last digits. In a matrix product the future enters as exact zeros, or not at all; networks use only matrix products.

tests/benchmarks/bench_convolution.py measured the table (two cores, float32, 64 channels, forward and backward); run
it again before changing it.

Glossary: b sequences, l bars, d channels; columns (d, bars, blocks · b): a series cut into blocks of bars.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import pad

# (most states per channel, ((longest series, bars of one block), …)) for a state-space layer, which is a product inside
# blocks and a recurrence between them
STATE_BLOCK_BARS = (
    (32, ((2048, 32), (math.inf, 64))),
    (math.inf, ((512, 32), (2048, 64), (math.inf, 128))),
)


def block_bars(length: int, d_state: int) -> int:
    """The bars of one block, a power of two, for a state-space layer with ``d_state`` real states per channel."""
    table = next(lengths for states, lengths in STATE_BLOCK_BARS if d_state <= states)
    return min(_lookup(table, length), 1 << (length - 1).bit_length())


def causal_toeplitz(kernel: Tensor) -> Tensor:
    """The matrix T (d, l, l) with T[c, t, s] = kernel[c, t − s] for s ≤ t and 0 above, of a kernel (d, l)."""
    length = kernel.shape[-1]
    return pad(kernel, (length - 1, 0)).unfold(-1, length, 1).flip(-1)


def to_columns(x: Tensor, bars: int) -> Tensor:
    """x (b, l, d) split into blocks of bars, the last one padded with zeros: (d, bars, blocks · b)."""
    batch, length, d = x.shape
    if length % bars:
        x = pad(x, (0, 0, 0, -length % bars))
    by_bar = x.reshape(batch, -1).t().contiguous()  # two copies in memory order are faster than one with strided access
    return by_bar.view(-1, bars, d, batch).permute(2, 1, 0, 3).flatten(2)


def from_columns(y: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of ``to_columns``: (b, l, d) from (d, bars, blocks · b)."""
    d, bars, _ = y.shape
    by_bar = y.view(d, bars, -1, batch).permute(2, 1, 0, 3).reshape(-1, batch)
    return by_bar.t().contiguous().view(batch, -1, d)[:, :length]


def _lookup(table: tuple[tuple[float, int], ...], size: int) -> int:
    """The value of the first row of ``table`` whose limit is not below ``size``."""
    return next(value for limit, value in table if size <= limit)
