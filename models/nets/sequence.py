"""Sequence networks: one asset's bars in, one forecast a bar out, the weights shared by all assets.

embedding → [norm → layer → GLU → dropout → residual] × n_layers → norm → pooling → heads (the S4 paper's deep network,
pre-norm). A layer with a gate of its own (Mamba) or that mixes its channels already (LSTM) goes without the GLU.

Glossary: b chunks · l bars · n assets, folded into the batch · d channels. A layer has ``forward(x, state) → (y,
state)``, ``step`` and ``initial_state``, so the network does too. Which layers there are stands in layers.py.
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

    def __init__(self, layer: nn.Module, d_model: int, dropout: float, gated: bool) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(d_model), layer
        self.mix = nn.Linear(d_model, 2 * d_model) if gated else None
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, gaps: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The block's output and its layer's state; x (b, d) with a state is one bar; ``gaps`` (b, l) or (b,)."""
        timed = {} if gaps is None else {"gaps" if x.dim() == 3 else "gap": gaps}
        y, state = (self.layer if x.dim() == 3 else self.layer.step)(self.norm(x), state, **timed)
        if self.mix is not None:
            y = glu(self.mix(gelu(y)))
        return x + self.dropout(y), state


class RunningMean(nn.Module):
    """The mean of all bars so far (inventory S4-18): never of later ones (TRAP-13). State: sum (b, d), count (b, 1)."""

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """The state before the first bar: zeros."""
        return like.new_zeros(batch, len(like)), like.new_zeros(batch, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, d) → (b, l, d)."""
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One bar x (b, d)."""
        total, count = state[0] + x, state[1] + 1
        return total / count, (total, count)


class Encoder(nn.Module):
    """Batch → (b, l, n, d): embedding and blocks, every asset on its own.

    ``pooling``: "last" reads every bar's own output, "mean" that of all bars so far. ``irregular``: the layers are told
    the batch's gaps. Raises NotCausalError for a layer that reads the future.
    """

    blocks: Any

    def __init__(
        self,
        spec: Spec,
        n_features: int,
        make_layer: MakeLayer,
        gated: bool,
        pooling: str = "last",
        irregular: bool = False,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, ("last", "mean"))
        check_positive(n_layers=spec.n_layers)
        self.embedding, self.irregular = Embedding(n_features, spec.d_model), irregular
        self.blocks = nn.ModuleList(
            Block(make_layer(), spec.d_model, spec.dropout, gated) for _ in range(spec.n_layers)
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
        """Every bar of every asset (b, l, n, d), from empty states; ``gaps`` (b, l, n) instead of the batch's."""
        h = self.embedding(batch)
        b, bars, n, d = h.shape
        h, gaps = h.transpose(1, 2).reshape(b * n, bars, d), self._gaps(batch, gaps)
        h = self.run(h, None if gaps is None else gaps.transpose(1, 2).reshape(b * n, bars))
        return h.reshape(b, n, bars, d).transpose(1, 2)

    def step(self, batch: Batch, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The one bar of ``batch`` (b, 1, n, d) after those that made ``state``, and the state after it."""
        h, gaps = self.embedding(batch), self._gaps(batch, gaps)
        after, state = self.run_step(h.flatten(0, 2), state, None if gaps is None else gaps.flatten())
        return after.reshape(h.shape), state

    def run(self, h: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Embedded sequences (b, l, d) through the blocks, norm and pooling."""
        for block in self.blocks:
            h, _ = block(h, gaps=gaps)
        h = self.norm(h)
        return h if self.pool is None else self.pool(h)

    def run_step(self, h: Tensor, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """One bar (b, d) of the same."""
        parts = [*self.blocks] if self.pool is None else [*self.blocks, self.pool]
        if len(state) != len(parts):
            raise StateError(f"the state has {len(state)} parts, this network {len(parts)}; use its own initial_state")
        after = []
        for block, before in zip(self.blocks, state, strict=False):
            h, now = block(h, before, gaps)
            after.append(now)
        h = self.norm(h)
        if self.pool is not None:
            h, now = self.pool.step(h, state[-1])
            after.append(now)
        return h, tuple(after)

    def _gaps(self, batch: Batch, gaps: Tensor | None) -> Tensor | None:
        if gaps is None and self.irregular:
            return batch.gaps[..., None].expand(*batch.mask.shape)
        return gaps


class Shortened(Encoder):
    """An encoder that sees the mean of every k = ``pool_bars`` bars, once they are complete (inventory SSF-12).

    Every bar hears the newest of its outputs beside itself. State: the encoder's; sum of the bars not yet pooled and
    what was heard last (b, d); how many bars the sum holds (b,), the same for all.
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
        """Embedded sequences (b, l, d) through the blocks at every k-th bar."""
        b, bars, d = h.shape
        heard = h.new_zeros(b, 1, d)
        if bars >= self.k:
            pooled = h[:, : bars // self.k * self.k].unflatten(1, (-1, self.k)).mean(2)
            heard = torch.cat([heard, super().run(pooled)], dim=1)
        return h + heard[:, torch.arange(1, bars + 1, device=h.device) // self.k]

    def run_step(self, h: Tensor, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """One bar (b, d) of the same."""
        *inner, (total, heard, count) = state
        total, count, after = total + h, count + 1, tuple(inner)
        if int(count[0]) == self.k:
            heard, after = super().run_step(total / self.k, after)
            total, count = torch.zeros_like(total), torch.zeros_like(count)
        return h + heard, (*after, (total, heard, count))


class SequenceNetwork(nn.Module):
    """Encoder and heads; reads no graph. ``pool_bars`` above 1: a Shortened encoder. ``heads``: options of Heads."""

    def __init__(
        self,
        spec: Spec,
        n_features: int,
        n_horizons: int,
        make_layer: MakeLayer,
        gated: bool = True,
        pooling: str = "last",
        irregular: bool = False,
        pool_bars: int = 1,
        **heads: Any,
    ) -> None:
        super().__init__()
        inside = (spec, n_features, make_layer, gated, pooling, irregular)
        self.encoder = Encoder(*inside) if pool_bars == 1 else Shortened(pool_bars, *inside)
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
        """What the state at every bar says of the market; for networks built with the option ``regimes``."""
        readout = self(batch).regime
        if readout is None:
            raise StateError("this network reads no regimes; build it with the option regimes = true")
        return Regime.of(readout)


def flat(state: State) -> list[Tensor]:
    """The tensors of a network's state in a row, as they are saved."""
    return list(chain.from_iterable(state))


def nested(tensors: Sequence[Tensor], like: State) -> State:
    """The state whose tensors are ``tensors``, parted as ``like``. Raises StateError for another number or shape."""
    shapes, given = [tuple(t.shape) for t in flat(like)], [tuple(t.shape) for t in tensors]
    if shapes != given:
        raise StateError(f"the saved state holds {given}, this network keeps {shapes}; run the bars again")
    rest = iter(tensors)
    return tuple(tuple(next(rest) for _ in part) for part in like)
