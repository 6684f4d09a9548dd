"""What every network is given and what it gives back.

Glossary: b chunks · l bars · n assets · f features · s graph snapshots · h horizons · c = 5 classes · d channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5


@dataclass(frozen=True, eq=False)
class GraphSteps:
    """``adjacency`` (s, n, n): weight of the edge from j to i, 0 for none, with self loops. ``step`` (b, l): the row of
    ``adjacency`` in force at each bar, the latest at or before it; −1 where there is none yet (self loops only)."""

    adjacency: Tensor
    step: Tensor

    def at_bars(self, mask: Tensor) -> Tensor:
        """Adjacency at every bar (b, l, n, n); nobody hears an asset where ``mask`` (b, l, n) is False but itself."""
        loops = torch.eye(mask.shape[-1], dtype=self.adjacency.dtype, device=mask.device)
        at = torch.cat([loops[None], self.adjacency])[self.step + 1]
        return torch.where(mask[..., None, :] | loops.bool(), at, 0.0)

    def to(self, *args: Any, **kwargs: Any) -> GraphSteps:
        """The same on another device."""
        return GraphSteps(self.adjacency.to(*args, **kwargs), self.step.to(*args, **kwargs))


@dataclass(frozen=True, eq=False)
class Batch:
    """``x`` (b, l, n, f) float32, scaled; what stands where ``mask`` (b, l, n) is False is never read. ``gaps`` (b, l):
    time since the previous bar, in bars (1 when regular). ``events``: the continuous-time events between the bars, for
    networks that read them."""

    x: Tensor
    mask: Tensor
    gaps: Tensor
    graph: GraphSteps | None = None
    events: Any | None = None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The same on another device."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: value.to(*args, **kwargs) for name, value in given.items()})

    def bars(self, start: int, stop: int) -> Batch:
        """Bars [start, stop) of every chunk."""
        part = slice(start, stop)
        graph = None if self.graph is None else replace(self.graph, step=self.graph.step[:, part])
        return replace(self, x=self.x[:, part], mask=self.mask[:, part], gaps=self.gaps[:, part], graph=graph)


@dataclass(frozen=True, eq=False)
class Forecast:
    """One row per bar and asset, in scaled units.

    ``returns`` (b, l, n, h): log return over each horizon ÷ (σ √horizon);
    ``log_volatility`` (b, l, n): log of the coming volatility per bar ÷ σ; ``logits`` (b, l, n, c). σ is the asset's
    trailing volatility per bar, known at the bar.
    """

    returns: Tensor
    log_volatility: Tensor
    logits: Tensor


class Embedding(nn.Module):
    """(b, l, n, f) → (b, l, n, d): the features where there is a bar, zeros elsewhere, and the mask beside them."""

    def __init__(self, n_features: int, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features + 1, d_model)

    def forward(self, batch: Batch) -> Tensor:
        """The embedded bars."""
        mask = batch.mask[..., None]
        return self.linear(torch.cat([torch.where(mask, batch.x, 0.0), mask.to(batch.x.dtype)], dim=-1))


class Heads(nn.Module):
    """(b, l, n, d) → Forecast. Starts close to no opinion: zero returns, σ as it was, five equal classes."""

    def __init__(self, d_model: int, n_horizons: int) -> None:
        super().__init__()
        self.sizes = [n_horizons, 1, CLASSES]
        self.linear = nn.Linear(d_model, sum(self.sizes))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> Forecast:
        """The forecast of every bar."""
        returns, log_volatility, logits = self.linear(h).float().split(self.sizes, dim=-1)
        return Forecast(returns, log_volatility[..., 0], logits)
