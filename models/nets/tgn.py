"""A temporal graph network of a market: events up to every bar's close, then a forecast of every asset.

Paper and parts: temporal_graph.py. Nodes are those of models.graphs.market_events.market_nodes, once for each chunk.
What happens at a bar, in this order: the events since the last close and the edges of a new graph snapshot; every
asset's bar, an event from the market with the bar's features; then the embeddings of the assets at the close, to which
the bar's own features are given as v. All three are known at the close, and targets begin after it.
A liquidation is heard by the assets that its own has an edge to, too (TGN-24), by the graph of the last close.

Glossary: b chunks · l bars · n assets · N nodes of a chunk · f features of a bar · d channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from models.graphs.events import EVENT_KINDS
from models.graphs.market_events import COLUMN, EXTERNAL, FEATURES, NODE_TYPES
from models.layers.checks import check_choice
from models.layers.dropout import Dropout
from models.layers.errors import ShapeError
from models.layers.memory import Memory
from models.layers.neighbours import NeighbourBuffer
from models.nets.event_batch import EventBatch
from models.nets.forecast import Batch, Embedding, EventSteps, Forecast, Heads
from models.nets.link_prediction import LinkQueries, MarketLinks
from models.nets.pretraining import PretrainingPhase, load_pretrained
from models.nets.spec import Spec
from models.nets.temporal_graph import Sizes, copied, preset
from models.nets.temporal_graph_cpu import CompiledTemporalGraph

State = tuple[tuple[Tensor, ...], ...]
SHORTEST, LONGEST = 0.1, 1000.0  # bars between which elapsed times matter
TYPES = len(NODE_TYPES)
LINKS_ONLY = {"return_weight": 0.0, "volatility_weight": 0.0, "class_weight": 0.0, "link_weight": 1.0}


class Tgn(nn.Module):
    """Batch → Forecast. Options: ``base``, a name of temporal_graph.PRESETS, and any of its Parts by name;
    ``together``: also says which assets move the same way. ``links``: which events come next is learned, see
    market_links.py, "jointly" with the forecasts, or "first", before them and without them, by a network that is fitted
    "alone" on the same fold.

    ``n_layers`` and ``d_state`` of the spec are not used: the layers are a part. State: the memories, the rings, and
    each chunk's clock in bars (b,) with the edges last heard of (b, n, n). A market without events and new edges has no
    links to learn; forecasts are learned without.
    """

    def __init__(
        self,
        spec: Spec,
        n_features: int,
        n_horizons: int,
        base: str = "tgn",
        together: bool = False,
        links: str | None = None,
        **parts: Any,
    ) -> None:
        super().__init__()
        check_choice("links", links or "jointly", ("jointly", "first", "alone"))
        d, said = spec.d_model, n_features + len(FEATURES) + len(EVENT_KINDS)
        self.embedding = Embedding(n_features, d)
        sizes = Sizes(d, said, d + d % 2, SHORTEST, LONGEST, spec.dropout)
        self.graph = CompiledTemporalGraph(preset(base, **parts), sizes)
        self.dropout, self.norm = Dropout(spec.dropout), nn.LayerNorm(d)
        self.heads = Heads(d, n_horizons)
        self.pairs = nn.Linear(d, d) if together else None
        self.learns = links
        self.links = MarketLinks(sizes) if links in ("jointly", "alone") else None

    @property
    def pretraining(self) -> PretrainingPhase | None:
        """How links are learned before all else; None for a network that is fitted in one go."""
        return PretrainingPhase({"links": "alone"}, LINKS_ONLY) if self.learns == "first" else None

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over what a network fitted to links alone remembers by, of its weights. Raises StateError."""
        load_pretrained({"graph": self.graph}, weights, "links")

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        memory, ring = self.graph.initial_state(b * _nodes(n))
        clock = memory.updated.new_zeros(b)
        return memory, ring, (clock, self.norm.weight.new_zeros(b, n, n))

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises ShapeError, DtypeError, NotFiniteError."""
        b, bars, n, _ = batch.x.shape
        if self.learns == "alone" and batch.graph is None and batch.events is None:
            raise ShapeError(
                "there are no links to learn: the batch has neither events nor a graph; give it one of them"
            )
        own, asking = self.embedding(batch), None
        if self.links is not None and (self.training or self.learns == "alone"):
            asking = LinkQueries(self.links, b, n, own)
        forecast, _ = self._run(batch, own, self.initial_state(b, n), bars, asking)
        return forecast if asking is None else replace(forecast, links=asking.said())

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it."""
        graph = copied((Memory(*state[0]), NeighbourBuffer(*state[1])))
        return self._run(batch, self.embedding(batch), (*graph, state[2]), 1)

    def _run(
        self, batch: Batch, own: Tensor, state: State, bars: int, asking: LinkQueries | None = None
    ) -> tuple[Forecast, State]:
        """The forecasts, and the state that they leave, written over the one given; ``asking`` of events to come."""
        b, _, n, _ = batch.x.shape
        memory, ring, (clock, edges) = state
        graph, assets = (Memory(*memory), NeighbourBuffer(*ring)), _assets(b, n, own.device)
        bar_edges, seen = _edges_in_force(batch), []
        with torch.autocast(own.device.type, enabled=False):
            own = own.float()
            for t in range(bars):
                closed, clock = clock, clock + batch.gaps[:, t]
                now = bar_edges[:, t] if bar_edges is not None else edges
                coming = self._between(batch, t, clock, edges, now)
                if asking is not None:
                    asking.bar(self.graph, graph, closed, coming, batch.mask[:, t])
                for contacts in (coming, self._bars(batch, t, clock)):
                    graph = self.graph.insert(graph, contacts, in_place=True)
                edges = now
                seen.append(self.graph.embed(graph, assets, clock.repeat_interleave(n), own[:, t].flatten(0, 1)))
        z = torch.stack(seen).view(bars, b, n, -1).transpose(0, 1)
        h = self.norm(own + self.dropout(z))
        forecast = self.heads(h, batch.mask)
        if self.pairs is not None:
            p = self.pairs(h)
            forecast = replace(forecast, together=p @ p.mT / p.shape[-1] ** 0.5)
        return forecast, (*graph, (clock, edges))

    def _between(self, batch: Batch, t: int, clock: Tensor, before: Tensor, now: Tensor) -> EventBatch:
        """The events since the last close, and the edges (b, n, n) of chunks whose graph is another than ``before``."""
        n = now.shape[1]
        changed = (now != before).flatten(1).any(1)
        chunk, dst, src = (now * changed[:, None, None]).nonzero().unbind(1)
        said = now.new_zeros(len(chunk), self.graph.sizes.n_features)
        said[:, self.embedding.n_features + COLUMN["weight"]] = now[chunk, dst, src]
        said[:, EVENT_KINDS.index("correlation") - len(EVENT_KINDS)] = 1.0
        first = chunk * _nodes(n)
        edges = EventBatch(first + src, first + dst, clock[chunk], said)
        if batch.events is None:
            return edges
        events = _heard_around(self._given(batch.events, t, clock, n), before)
        return EventBatch(*(torch.cat(parts) for parts in zip(events, edges, strict=True)))

    def _given(self, events: EventSteps, t: int, clock: Tensor, n: int) -> EventBatch:
        """The batch's own events of bar t."""
        if events.features.shape[1] != len(FEATURES):
            raise ShapeError(
                f"the events have {events.features.shape[1]} features; build them with models.graphs.market_events, "
                f"which gives {len(FEATURES)}"
            )
        start, stop = events.spans[:, t].unbind(1)
        size = stop - start
        chunk = torch.repeat_interleave(torch.arange(len(size), device=size.device), size)
        at = torch.arange(len(chunk), device=size.device) + (stop - size.cumsum(0))[chunk]
        kinds = one_hot(events.kind[at], len(EVENT_KINDS)).float()
        bar = kinds.new_zeros(len(at), self.embedding.n_features)
        first = chunk * _nodes(n)
        said = torch.cat([bar, events.features[at], kinds], dim=1)
        # a chunk's first bar may follow a longer pause than its gap says: nothing is older than the chunk
        when = (clock[chunk] - events.age[at]).clamp(min=0)
        return EventBatch(first + events.src[at], first + events.dst[at], when, said)

    def _bars(self, batch: Batch, t: int, clock: Tensor) -> EventBatch:
        """market → asset, with the bar's features, for every asset that has the bar."""
        n = batch.mask.shape[2]
        chunk, asset = batch.mask[:, t].nonzero().unbind(1)
        x = batch.x[:, t][chunk, asset]
        said = x.new_zeros(len(x), self.graph.sizes.n_features)
        said[:, : x.shape[1]] = x
        said[:, EVENT_KINDS.index("bar") - len(EVENT_KINDS)] = 1.0
        first = chunk * _nodes(n)
        market = first + TYPES * n + EXTERNAL.index("external:market")
        return EventBatch(market, first + asset, clock[chunk], said)


def _heard_around(events: EventBatch, edges: Tensor) -> EventBatch:
    """The events, each liquidation also from its node to the assets that its own has edges (b, n, n) to; their weight
    is said with it."""
    liquidated = (events.features[:, EVENT_KINDS.index("liquidation") - len(EVENT_KINDS)] > 0).nonzero()[:, 0]
    if not len(liquidated):
        return events
    nodes = _nodes(edges.shape[1])
    chunk, asset = events.dst[liquidated] // nodes, events.dst[liquidated] % nodes
    which, other = edges[chunk, :, asset].nonzero().unbind(1)
    more = EventBatch(*(column[liquidated[which]] for column in events))
    more.features[:, COLUMN["weight"] - len(FEATURES) - len(EVENT_KINDS)] = edges[chunk[which], other, asset[which]]
    more = more._replace(dst=chunk[which] * nodes + other)
    return EventBatch(*(torch.cat(parts) for parts in zip(events, more, strict=True)))


def _nodes(n: int) -> int:
    """N: how many nodes a market of n assets has."""
    return TYPES * n + len(EXTERNAL)


def _assets(b: int, n: int, device: torch.device) -> Tensor:
    """Positions (b · n,) of the assets among the nodes of all chunks."""
    return (torch.arange(b, device=device)[:, None] * _nodes(n) + torch.arange(n, device=device)).flatten()


def _edges_in_force(batch: Batch) -> Tensor | None:
    """Weights (b, l, n, n) of the edges from j to i of the snapshots in force, no loops, 0 before the first."""
    if batch.graph is None:
        return None
    adjacency = batch.graph.adjacency
    nothing = adjacency.new_zeros(1, *adjacency.shape[1:])
    loops = torch.eye(adjacency.shape[1], dtype=torch.bool, device=adjacency.device)
    return torch.cat([nothing, adjacency.masked_fill(loops, 0.0)])[batch.graph.step + 1]
