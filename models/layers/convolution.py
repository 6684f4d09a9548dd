"""Causal convolutions inside blocks of bars as matrix products, and the table of the fastest block lengths.

The networks compute convolutions by matrix products and not by Fourier transforms. The rounding errors of a Fourier
transform spread over all bars, so a later bar would change an earlier result in its last digits. A matrix
product multiplies later bars by exact zeros or leaves them out.

tests/benchmarks/bench_convolution.py measured the table STATE_BLOCK_BARS on two cores, in float32, with 64 channels,
forward and backward. Run it again before changing the table.

Glossary: b sequences · l bars · d channels · block_bars bars per block · columns (d, block_bars, blocks · b): sequences
split into blocks of bars, one block of one sequence per column.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import pad

# Rows (maximum states per channel, ((maximum bars of a series, bars per block), …)) for a state-space layer. The layer
# computes a matrix product inside a block and a recurrence between blocks.
STATE_BLOCK_BARS = (
    (32, ((2048, 32), (math.inf, 64))),
    (math.inf, ((512, 32), (2048, 64), (math.inf, 128))),
)


def choose_block_bars(length: int, d_state: int) -> int:
    """The fastest number of bars per block for a series of ``length`` bars, in a state-space layer.

    ``d_state``: real states per channel. The result is a power of two below 2 · length.
    """
    lengths_and_block_bars = next(rows for max_states, rows in STATE_BLOCK_BARS if d_state <= max_states)
    fastest_block_bars = next(block_bars for max_length, block_bars in lengths_and_block_bars if length <= max_length)
    return min(fastest_block_bars, 1 << (length - 1).bit_length())


def causal_toeplitz(kernel: Tensor) -> Tensor:
    """The matrix T (d, l, l) of a kernel (d, l): T[c, t, s] = kernel[c, t − s] for s ≤ t, and 0 for s > t."""
    length = kernel.shape[-1]
    return pad(kernel, (length - 1, 0)).unfold(-1, length, 1).flip(-1)


def to_columns(x: Tensor, block_bars: int) -> Tensor:
    """Columns (d, block_bars, blocks · b) of x (b, l, d). Zeros fill up the last block.

    Column i · b + j holds block i of sequence j.
    """
    batch, length, d = x.shape
    if length % block_bars:
        x = pad(x, (0, 0, 0, -length % block_bars))
    by_bar = x.reshape(batch, -1).t().contiguous()  # two copies in memory order are faster than one with strided access
    return by_bar.view(-1, block_bars, d, batch).permute(2, 1, 0, 3).flatten(2)


def from_columns(y: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of ``to_columns``: (b, l, d) from columns (d, block_bars, blocks · b), without the padding."""
    d, block_bars, _ = y.shape
    by_bar = y.view(d, block_bars, -1, batch).permute(2, 1, 0, 3).reshape(-1, batch)
    return by_bar.t().contiguous().view(batch, -1, d)[:, :length]
