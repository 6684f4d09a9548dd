"""Two layers over the same bars, one in time order and one in reverse; not causal, so not for a forecast.

Paper: Goel et al. 2022, 2202.09729 (section 4.2, the bidirectional relaxation); option S4-19.

Glossary: b sequences · l bars · d channels · gaps (b, l) time since the previous bar, in bars, 0 for a padded bar.

Ids such as S4-19: .github/sources.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from models.layers.checks import check_sequence
from models.layers.errors import NotCausalError

State = tuple[Tensor, ...]
NOT_CAUSAL_MESSAGE = (
    "a bidirectional layer reads bars after the one it computes, so it has no {what} and is not for forecasting; "
    "use the layer without Bidirectional"
)


class Bidirectional(nn.Module):
    """(b, l, d) → (b, l, d): a linear map of the outputs of two layers, both built by ``make_layer``.

    The layer ``onward`` reads the bars in time order, ``returning`` in reverse.
    """

    causal = False
    onward: Any
    returning: Any

    def __init__(self, d_model: int, make_layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.onward = make_layer()
        self.returning = make_layer()
        self.mix = nn.Linear(2 * d_model, d_model)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters of both layers that weight decay would pull towards a meaningless value."""
        return [p for layer in (self.onward, self.returning) if hasattr(layer, "undecayed") for p in layer.undecayed()]

    def initial_state(self, batch: int) -> NoReturn:
        """Raises NotCausalError."""
        raise NotCausalError(NOT_CAUSAL_MESSAGE.format(what="state"))

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> NoReturn:
        """Raises NotCausalError."""
        raise NotCausalError(NOT_CAUSAL_MESSAGE.format(what="step"))

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d), and an empty state.

        Raises NotCausalError if ``state`` is not None; ShapeError, NotFiniteError.
        """
        if state is not None:
            raise NotCausalError(NOT_CAUSAL_MESSAGE.format(what="state to carry"))
        check_sequence(x, self.mix.out_features, gaps)
        onward_options = {} if gaps is None else {"gaps": gaps}
        returning_options = {} if gaps is None else {"gaps": backward_gaps(gaps)}
        onward_y, _ = self.onward(x, **onward_options)
        reversed_y, _ = self.returning(x.flip(1), **returning_options)
        return self.mix(torch.cat([onward_y, reversed_y.flip(1)], dim=-1)), ()


def backward_gaps(gaps: Tensor) -> Tensor:
    """The gaps (b, l) of the same bars in reverse order, from their gaps (b, l) in time order.

    A real bar's result is its time to the next real bar, which is the gap of that bar; padding between the two does not
    count. The last real bar gets 1, and a padded bar keeps 0.
    """
    length = gaps.shape[1]
    real_positions = torch.where(gaps > 0, torch.arange(length, device=gaps.device), length)
    first_real = real_positions.flip(1).cummin(1).values.flip(1)  # position of the first real bar at or after each bar
    next_real = torch.cat([first_real[:, 1:], torch.full_like(first_real[:, :1], length)], dim=1)
    next_gap = torch.cat([gaps, torch.ones_like(gaps[:, :1])], dim=1).gather(1, next_real)
    return torch.where(gaps > 0, next_gap, 0.0).flip(1)
