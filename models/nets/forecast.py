"""What every network is given and what it gives back.

Glossary: b chunks · l bars · n assets · f features · s graph snapshots · h horizons · c = 5 classes · d channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.errors import DtypeError, NotFiniteError, ShapeError, SizeError

CLASSES = 5
LEAST_SCORE = 1e-2  # added to the scores' sum: a network without an opinion holds next to nothing


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
class EventSteps:
    """Events between the bars, e of them: ``src``, ``dst`` (e,) int64 positions among the nodes of a market of n assets
    (models.graphs.market_events); ``age`` (e,) bars before the close of the bar the event belongs to; ``kind`` (e,)
    int64; ``features`` (e, f). ``spans`` (b, l, 2): from which event to which each bar's own reach, oldest first."""

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
    """``x`` (b, l, n, f) float32, scaled; what stands where ``mask`` (b, l, n) is False is never read. ``gaps`` (b, l):
    time since the previous bar, in bars (1 when regular). ``events``: what happened between the bars, for networks that
    read it."""

    x: Tensor
    mask: Tensor
    gaps: Tensor
    graph: GraphSteps | None = None
    events: EventSteps | None = None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The same on another device."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: value.to(*args, **kwargs) for name, value in given.items()})

    def bars(self, start: int, stop: int) -> Batch:
        """Bars [start, stop) of every chunk."""
        part = slice(start, stop)
        graph = None if self.graph is None else replace(self.graph, step=self.graph.step[:, part])
        events = None if self.events is None else replace(self.events, spans=self.events.spans[:, part])
        x, mask, gaps = self.x[:, part], self.mask[:, part], self.gaps[:, part]
        return replace(self, x=x, mask=mask, gaps=gaps, graph=graph, events=events)


class Links(NamedTuple):
    """Answers of a network that also learns which events come next, see market_links.py: ``logits`` (c, q) of q events
    that did happen and, in the rows after the first, of others that did not; asked before bar ``bar`` (q,) of ``chunk``
    (q,)."""

    logits: Tensor
    chunk: Tensor
    bar: Tensor


@dataclass(frozen=True, eq=False)
class Forecast:
    """One row per bar and asset, in scaled units.

    ``returns`` (b, l, n, h): log return over each horizon ÷ (σ √horizon);
    ``log_volatility`` (b, l, n): log of the coming volatility per bar ÷ σ; ``logits`` (b, l, n, c). σ is the asset's
    trailing volatility per bar, known at the bar. From networks that were asked for them: ``weights`` (b, l, n), a
    portfolio in units of 1/σ; ``regime`` (b, l, n, 5), see regimes.py; ``edges`` (b, l, n, n), the graph that the
    network drew itself, the weight of the edge from j to i at [i, j] (in evaluation only); ``together`` (b, l, n, n),
    logits of two assets moving the same way over the first horizon; ``links``, asked in training.
    """

    returns: Tensor
    log_volatility: Tensor
    logits: Tensor
    weights: Tensor | None = None
    regime: Tensor | None = None
    edges: Tensor | None = None
    together: Tensor | None = None
    links: Links | None = None

    @property
    def logits_3(self) -> Tensor:
        """Sell, hold, buy (b, l, n, 3): what the five classes say when strong and plain are one."""
        sell, hold, buy = self.logits[..., :2], self.logits[..., 2:3], self.logits[..., 3:]
        return torch.cat([sell.logsumexp(-1, keepdim=True), hold, buy.logsumexp(-1, keepdim=True)], dim=-1)


class Embedding(nn.Module):
    """(b, l, n, f) → (b, l, n, d): the features where there is a bar, zeros elsewhere, and the mask beside them."""

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
    """Refuses what no network can read. Raises ShapeError, DtypeError, NotFiniteError."""
    x, mask, gaps = batch.x, batch.mask, batch.gaps
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
    wrong = mask[..., None] & ~torch.isfinite(x)
    if wrong.any():
        chunk, bar, asset, feature = place = tuple(wrong.nonzero()[0].tolist())
        raise NotFiniteError(
            f"x is {x[place]} at chunk {chunk}, bar {bar}, asset {asset}, feature {feature}, where the mask says "
            "there is a bar; set the mask to False there, or fill the feature"
        )


class Heads(nn.Module):
    """(b, l, n, d) → Forecast. Starts close to no opinion: zero returns, σ as it was, five equal classes.

    ``assets``: a head of its own for each of so many assets (inventory S4-29), None for one that all share.
    ``weights``: "long_only" weights are positive and sum to 1 over the bars there are, "long_short" ones have absolute
    values that sum to just under 1; None for no weights. ``regimes``: also reads the regime out of the state.
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
        self.sizes, self.kind = [n_horizons, 1, CLASSES] + [1] * (weights is not None), weights
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
        weights = _weights(rest[0][..., 0], mask, self.kind) if self.kind else None
        regime = None if self.regimes is None else self.regimes(h)
        return Forecast(returns, log_volatility[..., 0], logits, weights, regime)


def _weights(score: Tensor, mask: Tensor, kind: str) -> Tensor:
    if kind == "long_only":
        return torch.softmax(score.masked_fill(~mask, -torch.inf), dim=-1).nan_to_num()
    held = torch.where(mask, score, 0.0)
    return held / (held.abs().sum(-1, keepdim=True) + LEAST_SCORE)


class RegimeReadout(nn.Module):
    """(b, l, n, d) → (b, l, n, 5), read out of a state that it does not change (inventory S4-26; see regimes.py)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, 5)

    def forward(self, h: Tensor) -> Tensor:
        """Trend strength, three volatility logits, momentum logit."""
        return self.linear(h.detach()).float()
