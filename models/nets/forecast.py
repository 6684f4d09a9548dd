"""The input and output of every network: Batch and Forecast.

A chunk is a run of successive bars that a network reads in one pass. Lengths of time are in bars unless noted.

Glossary: b chunks · l bars · n assets · f features · s graph snapshots · e events · h horizons · c = 5 classes ·
d channels. Ids such as S4-26: .github/sources.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.layers.errors import DtypeError, NotFiniteError, ShapeError, SizeError

N_CLASSES = 5
N_REGIME_OUTPUTS = 5  # of a readout, see regimes.py
SCORE_SUM_OFFSET = 1e-2  # added to the sum of absolute scores, so that scores near 0 give weights near 0


@dataclass(frozen=True, eq=False)
class GraphSteps:
    """Graph snapshots, and the index of the snapshot that each bar uses.

    ``adjacency`` (s, n, n): element [k, i, j] is the weight of the edge from asset j to asset i in snapshot k, 0 where
    there is no edge; it contains self loops. ``snapshot_index`` (b, l) int64: the position in ``adjacency`` of the
    latest snapshot at or before each bar, −1 before the first snapshot, where only self loops exist.
    """

    adjacency: Tensor
    snapshot_index: Tensor

    def at_bars(self, mask: Tensor) -> Tensor:
        """Adjacency at every bar (b, l, n, n). Where ``mask`` (b, l, n) bool is False, the asset's only outgoing
        edge is its self loop, with the weight that it has in the snapshot."""
        loops = torch.eye(mask.shape[-1], dtype=self.adjacency.dtype, device=mask.device)
        adjacency = torch.cat([loops[None], self.adjacency])[self.snapshot_index + 1]
        return torch.where(mask[..., None, :] | loops.bool(), adjacency, 0.0)

    def to(self, *args: Any, **kwargs: Any) -> GraphSteps:
        """The same graphs on another device."""
        return GraphSteps(self.adjacency.to(*args, **kwargs), self.snapshot_index.to(*args, **kwargs))


@dataclass(frozen=True, eq=False)
class EventSteps:
    """The market events between the bars, oldest first.

    ``src``, ``dst`` (e,) int64: positions among the nodes of a market of n assets (models.graphs.market_events).
    ``age_in_bars`` (e,) float32: time from the event to the close of its bar. ``kind`` (e,) int64: positions in
    EVENT_KINDS. ``features`` (e, len(FEATURES)) float32, as in models.graphs.market_events. ``event_ranges`` (b, l, 2)
    int64: each bar has the events [start, stop).
    """

    src: Tensor
    dst: Tensor
    age_in_bars: Tensor
    kind: Tensor
    features: Tensor
    event_ranges: Tensor

    def to(self, *args: Any, **kwargs: Any) -> EventSteps:
        """The same events on another device."""
        return EventSteps(*(getattr(self, f.name).to(*args, **kwargs) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a network.

    ``x`` (b, l, n, f) float32: scaled features. ``mask`` (b, l, n) bool: True where the asset has the bar; ``x`` is not
    read elsewhere. ``gaps`` (b, l): time since the previous bar, in bars, 1 on a regular grid. ``graph`` and
    ``events`` are None for networks that do not read them.
    """

    x: Tensor
    mask: Tensor
    gaps: Tensor
    graph: GraphSteps | None = None
    events: EventSteps | None = None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The same batch on another device."""
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return Batch(**{name: value.to(*args, **kwargs) for name, value in present.items()})

    def bars(self, start: int, stop: int) -> Batch:
        """A batch of the bars [start, stop) of every chunk."""
        selected = slice(start, stop)
        graph = self.graph
        if graph is not None:
            graph = replace(graph, snapshot_index=graph.snapshot_index[:, selected])
        events = self.events
        if events is not None:
            events = replace(events, event_ranges=events.event_ranges[:, selected])
        return Batch(self.x[:, selected], self.mask[:, selected], self.gaps[:, selected], graph, events)


class Links(NamedTuple):
    """Link logits of a network that also learns which events come next, see link_prediction.py.

    ``logits`` (candidates, q): row 0 belongs to q pairs of nodes that had an event, each other row to q pairs that had
    no event (negatives). Column k is predicted before the bar with index ``bar[k]`` of the chunk with index
    ``chunk[k]``; both are (q,) int64.
    """

    logits: Tensor
    chunk: Tensor
    bar: Tensor


@dataclass(frozen=True, eq=False)
class Forecast:
    """The output of a network for every bar and asset.

    σ is the asset's trailing volatility per bar, known at the bar. ``returns`` (b, l, n, h): log return over each
    horizon ÷ (σ √horizon). ``log_volatility`` (b, l, n): log(coming volatility per bar ÷ σ). ``logits`` (b, l, n, c) of
    the classes in models.features.labels.CLASS_NAMES. Values at bars whose mask is False have no meaning.

    The other fields are None unless an option of the network adds them:
    weights      (b, l, n), a portfolio in units of 1/σ
    regime       (b, l, n, 5), see regimes.py
    edges        (b, l, n, n), the learned graph: the weight of the edge from j to i at [i, j]; only in evaluation
    co_movement  (b, l, n, n), logits that two assets move in the same direction over the first horizon
    links        link logits; only in training, or in a network that is fitted to links alone
    """

    returns: Tensor
    log_volatility: Tensor
    logits: Tensor
    weights: Tensor | None = None
    regime: Tensor | None = None
    edges: Tensor | None = None
    co_movement: Tensor | None = None
    links: Links | None = None


class Embedding(nn.Module):
    """(b, l, n, f) → (b, l, n, d): a linear map of the features and the mask; missing bars have zeros as features."""

    def __init__(self, n_features: int, d_model: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.linear = nn.Linear(n_features + 1, d_model)

    def forward(self, batch: Batch) -> Tensor:
        """The embedded bars. Raises the errors of ``check_batch``."""
        check_batch(batch, self.n_features)
        mask = batch.mask[..., None]
        x = torch.where(mask, batch.x, 0.0)
        return self.linear(torch.cat([x, mask.to(x.dtype)], dim=-1))


def check_batch(batch: Batch, n_features: int) -> None:
    """Checks shapes, dtypes and values of ``x``, ``mask`` and ``gaps``; does nothing during an export.

    Raises ShapeError for inconsistent shapes or a mask that is not bool, DtypeError unless x is float32, and
    NotFiniteError for a feature of an existing bar that is NaN or infinite.
    """
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
    is_invalid = mask[..., None] & ~torch.isfinite(x)
    if is_invalid.any():
        chunk, bar, asset, feature = is_invalid.nonzero()[0].tolist()
        raise NotFiniteError(
            f"x is {x[chunk, bar, asset, feature]} at chunk {chunk}, bar {bar}, asset {asset}, feature {feature}, "
            "where the mask says there is a bar; set the mask to False there, or fill the feature"
        )


class Heads(nn.Module):
    """(b, l, n, d) → Forecast.

    The initial parameters forecast returns near 0, volatilities near σ and nearly equal class probabilities.
    ``assets``: the number of assets, each with a head of its own (S4-29); None: all assets share one head.
    ``weights``: "long_only" portfolio weights are positive and sum to 1 over the assets that have the bar;
    "long_short" weights have absolute values that sum to less than 1; None: no weights.
    ``regimes``: the forecast also contains the regime readout of the state.
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
        self.sizes = [n_horizons, 1, N_CLASSES] + [1] * (weights is not None)
        self.weights_kind = weights
        self.weight = nn.Parameter(torch.randn(assets or 1, sum(self.sizes), d_model) * 0.02)
        self.bias = nn.Parameter(torch.zeros(assets or 1, sum(self.sizes)))
        self.regimes = RegimeReadout(d_model) if regimes else None

    def undecayed(self) -> list[nn.Parameter]:
        """The parameters that AdamW must not decay, because 0 is no neutral value for them."""
        return [self.bias]

    def forward(self, h: Tensor, mask: Tensor) -> Forecast:
        """The forecast of every bar, from h (b, l, n, d) and ``mask`` (b, l, n). Raises ShapeError if the
        network has heads for another number of assets."""
        if len(self.weight) not in (1, h.shape[2]):
            raise ShapeError(
                f"this network has heads for {len(self.weight)} assets, the batch has {h.shape[2]}; fit it again"
            )
        y = (h.float()[..., None, :] @ self.weight.float().mT)[..., 0, :] + self.bias.float()
        returns, log_volatility, logits, *scores = y.split(self.sizes, dim=-1)
        portfolio_weights = None
        if self.weights_kind:
            (score,) = scores
            portfolio_weights = _portfolio_weights(score[..., 0], mask, self.weights_kind)
        regime = None if self.regimes is None else self.regimes(h)
        return Forecast(returns, log_volatility[..., 0], logits, portfolio_weights, regime)


def _portfolio_weights(score: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Portfolio weights (b, l, n) from scores (b, l, n), 0 where there is no bar; ``kind`` as in Heads."""
    if kind == "long_only":
        return torch.softmax(score.masked_fill(~mask, -torch.inf), dim=-1).nan_to_num()
    masked_score = torch.where(mask, score, 0.0)
    return masked_score / (masked_score.abs().sum(-1, keepdim=True) + SCORE_SUM_OFFSET)


class RegimeReadout(nn.Module):
    """(b, l, n, d) → (b, l, n, 5): a linear map of the state, into which it passes no gradient (S4-26)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, N_REGIME_OUTPUTS)

    def forward(self, h: Tensor) -> Tensor:
        """Trend score, three volatility logits and the momentum logit of every bar, see regimes.py."""
        return self.linear(h.detach()).float()
