"""A long short-term memory layer behind the same interface as the state-space layers.

Paper: Hochreiter & Schmidhuber 1997, in the form of torch.nn.LSTM. State: h (b, d) and c (b, d).
"""

from __future__ import annotations

from torch import Tensor, nn

State = tuple[Tensor, ...]


class LSTM(nn.Module):
    """(b, l, d) → (b, l, d)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(d_model, d_model, batch_first=True)

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        zeros = next(self.cell.parameters()).new_zeros(batch, self.cell.hidden_size)
        return zeros, zeros

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar."""
        h, c = self.initial_state(x.shape[0]) if state is None else state
        y, (h, c) = self.cell(x, (h[None], c[None]))
        return y, (h[0], c[0])

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it."""
        y, state = self(x[:, None], state)
        return y[:, 0], state
