"""Sequence networks: they read the bars of each asset by itself, and all assets share the weights.

embedding → [norm → layer → GLU → dropout → residual] × n_layers → norm → pooling → heads, the deep network of the S4
paper with the norm before the layer. A layer that has a gate of its own (Mamba) or already mixes its channels (LSTM)
has no GLU after it. sequence_layers.py lists the layers and the methods that they must have.

Glossary: b chunks · l bars · n assets · d channels. The layers receive each asset of each chunk as a sequence of its
own, so their batch dimension is b · n; the docstrings of blocks and layers call it b.
Ids such as S4-18: .github/sources.md.
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

# the state of a network: a tuple of parts, such as one part for each layer; a part is a tuple of tensors
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
        """The block's output and its layer's state after the last bar.

        ``x`` is a sequence (b, l, d), or one bar (b, d), which the layer's ``step`` computes. ``gaps`` (b, l), for one
        bar (b,): time since the previous bar, None for regular bars.
        """
        is_sequence = x.dim() == 3
        gap_argument = {} if gaps is None else {"gaps" if is_sequence else "gap": gaps}
        y, state = (self.layer if is_sequence else self.layer.step)(self.norm(x), state, **gap_argument)
        if self.mix is not None:
            y = glu(self.mix(gelu(y)))
        return x + self.dropout(y), state


class RunningMean(nn.Module):
    """The mean over the bar and all earlier bars (S4-18), without later bars (TRAP-13).

    State: the sum of the bars (b, d) and their number (b, 1).
    """

    def initial_state(self, b: int, like: Tensor) -> tuple[Tensor, ...]:
        """The state before the first bar: zeros; ``like`` (d,) gives the number of channels, the dtype and the
        device."""
        return like.new_zeros(b, len(like)), like.new_zeros(b, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The running means of x, (b, l, d) → (b, l, d)."""
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The mean (b, d) after one more bar x (b, d), and the state after it."""
        total, count = state
        total = total + x
        count = count + 1
        return total / count, (total, count)


class Encoder(nn.Module):
    """Batch → (b, l, n, d): embedding and blocks, each asset by itself.

    ``pooling``: "last" returns every bar's output, "mean" the mean of all outputs up to the bar. ``irregular``: True if
    the layers receive the batch's gaps. Raises NotCausalError for a layer that reads later bars.
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
        """The state of n assets in b chunks before the first bar: one part for each layer, then one for the pooling."""
        state = tuple(block.layer.initial_state(b * n) for block in self.blocks)
        return state if self.pool is None else (*state, self.pool.initial_state(b * n, self.norm.weight))

    def forward(self, batch: Batch, gaps: Tensor | None = None) -> Tensor:
        """The outputs (b, l, n, d) of all bars, from the initial state; ``gaps`` (b, l, n) replace the batch's gaps."""
        h = self.embedding(batch)
        b, n_bars, n, d = h.shape
        h = h.transpose(1, 2).reshape(b * n, n_bars, d)
        gaps = self._gaps(batch, gaps)
        h = self.run(h, None if gaps is None else gaps.transpose(1, 2).reshape(b * n, n_bars))
        return h.reshape(b, n, n_bars, d).transpose(1, 2)

    def step(self, batch: Batch, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The output (b, 1, n, d) of the one bar of ``batch``, and the state after it; ``gaps`` (b, 1, n) replace the
        batch's gaps."""
        h = self.embedding(batch)
        gaps = self._gaps(batch, gaps)
        output, state = self.run_step(h.flatten(0, 2), state, None if gaps is None else gaps.flatten())
        return output.reshape(h.shape), state

    def run(self, h: Tensor, gaps: Tensor | None = None) -> Tensor:
        """The outputs (b, l, d) of blocks, norm and pooling for embedded sequences h (b, l, d); ``gaps`` (b, l)."""
        for block in self.blocks:
            h, _ = block(h, gaps=gaps)
        h = self.norm(h)
        return h if self.pool is None else self.pool(h)

    def run_step(self, h: Tensor, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The output (b, d) of blocks, norm and pooling for one bar h (b, d), and the state after it; ``gaps`` (b,).
        Raises StateError for a state with another number of parts."""
        n_parts = len(self.blocks) + (self.pool is not None)
        if len(state) != n_parts:
            raise StateError(f"the state has {len(state)} parts, this network {n_parts}; use its own initial_state")
        next_state = []
        for block, layer_state in zip(self.blocks, state, strict=False):  # the pooling's part comes last
            h, layer_state = block(h, layer_state, gaps)
            next_state.append(layer_state)
        h = self.norm(h)
        if self.pool is not None:
            h, pool_state = self.pool.step(h, state[-1])
            next_state.append(pool_state)
        return h, tuple(next_state)

    def _gaps(self, batch: Batch, gaps: Tensor | None) -> Tensor | None:
        """The gaps that the layers receive (b, l, n): the given ones, else the batch's if ``irregular``, else None."""
        if gaps is None and self.irregular:
            return batch.gaps[..., None].expand(*batch.mask.shape)
        return gaps


class PooledEncoder(Encoder):
    """An encoder whose blocks read the mean embedding of every k = ``pool_bars`` successive bars (SSF-12).

    The blocks read a mean at the last of its k bars, so that no bar reads a later one. The output of a bar is its
    embedding plus the latest output of the blocks, which is 0 before the first complete mean. State: the encoder's
    parts; then one part with the sum of the bars not yet pooled (b, d), the latest output of the blocks (b, d), and the
    number of bars in the sum (b,), which is the same for all sequences.
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
        b, n_bars, d = h.shape
        outputs = h.new_zeros(b, 1, d)
        if n_bars >= self.k:
            pooled = h[:, : n_bars // self.k * self.k].unflatten(1, (-1, self.k)).mean(2)
            outputs = torch.cat([outputs, super().run(pooled)], dim=1)
        n_complete = torch.arange(1, n_bars + 1, device=h.device) // self.k  # complete means at every bar
        return h + outputs[:, n_complete]

    def run_step(self, h: Tensor, state: State, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """The output (b, d) of one bar h (b, d), and the state after it."""
        *encoder_parts, (total, output, count) = state
        encoder_state = tuple(encoder_parts)
        total = total + h
        count = count + 1
        if int(count[0]) == self.k:
            output, encoder_state = super().run_step(total / self.k, encoder_state)
            total = torch.zeros_like(total)
            count = torch.zeros_like(count)
        return h + output, (*encoder_state, (total, output, count))


class SequenceNetwork(nn.Module):
    """An encoder and its heads; reads no graph.

    ``make_layer`` builds one sequence layer; ``adds_glu``: True if a GLU follows it. ``pooling`` and ``irregular``: as
    in Encoder. ``pool_bars`` above 1 selects a PooledEncoder. ``heads``: options of Heads.
    """

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
        encoder_arguments = (spec, n_features, make_layer, adds_glu, pooling, irregular)
        is_pooled = pool_bars != 1
        self.encoder = PooledEncoder(pool_bars, *encoder_arguments) if is_pooled else Encoder(*encoder_arguments)
        self.heads = Heads(spec.d_model, n_horizons, **heads)

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        return self.encoder.initial_state(b, n)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises the errors of ``check_batch``, and ShapeError for heads of other assets."""
        return self.heads(self.encoder(batch), batch.mask)

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it."""
        h, state = self.encoder.step(batch, state)
        return self.heads(h, batch.mask), state

    def predict_regime(self, batch: Batch) -> Regime:
        """The market regime of every bar and asset. Raises StateError without the option ``regimes``."""
        readout = self(batch).regime
        if readout is None:
            raise StateError("this network reads no regimes; build it with the option regimes = true")
        return Regime.from_readout(readout)


def flatten_state(state: State) -> list[Tensor]:
    """All tensors of a network's state in one list, part by part: the order in state files."""
    return list(chain.from_iterable(state))


def unflatten_state(tensors: Sequence[Tensor], like: State) -> State:
    """The state made of ``tensors``, divided into parts as the state ``like``; the inverse of ``flatten_state``.

    Raises StateError where the number of tensors or a shape differs from ``like``.
    """
    expected_shapes = [tuple(tensor.shape) for tensor in flatten_state(like)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if expected_shapes != shapes:
        raise StateError(f"the saved state holds {shapes}, this network keeps {expected_shapes}; run the bars again")
    remaining = iter(tensors)
    return tuple(tuple(next(remaining) for _ in part) for part in like)
