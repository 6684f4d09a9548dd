"""The input and output of every network: Batch and Forecast.

Glossary: b chunks · l bars · n assets · f features · s graph snapshots · h horizons · c = 5 classes · d channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.errors import DtypeError, NotFiniteError, ShapeError, SizeError

CLASSES = 5
LEAST_SCORE = 1e-2  # added to the sum of scores: a network with scores near 0 holds almost nothing


@dataclass(frozen=True, eq=False)
class GraphSteps:
    """Graph snapshots and the bars they hold for. ``adjacency`` (s, n, n): weight of the edge from j to i at [i, j], 0
    for none, with self loops. ``step`` (b, l): the row of ``adjacency`` in force at each bar, the latest at or before
    it; −1 before the first (self loops only)."""

    adjacency: Tensor
    step: Tensor

    def at_bars(self, mask: Tensor) -> Tensor:
        """Adjacency at every bar (b, l, n, n); assets where ``mask`` (b, l, n) is False have no edge but their loop."""
        loops = torch.eye(mask.shape[-1], dtype=self.adjacency.dtype, device=mask.device)
        adjacency = torch.cat([loops[None], self.adjacency])[self.step + 1]
        return torch.where(mask[..., None, :] | loops.bool(), adjacency, 0.0)

    def to(self, *args: Any, **kwargs: Any) -> GraphSteps:
        """The same on another device."""
        return GraphSteps(self.adjacency.to(*args, **kwargs), self.step.to(*args, **kwargs))


@dataclass(frozen=True, eq=False)
class EventSteps:
    """The e events between the bars, oldest first. ``src``, ``dst`` (e,) int64: positions among the nodes of a market
    of n assets (models.graphs.market_events); ``age`` (e,): time from the event to the close of its bar, in bars;
    ``kind`` (e,) int64; ``features`` (e, f). ``spans`` (b, l, 2): each bar's events are [start, stop)."""

    src: Tensor
    dst: Tensor
    age: Tensor
    kind: Tensor
    features: Tensor
    spans: Tensor

    def to(self, *args: Any, **kwargs: Any) -> EventSteps:
        """The same on another device."""
        return EventSteps(*(getattr(self, f.name).to(*args, **kwargs) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a network. ``x`` (b, l, n, f) float32, scaled; never read where ``mask`` (b, l, n) is False.
    ``gaps`` (b, l): time since the previous bar, in bars (1 when regular). ``graph`` and ``events``: for networks that
    read them."""

    x: Tensor
    mask: Tensor
    gaps: Tensor
    graph: GraphSteps | None = None
    events: EventSteps | None = None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The same on another device."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: value.to(*args, **kwargs) for name, value in parts.items()})

    def bars(self, start: int, stop: int) -> Batch:
        """Bars [start, stop) of every chunk."""
        span = slice(start, stop)
        return Batch(
            x=self.x[:, span],
            mask=self.mask[:, span],
            gaps=self.gaps[:, span],
            graph=None if self.graph is None else replace(self.graph, step=self.graph.step[:, span]),
            events=None if self.events is None else replace(self.events, spans=self.events.spans[:, span]),
        )


class Links(NamedTuple):
    """Link logits of a network that also learns which events come next, see link_prediction.py. ``logits`` (c, q): the
    first row of q events that happened, the other rows of negatives that did not; predicted before bar ``bar`` (q,) of
    ``chunk`` (q,)."""

    logits: Tensor
    chunk: Tensor
    bar: Tensor


@dataclass(frozen=True, eq=False)
class Forecast:
    """One row per bar and asset, in scaled units.

    ``returns`` (b, l, n, h): log return over each horizon ÷ (σ √horizon);
    ``log_volatility`` (b, l, n): log of the coming volatility per bar ÷ σ; ``logits`` (b, l, n, c). σ is the asset's
    trailing volatility per bar, known at the bar. From networks with the option for them: ``weights`` (b, l, n), a
    portfolio in units of 1/σ; ``regime`` (b, l, n, 5), see regimes.py; ``edges`` (b, l, n, n), the learned graph, the
    weight of the edge from j to i at [i, j] (in evaluation only); ``together`` (b, l, n, n), logits of two assets
    moving the same way over the first horizon; ``links``, in training.
    """

    returns: Tensor
    log_volatility: Tensor
    logits: Tensor
    weights: Tensor | None = None
    regime: Tensor | None = None
    edges: Tensor | None = None
    together: Tensor | None = None
    links: Links | None = None


class Embedding(nn.Module):
    """(b, l, n, f) → (b, l, n, d): a linear map of the features (zeros where there is no bar) and the mask."""

    def __init__(self, n_features: int, d_model: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.linear = nn.Linear(n_features + 1, d_model)

    def forward(self, batch: Batch) -> Tensor:
        """The embedded bars. Raises ShapeError, DtypeError, NotFiniteError."""
        check_batch(batch, self.n_features)
        mask = batch.mask[..., None]
        x = torch.where(mask, batch.x, 0.0)
        return self.linear(torch.cat([x, mask.to(x.dtype)], dim=-1))


def check_batch(batch: Batch, n_features: int) -> None:
    """Checks shapes, types and values of a batch. Raises ShapeError, DtypeError, NotFiniteError."""
    x = batch.x
    mask = batch.mask
    gaps = batch.gaps
    if torch.compiler.is_exporting():
        return
    if x.dim() != 4 or x.shape[3] != n_features or 0 in x.shape:
        raise ShapeError(f"x is {tuple(x.shape)}; give (chunks, bars, assets, {n_features}), none of them 0")
    if mask.shape != x.shape[:3] or mask.dtype != torch.bool:
        raise ShapeError(f"the mask is {tuple(mask.shape)}, {mask.dtype}; give bool {tuple(x.shape[:3])}")
    if gaps.shape != x.shape[:2]:
        raise ShapeError(f"gaps are {tuple(gaps.shape)}; give one per chunk and bar, {tuple(x.shape[:2])}")
    if x.dtype != torch.float32:
        raise DtypeError(f"x is {x.dtype}; give float32 (x.float())")
    is_bad = mask[..., None] & ~torch.isfinite(x)
    if is_bad.any():
        chunk, bar, asset, feature = position = tuple(is_bad.nonzero()[0].tolist())
        raise NotFiniteError(
            f"x is {x[position]} at chunk {chunk}, bar {bar}, asset {asset}, feature {feature}, where the mask says "
            "there is a bar; set the mask to False there, or fill the feature"
        )


class Heads(nn.Module):
    """(b, l, n, d) → Forecast. The first weights forecast almost no move: returns near 0, volatility near σ, classes
    nearly equal.

    ``assets``: a separate head for each of this many assets (S4-29); None: all assets share one. ``weights``:
    "long_only" weights are positive and sum to 1 over the assets that have the bar, "long_short" ones have absolute
    values that sum to just under 1; None for no weights. ``regimes``: also reads the regime from the state.
    """

    def __init__(
        self,
        d_model: int,
        n_horizons: int,
        assets: int | None = None,
        weights: str | None = None,
        regimes: bool = False,
    ) -> None:
        super().__init__()
        if weights not in (None, "long_only", "long_short"):
            raise SizeError(f"weights is {weights!r}; choose long_only or long_short, or leave it out")
        self.sizes = [n_horizons, 1, CLASSES] + [1] * (weights is not None)
        self.weights_kind = weights
        self.weight = nn.Parameter(torch.randn(assets or 1, sum(self.sizes), d_model) * 0.02)
        self.bias = nn.Parameter(torch.zeros(assets or 1, sum(self.sizes)))
        self.regimes = RegimeReadout(d_model) if regimes else None

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.bias]

    def forward(self, h: Tensor, mask: Tensor) -> Forecast:
        """The forecast of every bar; ``mask`` (b, l, n). Raises ShapeError for another number of assets."""
        if len(self.weight) not in (1, h.shape[2]):
            raise ShapeError(
                f"this network has heads for {len(self.weight)} assets, the batch has {h.shape[2]}; fit it again"
            )
        y = (h.float()[..., None, :] @ self.weight.float().mT)[..., 0, :] + self.bias.float()
        returns, log_volatility, logits, *rest = y.split(self.sizes, dim=-1)
        weights = _weights(rest[0][..., 0], mask, self.weights_kind) if self.weights_kind else None
        regime = None if self.regimes is None else self.regimes(h)
        return Forecast(returns, log_volatility[..., 0], logits, weights, regime)


def _weights(score: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Portfolio weights (b, l, n) from scores (b, l, n), 0 where there is no bar."""
    if kind == "long_only":
        return torch.softmax(score.masked_fill(~mask, -torch.inf), dim=-1).nan_to_num()
    masked = torch.where(mask, score, 0.0)
    return masked / (masked.abs().sum(-1, keepdim=True) + LEAST_SCORE)


class RegimeReadout(nn.Module):
    """(b, l, n, d) → (b, l, n, 5), a linear map of the state that passes no gradient back (S4-26; see regimes.py)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, 5)

    def forward(self, h: Tensor) -> Tensor:
        """Trend strength, three volatility logits, momentum logit."""
        return self.linear(h.detach()).float()
