"""A gated recurrent unit with the interface of the state-space layers.

Paper: Cho et al. 2014, 1406.1078, in the form of torch.nn.GRU (the reset gate acts after the recurrent product).
Glossary: b sequences · l bars · d channels of input, output and state · r reset gate · z update gate · n candidate
state.
State: h (b, d), which is also the output of the last bar.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.layers.checks import check_bar, check_positive, check_sequence, check_state

State = tuple[Tensor, ...]


class GRU(nn.Module):
    """(b, l, d) → (b, l, d). Raises SizeError."""

    cell: Any

    def __init__(self, d_model: int) -> None:
        super().__init__()
        check_positive(d_model=d_model)
        self.cell = nn.GRU(d_model, d_model, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.cell.weight_hh_l0.new_zeros(batch, self.cell.hidden_size),)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError."""
        check_sequence(x, self.cell.hidden_size, weights=self.cell.weight_ih_l0)
        state = self.initial_state(len(x)) if state is None else state
        check_state(state, [(len(x), self.cell.hidden_size)])
        y, h = self.cell(x, state[0][None])
        return y, (h[0],)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it. Raises as forward."""
        cell = self.cell
        check_bar(x, cell.hidden_size, weights=cell.weight_ih_l0)
        check_state(state, [(len(x), cell.hidden_size)])
        (h,) = state
        from_x = linear(x, cell.weight_ih_l0, cell.bias_ih_l0)
        from_h = linear(h, cell.weight_hh_l0, cell.bias_hh_l0)
        r_x, z_x, n_x = from_x.chunk(3, dim=-1)
        r_h, z_h, n_h = from_h.chunk(3, dim=-1)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        h = n + z * (h - n)
        return h, (h,)
