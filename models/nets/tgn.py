"""A temporal graph network of a market: events up to every bar's close, then a forecast of every asset.

Paper and parts: temporal_graph.py. Nodes are those of models.graphs.market_events.market_nodes, once for each chunk.
At a bar the network inserts, in this order: the events since the last close, with the edges of a new graph snapshot;
then every asset's bar, an event from the market node with the bar's features. It then embeds the assets at the close,
with the bar's own features as node features v. All of this is known at the close, and targets begin after it.
A liquidation also becomes an event of each asset that its own asset has an edge to, in the graph of the last close
(TGN-24).

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
SHORTEST, LONGEST = 0.1, 1000.0  # in bars: the time encoding resolves elapsed times between the two
TYPES = len(NODE_TYPES)
LINKS_ONLY = {"return_weight": 0.0, "volatility_weight": 0.0, "class_weight": 0.0, "link_weight": 1.0}


class Tgn(nn.Module):
    """Batch → Forecast.

    Options: ``base``, a name of temporal_graph.PRESETS, and any of its Parts by name; ``together``: also forecasts
    which assets move the same way; ``links``: learns to predict the next events, see link_prediction.py: "jointly" with
    the forecasts, or "first", before them, by a network of the same fold that is fitted to links "alone".

    ``n_layers`` and ``d_state`` of the spec are not used: the layers are one of the Parts. State: the memories; the
    neighbour buffers; and each chunk's clock in bars (b,) with the edges of its last snapshot (b, n, n). A market
    without events and without new edges has no links to learn; its forecasts are learned without them.
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
        d = spec.d_model
        self.embedding = Embedding(n_features, d)
        event_features = n_features + len(FEATURES) + len(EVENT_KINDS)
        sizes = Sizes(d, event_features, d + d % 2, SHORTEST, LONGEST, spec.dropout)
        self.graph = CompiledTemporalGraph(preset(base, **parts), sizes)
        self.dropout = Dropout(spec.dropout)
        self.norm = nn.LayerNorm(d)
        self.heads = Heads(d, n_horizons)
        self.pairs = nn.Linear(d, d) if together else None
        self.link_learning = links
        self.links = MarketLinks(sizes) if links in ("jointly", "alone") else None

    @property
    def pretraining(self) -> PretrainingPhase | None:
        """How the network's link part is fitted first; None for a network that is fitted in one phase."""
        return PretrainingPhase({"links": "alone"}, LINKS_ONLY) if self.link_learning == "first" else None

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Loads the graph part from the weights of a network that was fitted to links alone. Raises StateError."""
        load_pretrained({"graph": self.graph}, weights, "links")

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar."""
        memory, buffer = self.graph.initial_state(b * _nodes(n))
        clock = memory.updated.new_zeros(b)
        return memory, buffer, (clock, self.norm.weight.new_zeros(b, n, n))

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises ShapeError, DtypeError, NotFiniteError."""
        b, bars, n, _ = batch.x.shape
        if self.link_learning == "alone" and batch.graph is None and batch.events is None:
            raise ShapeError(
                "there are no links to learn: the batch has neither events nor a graph; give it one of them"
            )
        node_features = self.embedding(batch)
        queries = None
        if self.links is not None and (self.training or self.link_learning == "alone"):
            queries = LinkQueries(self.links, b, n, node_features)
        forecast, _ = self._run(batch, node_features, self.initial_state(b, n), bars, queries)
        return forecast if queries is None else replace(forecast, links=queries.links())

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it."""
        graph = copied((Memory(*state[0]), NeighbourBuffer(*state[1])))
        return self._run(batch, self.embedding(batch), (*graph, state[2]), 1)

    def _run(
        self, batch: Batch, node_features: Tensor, state: State, bars: int, queries: LinkQueries | None = None
    ) -> tuple[Forecast, State]:
        """The forecasts and the state after the bars, which overwrites ``state``; ``queries`` collects link logits."""
        b, _, n, _ = batch.x.shape
        memory, buffer, (clock, edges) = state
        graph = Memory(*memory), NeighbourBuffer(*buffer)
        assets = _assets(b, n, node_features.device)
        edges_by_bar = _edges_in_force(batch)
        embeddings = []
        with torch.autocast(node_features.device.type, enabled=False):
            node_features = node_features.float()
            for t in range(bars):
                last_close = clock
                clock = clock + batch.gaps[:, t]
                new_edges = edges_by_bar[:, t] if edges_by_bar is not None else edges
                events = self._events_since_close(batch, t, clock, edges, new_edges)
                if queries is not None:
                    queries.ask_at_close(self.graph, graph, last_close, events, batch.mask[:, t])
                for inserted in (events, self._bar_events(batch, t, clock)):
                    graph = self.graph.insert(graph, inserted, in_place=True)
                edges = new_edges
                t_close = clock.repeat_interleave(n)
                embeddings.append(self.graph.embed(graph, assets, t_close, node_features[:, t].flatten(0, 1)))
        z = torch.stack(embeddings).view(bars, b, n, -1).transpose(0, 1)
        h = self.norm(node_features + self.dropout(z))
        forecast = self.heads(h, batch.mask)
        if self.pairs is not None:
            p = self.pairs(h)
            forecast = replace(forecast, together=p @ p.mT / p.shape[-1] ** 0.5)
        return forecast, (*graph, (clock, edges))

    def _events_since_close(self, batch: Batch, t: int, clock: Tensor, edges: Tensor, new_edges: Tensor) -> EventBatch:
        """The events between the last close and that of bar t, and the ``new_edges`` (b, n, n) of the chunks in which
        they differ from ``edges``."""
        n = new_edges.shape[1]
        is_changed = (new_edges != edges).flatten(1).any(1)
        chunk, dst, src = (new_edges * is_changed[:, None, None]).nonzero().unbind(1)
        features = new_edges.new_zeros(len(chunk), self.graph.sizes.n_features)
        features[:, self.embedding.n_features + COLUMN["weight"]] = new_edges[chunk, dst, src]
        features[:, EVENT_KINDS.index("correlation") - len(EVENT_KINDS)] = 1.0
        first_node = chunk * _nodes(n)
        edge_events = EventBatch(first_node + src, first_node + dst, clock[chunk], features)
        if batch.events is None:
            return edge_events
        events = _spread_liquidations(self._market_events(batch.events, t, clock, n), edges)
        return EventBatch(*(torch.cat(columns) for columns in zip(events, edge_events, strict=True)))

    def _market_events(self, events: EventSteps, t: int, clock: Tensor, n: int) -> EventBatch:
        """The batch's events of bar t. Raises ShapeError for events with other features than market events."""
        if events.features.shape[1] != len(FEATURES):
            raise ShapeError(
                f"the events have {events.features.shape[1]} features; build them with models.graphs.market_events, "
                f"which gives {len(FEATURES)}"
            )
        start, stop = events.spans[:, t].unbind(1)
        size = stop - start
        chunk = torch.repeat_interleave(torch.arange(len(size), device=size.device), size)
        index = torch.arange(len(chunk), device=size.device) + (stop - size.cumsum(0))[chunk]
        kinds = one_hot(events.kind[index], len(EVENT_KINDS)).float()
        no_bar = kinds.new_zeros(len(index), self.embedding.n_features)
        first_node = chunk * _nodes(n)
        features = torch.cat([no_bar, events.features[index], kinds], dim=1)
        # a chunk's first bar may follow a longer pause than its gap, so times are cut off at the chunk's start
        event_t = (clock[chunk] - events.age[index]).clamp(min=0)
        return EventBatch(first_node + events.src[index], first_node + events.dst[index], event_t, features)

    def _bar_events(self, batch: Batch, t: int, clock: Tensor) -> EventBatch:
        """An event market → asset with the bar's features for every asset that has the bar."""
        n = batch.mask.shape[2]
        chunk, asset = batch.mask[:, t].nonzero().unbind(1)
        x = batch.x[:, t][chunk, asset]
        features = x.new_zeros(len(x), self.graph.sizes.n_features)
        features[:, : x.shape[1]] = x
        features[:, EVENT_KINDS.index("bar") - len(EVENT_KINDS)] = 1.0
        first_node = chunk * _nodes(n)
        market = first_node + TYPES * n + EXTERNAL.index("external:market")
        return EventBatch(market, first_node + asset, clock[chunk], features)


def _spread_liquidations(events: EventBatch, edges: Tensor) -> EventBatch:
    """The events, and each liquidation again to every asset that its own asset has an edge (b, n, n) to, with the
    edge's weight among its features."""
    is_liquidation = events.features[:, EVENT_KINDS.index("liquidation") - len(EVENT_KINDS)] > 0
    liquidations = is_liquidation.nonzero()[:, 0]
    if not len(liquidations):
        return events
    nodes = _nodes(edges.shape[1])
    chunk = events.dst[liquidations] // nodes
    asset = events.dst[liquidations] % nodes
    index, neighbour = edges[chunk, :, asset].nonzero().unbind(1)
    spread = EventBatch(*(column[liquidations[index]] for column in events))
    weight_column = COLUMN["weight"] - len(FEATURES) - len(EVENT_KINDS)
    spread.features[:, weight_column] = edges[chunk[index], neighbour, asset[index]]
    spread = spread._replace(dst=chunk[index] * nodes + neighbour)
    return EventBatch(*(torch.cat(columns) for columns in zip(events, spread, strict=True)))


def _nodes(n: int) -> int:
    """N, the number of nodes of a market of n assets."""
    return TYPES * n + len(EXTERNAL)


def _assets(b: int, n: int, device: torch.device) -> Tensor:
    """Positions (b · n,) of the assets among the nodes of all chunks."""
    return (torch.arange(b, device=device)[:, None] * _nodes(n) + torch.arange(n, device=device)).flatten()


def _edges_in_force(batch: Batch) -> Tensor | None:
    """Weights (b, l, n, n) of the edges from j to i of each bar's snapshot, without loops; 0 before the first."""
    if batch.graph is None:
        return None
    adjacency = batch.graph.adjacency
    no_edges = adjacency.new_zeros(1, *adjacency.shape[1:])
    loops = torch.eye(adjacency.shape[1], dtype=torch.bool, device=adjacency.device)
    return torch.cat([no_edges, adjacency.masked_fill(loops, 0.0)])[batch.graph.step + 1]
