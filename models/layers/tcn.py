"""A temporal convolutional network behind the same interface as the state-space layers.

Paper: Bai, Kolter, Koltun 2018, 1803.01271 (section 3: causal dilated convolutions, residual levels, figure 1).

Glossary: b sequences · l bars · d channels · k taps · level i, from 0, with dilation δ = 2^i. Each level has two
convolutions and a residual connection:

    F(x) = ReLU(conv(ReLU(conv(x))))        y = ReLU(x + F(x))        conv(x)_t = bias + Σ_j W_j x_{t − (k−1−j) δ}

with W under weight normalisation: W = gain · V / ‖V‖ for every output channel, where V is ``direction``. An output
reads its own bar and the 2 (k − 1) (2^levels − 1) bars before it.
State: for each convolution, two a level, its last (k − 1) δ inputs (b, (k − 1) δ, d), called its tail.

Departs from the paper: no dropout between the convolutions; the network's blocks apply dropout to the layer's output.
Each convolution is one matrix product over the taps laid side by side: the rounding of a
library's fast convolution could let a later bar change an earlier output, which must not happen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from models.layers.checks import check_bar, check_positive, check_sequence, check_state
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]


class TCN(nn.Module):
    """(b, l, d) → (b, l, d). Outputs are never negative, so the block should mix the channels after this layer."""

    convolutions: Any

    def __init__(self, d_model: int, levels: int = 4, taps: int = 3) -> None:
        super().__init__()
        check_positive(d_model=d_model, levels=levels, taps=taps)
        self.d_model = d_model
        self.convolutions = nn.ModuleList(_Convolution(d_model, taps, 2**i) for i in range(levels) for _ in range(2))

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay must not shrink: the norm of V has no effect, and the gain scales W directly."""
        return [p for c in self.convolutions for p in (c.direction, c.gain)]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return tuple(c.bias.new_zeros(batch, c.reach, self.d_model) for c in self.convolutions)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError."""
        check_sequence(x, self.d_model, weights=self.convolutions[0].direction)
        state = self.initial_state(len(x)) if state is None else state
        check_state(state, self._state_shapes(len(x)))
        next_tails = []
        for i in range(0, len(state), 2):  # the two convolutions of a level
            first, first_tail = self.convolutions[i](x, state[i])
            second, second_tail = self.convolutions[i + 1](relu(first), state[i + 1])
            x = relu(x + relu(second))
            next_tails += [first_tail, second_tail]
        return x, tuple(next_tails)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it. Raises as forward."""
        check_bar(x, self.d_model, self.convolutions[0].direction)
        check_state(state, self._state_shapes(len(x)))
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state

    def _state_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, c.reach, self.d_model) for c in self.convolutions]


class _Convolution(CachingModule):
    """One causal dilated convolution with normalised weights, (b, l, d) → (b, l, d)."""

    def __init__(self, d_model: int, taps: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.reach = (taps - 1) * dilation
        bound = 1 / math.sqrt(d_model * taps)
        self.direction = nn.Parameter(torch.empty(d_model, taps * d_model).uniform_(-bound, bound))
        self.gain = nn.Parameter(self.direction.detach().norm(dim=1))
        self.bias = nn.Parameter(torch.empty(d_model).uniform_(-bound, bound))
        self._cached_weight = WeightCache(self._normalised_weight)

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """The convolved bars (b, l, d) and the next tail, for the ``tail`` (b, (k − 1) δ, d) before these bars."""
        length = x.shape[1]
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        taps = [padded[:, start : start + length] for start in range(0, self.reach + 1, self.dilation)]
        is_cached = not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        weight = self._cached_weight() if is_cached else self._normalised_weight()
        return linear(torch.cat(taps, dim=-1), weight, self.bias), padded[:, length:].to(tail.dtype)

    def _normalised_weight(self) -> Tensor:
        """W (d, k d), the taps side by side, the earliest first."""
        return self.direction * (self.gain / self.direction.norm(dim=1))[:, None]
