"""Sequence networks: one asset's bars in, one forecast a bar out, the weights shared by all assets.

embedding → [norm → layer → GLU → dropout → residual] × n_layers → norm → heads (the S4 paper's deep network, pre-norm).
A layer with a gate of its own (Mamba) or that mixes its channels already (LSTM) goes without the GLU.

Glossary: b chunks · l bars · n assets, folded into the batch · d channels. A layer has ``forward(x, state) → (y,
state)``, ``step`` and ``initial_state``, so the network does too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from models.layers.dropout import Dropout
from models.layers.lstm import LSTM
from models.layers.mamba import Mamba
from models.layers.s4d import S4D
from models.nets.forecast import Batch, Embedding, Forecast, Heads
from models.nets.spec import Spec

State = tuple[tuple[Tensor, ...], ...]


class Block(nn.Module):
    """x + dropout(GLU(layer(norm(x)))), (b, l, d) → (b, l, d)."""

    layer: Any

    def __init__(self, layer: nn.Module, d_model: int, dropout: float, gated: bool) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(d_model), layer
        self.mix = nn.Linear(d_model, 2 * d_model) if gated else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The block's output and its layer's state; x (b, d) with a state is one bar."""
        normed = self.norm(x)
        y, state = self.layer(normed, state) if x.dim() == 3 else self.layer.step(normed, state)
        if self.mix is not None:
            y = glu(self.mix(gelu(y)))
        return x + self.dropout(y), state


class Encoder(nn.Module):
    """Batch → (b, l, n, d): embedding and blocks, every asset on its own."""

    blocks: Any

    def __init__(self, spec: Spec, n_features: int, make_layer: Callable[[], nn.Module], gated: bool) -> None:
        super().__init__()
        self.embedding = Embedding(n_features, spec.d_model)
        self.blocks = nn.ModuleList(
            Block(make_layer(), spec.d_model, spec.dropout, gated) for _ in range(spec.n_layers)
        )
        self.norm = nn.LayerNorm(spec.d_model)

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        return tuple(block.layer.initial_state(b * n) for block in self.blocks)

    def forward(self, batch: Batch) -> Tensor:
        """Every bar of every asset (b, l, n, d), from empty states."""
        h = self.embedding(batch)
        b, bars, n, d = h.shape
        h = h.transpose(1, 2).reshape(b * n, bars, d)
        for block in self.blocks:
            h, _ = block(h)
        return self.norm(h).reshape(b, n, bars, d).transpose(1, 2)

    def step(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The one bar of ``batch`` (b, 1, n, d) after those that made ``state``, and the state after it."""
        h = self.embedding(batch)
        shape, after = h.shape, []
        h = h.flatten(0, 2)
        for block, before in zip(self.blocks, state, strict=True):
            h, now = block(h, before)
            after.append(now)
        return self.norm(h).reshape(shape), tuple(after)


class SequenceNetwork(nn.Module):
    """Encoder and heads; reads no graph."""

    def __init__(
        self, spec: Spec, n_features: int, n_horizons: int, make_layer: Callable[[], nn.Module], gated: bool = True
    ) -> None:
        super().__init__()
        self.encoder = Encoder(spec, n_features, make_layer, gated)
        self.heads = Heads(spec.d_model, n_horizons)

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        return self.encoder.initial_state(b, n)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        return self.heads(self.encoder(batch))

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it."""
        h, state = self.encoder.step(batch, state)
        return self.heads(h), state


def s4d(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SequenceNetwork:
    """An S4D network; options: spectrum ("legs" or "linear"), dt_min, dt_max."""
    return SequenceNetwork(spec, n_features, n_horizons, lambda: S4D(spec.d_model, spec.d_state, **options))


def mamba(spec: Spec, n_features: int, n_horizons: int, **options: Any) -> SequenceNetwork:
    """A Mamba network; options: d_conv, expand, dt_rank, dt_min, dt_max."""
    make = lambda: Mamba(spec.d_model, spec.d_state, **options)  # noqa: E731
    return SequenceNetwork(spec, n_features, n_horizons, make, gated=False)


def lstm(spec: Spec, n_features: int, n_horizons: int) -> SequenceNetwork:
    """An LSTM network."""
    return SequenceNetwork(spec, n_features, n_horizons, lambda: LSTM(spec.d_model), gated=False)
