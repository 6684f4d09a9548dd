"""Two layers over the same bars, one from each end, for a series that is known in full; never for a forecast.

Paper: Goel et al. 2022, 2202.09729 (section 4.2, the bidirectional relaxation); option S4-19.

Glossary: b sequences · l bars · d channels · gaps (b, l) time since the previous bar, 0 for a padded bar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from models.layers.checks import check_sequence
from models.layers.errors import NotCausalError

State = tuple[Tensor, ...]
REFUSAL = (
    "a bidirectional layer reads the bars after the one it computes, so it has no {what} and is not for forecasting; "
    "use the layer without Bidirectional"
)


class Bidirectional(nn.Module):
    """(b, l, d) → (b, l, d): a linear map of the outputs of two layers from ``make_layer``, one of them reversed."""

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
        raise NotCausalError(REFUSAL.format(what="state"))

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> NoReturn:
        """Raises NotCausalError."""
        raise NotCausalError(REFUSAL.format(what="step"))

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d), and an empty state. Raises NotCausalError if ``state`` is not None."""
        if state is not None:
            raise NotCausalError(REFUSAL.format(what="state to carry"))
        check_sequence(x, self.mix.out_features, gaps)
        onward_options = {} if gaps is None else {"gaps": gaps}
        returning_options = {} if gaps is None else {"gaps": backward_gaps(gaps)}
        y, _ = self.onward(x, **onward_options)
        z, _ = self.returning(x.flip(1), **returning_options)
        return self.mix(torch.cat([y, z.flip(1)], dim=-1)), ()


def backward_gaps(gaps: Tensor) -> Tensor:
    """The gaps (b, l) of the bars in reverse order: the time to the next real bar, 1 for the last.

    A padded bar keeps its gap of 0: the time between two real bars is the gap of the later one, whatever padding lies
    between them.
    """
    length = gaps.shape[1]
    position = torch.where(gaps > 0, torch.arange(length, device=gaps.device), length)
    following = position.flip(1).cummin(1).values.flip(1)  # the first real bar at or after each bar
    following = torch.cat([following[:, 1:], torch.full_like(following[:, :1], length)], dim=1)
    ahead = torch.cat([gaps, torch.ones_like(gaps[:, :1])], dim=1).gather(1, following)
    return torch.where(gaps > 0, ahead, 0.0).flip(1)
