"""The peers of our layers: layers of other packages and textbook forms, with our weights where these fit.

Glossary: b batch, l bars, d channels, n states of a channel, m = n / 2 complex states of S4D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from models.layers.mamba import Mamba
from models.layers.s4d import S4D


class Mixed(nn.Module):
    """A layer, then GELU, a linear layer over the channels and GLU, as in S4D's code. (b, l, d) → (b, l, d)."""

    def __init__(self, layer: nn.Module, d_model: int) -> None:
        super().__init__()
        self.layer = layer
        self.mix = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y = y[0] if isinstance(y, tuple) else y  # a layer may also return its state
        return glu(self.mix(gelu(y)))


class TextbookS4D(nn.Module):
    """S4D as in its paper: the kernel is a Vandermonde product, and a Fourier transform applies it. It shares the
    parameters of ``layer``. (b, l, d) → (b, l, d)."""

    def __init__(self, layer: S4D) -> None:
        super().__init__()
        self.weights = layer

    def forward(self, x: Tensor) -> Tensor:
        a_bar, b_bar, C = self.weights._discrete()
        length = x.shape[1]
        powers = torch.exp(torch.log(a_bar)[..., None] * torch.arange(length))  # (d, m, l)
        kernel = 2 * torch.einsum("dm,dml->dl", C * b_bar, powers).real
        spectrum = torch.fft.rfft(x.transpose(1, 2), n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2) + self.weights.D * x


class Transformer(nn.Module):
    """torch's Transformer encoder with 4 heads; every bar attends to all bars. (b, l, d) → (b, l, d)."""

    def __init__(self, d_model: int, n_layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(d_model, 4, 4 * d_model, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan, computed by mambapy's parallel scan.

    ``u``, ``delta`` (b, l, d); ``A`` (d, n); ``B``, ``C`` (b, l, n); ``D`` (d,) → (b, l, d).
    """
    from mambapy.pscan import pscan

    states = pscan(torch.exp(delta[..., None] * A), delta[..., None] * B[:, :, None] * u[..., None])
    return (states @ C[..., None])[..., 0] + D * u


def mambapy_block(ours: Mamba) -> Any:
    """mambapy's Mamba block with the weights of our block."""
    from mambapy.mamba import MambaBlock, MambaConfig

    theirs = MambaBlock(MambaConfig(d_model=ours.d_model, n_layers=1, d_state=ours.d_state, dt_rank=ours.dt_rank))
    weights = dict(ours.state_dict())
    weights["conv1d.weight"] = weights.pop("conv_weight")[:, None]
    weights["conv1d.bias"] = weights.pop("conv_bias")
    theirs.load_state_dict(weights)
    return theirs


def s5_layer(d_model: int, d_state: int) -> nn.Module:
    """The layer of the package s5-pytorch. (b, l, d) → (b, l, d)."""
    from s5 import S5

    return S5(d_model, d_state)
