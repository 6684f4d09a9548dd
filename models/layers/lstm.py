"""A long short-term memory layer with the interface of the state-space layers.

Paper: Hochreiter & Schmidhuber 1997, in the form of torch.nn.LSTM.

Glossary: b sequences · l bars · d channels of input, output and state · i, f, o input, forget and output gate ·
g candidate. State: h (b, d), which is also the output of the last bar, and the cell c (b, d).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.layers.checks import check_bar, check_positive, check_sequence, check_state

State = tuple[Tensor, ...]


class LSTM(nn.Module):
    """(b, l, d) → (b, l, d). Raises SizeError."""

    cell: Any

    def __init__(self, d_model: int) -> None:
        super().__init__()
        check_positive(d_model=d_model)
        self.cell = nn.LSTM(d_model, d_model, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        zeros = self.cell.weight_hh_l0.new_zeros(batch, self.cell.hidden_size)
        return zeros, zeros

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError."""
        check_sequence(x, self.cell.hidden_size, weights=self.cell.weight_ih_l0)
        if state is not None:
            check_state(state, [(len(x), self.cell.hidden_size)] * 2)
        h, c = self.initial_state(x.shape[0]) if state is None else state
        y, (h, c) = self.cell(x, (h[None], c[None]))
        return y, (h[0], c[0])

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it. Raises as forward."""
        check_bar(x, self.cell.hidden_size, self.cell.weight_ih_l0)
        check_state(state, [(len(x), self.cell.hidden_size)] * 2)
        h, c = state
        cell = self.cell
        gates = linear(x, cell.weight_ih_l0, cell.bias_ih_l0) + linear(h, cell.weight_hh_l0, cell.bias_hh_l0)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)
