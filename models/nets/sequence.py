"""Sequence networks: one asset's bars in, one forecast a bar out, the weights shared by all assets.

embedding → [norm → layer → GLU → dropout → residual] × n_layers → norm → pooling → heads (the S4 paper's deep network,
pre-norm). A layer that has a gate of its own (Mamba) or already mixes its channels (LSTM) is not followed by a GLU.

Glossary: b chunks · l bars · n assets, folded into the batch · d channels. The layers and what they have to provide
are listed in sequence_layers.py; networks have ``step`` and ``initial_state`` because their layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from models.layers.checks import check_choice, check_positive
from models.layers.dropout import Dropout
from models.layers.errors import NotCausalError, SizeError, StateError
from models.nets.forecast import Batch, Embedding, Forecast, Heads
from models.nets.regimes import Regime
from models.nets.spec import Spec

State = tuple[tuple[Tensor, ...], ...]
MakeLayer = Callable[[], nn.Module]


class Block(nn.Module):
    """x + dropout(GLU(layer(norm(x)))), (b, l, d) → (b, l, d)."""

    layer: Any

    def __init__(self, layer: nn.Module, d_model: int, dropout: float, adds_glu: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.layer = layer
        self.mix = nn.Linear(d_model, 2 * d_model) if adds_glu else None
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, gaps: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The block's output and its layer's state; with x (b, d) one bar; ``gaps`` (b, l), of one bar (b,)."""
        is_sequence = x.dim() == 3
        gap_argument = {} if gaps is None else {"gaps" if is_sequence else "gap": gaps}
        y, state = (self.layer if is_sequence else self.layer.step)(self.norm(x), state, **gap_argument)
        if self.mix is not None:
            y = glu(self.mix(gelu(y)))
        return x + self.dropout(y), state


class RunningMean(nn.Module):
    """The mean of all bars so far (S4-18), never of later ones (TRAP-13). State: sum (b, d), count (b, 1)."""

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """The state before the first bar: zeros."""
        return like.new_zeros(batch, len(like)), like.new_zeros(batch, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, d) → (b, l, d)."""
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One bar x (b, d)."""
        total = state[0] + x
        count = state[1] + 1
        return total / count, (total, count)


class Encoder(nn.Module):
    """Batch → (b, l, n, d): embedding and blocks, every asset by itself.

    ``pooling``: "last" takes every bar's output, "mean" the mean of all outputs so far. ``irregular``: the layers
    receive the batch's gaps. Raises NotCausalError for a layer that reads later bars.
    """

    blocks: Any

    def __init__(
        self,
        spec: Spec,
        n_features: int,
        make_layer: MakeLayer,
        adds_glu: bool,
        pooling: str = "last",
        irregular: bool = False,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, ("last", "mean"))
        check_positive(n_layers=spec.n_layers)
        self.embedding = Embedding(n_features, spec.d_model)
        self.irregular = irregular
        self.blocks = nn.ModuleList(
            Block(make_layer(), spec.d_model, spec.dropout, adds_glu) for _ in range(spec.n_layers)
        )
        for block in self.blocks:
            if not getattr(block.layer, "causal", True):
                raise NotCausalError(
                    f"the {spec.model} network would read bars that are still to come; a forecast takes a layer that "
                    "reads forwards only (leave bidirectional out)"
                )
        self.norm = nn.LayerNorm(spec.d_model)
        self.pool = RunningMean() if pooling == "mean" else None

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        state = tuple(block.layer.initial_state(b * n) for block in self.blocks)
        return state if self.pool is None else (*state, self.pool.initial_state(b * n, self.norm.weight))

    def forward(self, batch: Batch, gaps: Tensor | None = None) -> Tensor:
        """Every bar of every asset (b, l, n, d), from initial states; ``gaps`` (b, l, n) replace the batch's."""
        h = self.embedding(batch)
        b, bars, n, d = h.shape
        h = h.transpose(1, 2).reshape(b * n, bars, d)
        gaps = self._gaps(batch, gaps)
        h = self.run(h, None if gaps is None else gaps.transpose(1, 2).reshape(b * n, bars))
        return h.reshape(b, n, bars, d).transpose(1, 2)

    def step(self, batch: Batch, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The one bar of ``batch`` (b, 1, n, d) that follows ``state``, and the state after it."""
        h = self.embedding(batch)
        gaps = self._gaps(batch, gaps)
        after, state = self.run_step(h.flatten(0, 2), state, None if gaps is None else gaps.flatten())
        return after.reshape(h.shape), state

    def run(self, h: Tensor, gaps: Tensor | None = None) -> Tensor:
        """The outputs (b, l, d) of blocks, norm and pooling for embedded sequences h (b, l, d)."""
        for block in self.blocks:
            h, _ = block(h, gaps=gaps)
        h = self.norm(h)
        return h if self.pool is None else self.pool(h)

    def run_step(self, h: Tensor, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The output of one bar h (b, d), as ``run``, and the state after it. Raises StateError."""
        parts = [*self.blocks] if self.pool is None else [*self.blocks, self.pool]
        if len(state) != len(parts):
            raise StateError(f"the state has {len(state)} parts, this network {len(parts)}; use its own initial_state")
        next_state = []
        for block, before in zip(self.blocks, state, strict=False):
            h, after = block(h, before, gaps)
            next_state.append(after)
        h = self.norm(h)
        if self.pool is not None:
            h, after = self.pool.step(h, state[-1])
            next_state.append(after)
        return h, tuple(next_state)

    def _gaps(self, batch: Batch, gaps: Tensor | None) -> Tensor | None:
        """The gaps that the layers receive (b, l, n); None for none."""
        if gaps is None and self.irregular:
            return batch.gaps[..., None].expand(*batch.mask.shape)
        return gaps


class PooledEncoder(Encoder):
    """An encoder of the means of every k = ``pool_bars`` bars, each complete before it is read (SSF-12).

    The output of a bar is its embedding plus the newest output of the blocks. State: the encoder's; the sum of the bars
    not yet pooled (b, d); the newest output (b, d); the number of bars in the sum (b,), the same for all sequences.
    """

    def __init__(self, pool_bars: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        check_positive(pool_bars=pool_bars)
        self.k = pool_bars
        if self.irregular:
            raise SizeError("pooled bars have no time gaps of their own; leave irregular or pool_bars out")

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        zeros = self.norm.weight.new_zeros(b * n, len(self.norm.weight))
        return *super().initial_state(b, n), (zeros, zeros, zeros.new_zeros(b * n))

    def run(self, h: Tensor, gaps: Tensor | None = None) -> Tensor:
        """The outputs (b, l, d) of embedded sequences h (b, l, d)."""
        b, bars, d = h.shape
        outputs = h.new_zeros(b, 1, d)
        if bars >= self.k:
            pooled = h[:, : bars // self.k * self.k].unflatten(1, (-1, self.k)).mean(2)
            outputs = torch.cat([outputs, super().run(pooled)], dim=1)
        return h + outputs[:, torch.arange(1, bars + 1, device=h.device) // self.k]

    def run_step(self, h: Tensor, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The output of one bar h (b, d), as ``run``, and the state after it."""
        *parts, (total, output, count) = state
        encoder_state = tuple(parts)
        total = total + h
        count = count + 1
        if int(count[0]) == self.k:
            output, encoder_state = super().run_step(total / self.k, encoder_state)
            total = torch.zeros_like(total)
            count = torch.zeros_like(count)
        return h + output, (*encoder_state, (total, output, count))


class SequenceNetwork(nn.Module):
    """Encoder and heads; reads no graph. ``pool_bars`` above 1: a PooledEncoder. ``heads``: options of Heads."""

    def __init__(
        self,
        spec: Spec,
        n_features: int,
        n_horizons: int,
        make_layer: MakeLayer,
        adds_glu: bool = True,
        pooling: str = "last",
        irregular: bool = False,
        pool_bars: int = 1,
        **heads: Any,
    ) -> None:
        super().__init__()
        arguments = (spec, n_features, make_layer, adds_glu, pooling, irregular)
        self.encoder = Encoder(*arguments) if pool_bars == 1 else PooledEncoder(pool_bars, *arguments)
        self.heads = Heads(spec.d_model, n_horizons, **heads)

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        return self.encoder.initial_state(b, n)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises the errors of models.layers.errors."""
        return self.heads(self.encoder(batch), batch.mask)

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it."""
        h, state = self.encoder.step(batch, state)
        return self.heads(h, batch.mask), state

    def get_state(self, batch: Batch) -> Regime:
        """The market regime read from the state at every bar. Raises StateError without the option ``regimes``."""
        readout = self(batch).regime
        if readout is None:
            raise StateError("this network reads no regimes; build it with the option regimes = true")
        return Regime.from_readout(readout)


def flatten_state(state: State) -> list[Tensor]:
    """The tensors of a network's state in one list, as state files hold them."""
    return list(chain.from_iterable(state))


def unflatten_state(tensors: Sequence[Tensor], like: State) -> State:
    """The state made of ``tensors``, divided as ``like``. Raises StateError for another number or other shapes."""
    expected = [tuple(t.shape) for t in flatten_state(like)]
    shapes = [tuple(t.shape) for t in tensors]
    if expected != shapes:
        raise StateError(f"the saved state holds {shapes}, this network keeps {expected}; run the bars again")
    rest = iter(tensors)
    return tuple(tuple(next(rest) for _ in part) for part in like)
