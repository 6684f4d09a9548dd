"""Causal convolutions as matrix products, and the tables from which the fastest form is chosen.

A Fourier transform mixes every bar into every other by rounding, so a later bar would change an earlier result in its
last digits. In a matrix product the future enters as exact zeros, or not at all. A network that forecasts uses only
matrix products; ``exact_causality=False`` allows the transform, for use when the whole series is known.

tests/benchmarks/bench_convolution.py measured the tables (two cores, float32, 64 channels, forward and backward); run
it again before changing them.

Glossary: b sequences, l bars, d channels, k taps; columns (d, bars, blocks · b): a series cut into blocks of bars.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from models.layers.errors import ShapeError

# (longest series, bars of one block) for a kernel as long as the series. A single product over the whole series is
# fastest for a few bars only; the best block does not depend on the number of sequences
PRODUCT_BARS = ((64, 32), (math.inf, 64))
TRANSFORM_BARS = 512  # from this length on a transform is faster than any product, where it is allowed
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


def causal_convolution(x: Tensor, kernel: Tensor, exact_causality: bool = True) -> Tensor:
    """y (b, l, d) with y_t = Σ_j kernel[:, j] · x_{t−j}, for x (b, l, d) and a kernel (d, k) as long as x or longer.

    Causal to the bit unless ``exact_causality`` is False.
    """
    length, d = x.shape[1:]
    if kernel.dim() != 2 or kernel.shape[0] != d or kernel.shape[1] < length:
        raise ShapeError(f"kernel is {tuple(kernel.shape)}; x of {tuple(x.shape)} needs ({d}, {length}) or longer")
    if not exact_causality and length >= TRANSFORM_BARS:
        return _convolve_by_fft(x, kernel[:, :length])
    return causal_product(x, kernel, min(_lookup(PRODUCT_BARS, length), length))


def causal_product(x: Tensor, kernel: Tensor, bars: int) -> Tensor:
    """``causal_convolution`` by products of (bars, bars) Toeplitz matrices; a single product if bars is the length."""
    batch, length, _ = x.shape
    columns = to_columns(x, bars)
    blocks = columns.shape[2] // batch
    taps = pad(kernel[:, :length], (bars - 1, blocks * bars - length))
    lags = taps.unfold(1, bars, 1).flip(2).unflatten(1, (blocks, bars))  # [c, i, t, s] = kernel[c, i · bars + t − s]
    return from_columns(_BlockProducts.apply(lags.transpose(0, 1), columns), batch, length)


def _convolve_by_fft(x: Tensor, kernel: Tensor) -> Tensor:
    """``causal_convolution`` by a Fourier transform of twice the length."""
    size = 2 << (x.shape[1] - 1).bit_length()
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : x.shape[1]].transpose(1, 2)


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


class _BlockProducts(torch.autograd.Function):
    """Columns y_i = Σ_k lags_k x_{i−k}: lags (n, d, bars, bars), columns (d, bars, n · b) → (d, bars, n · b).

    Adds lag by lag in place: autograd's slices would allocate a gradient of full size for every lag.
    """

    @staticmethod
    def forward(ctx, lags: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(lags, columns)
        width = columns.shape[2] // len(lags)
        y = torch.bmm(lags[0], columns)
        for k in range(1, len(lags)):
            y[..., k * width :] += torch.bmm(lags[k], columns[..., : -k * width])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        lags, columns = ctx.saved_tensors
        width = columns.shape[2] // len(lags)
        grad_lags = torch.empty_like(lags)
        grad_columns = torch.bmm(lags[0].transpose(1, 2), grad)
        grad_lags[0] = torch.bmm(grad, columns.transpose(1, 2))
        for k in range(1, len(lags)):
            grad_later = grad[..., k * width :]
            grad_columns[..., : -k * width] += torch.bmm(lags[k].transpose(1, 2), grad_later)
            grad_lags[k] = torch.bmm(grad_later, columns[..., : -k * width].transpose(1, 2))
        return grad_lags, grad_columns
