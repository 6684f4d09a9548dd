"""A temporal graph network of a market: it reads the events up to every bar's close, and forecasts every asset.

temporal_graph.py has the paper and the parts. Every chunk has its own copy of the nodes of
models.graphs.market_events.market_nodes. At every bar the network takes these steps:
1. It inserts the events since the last close. If a new graph snapshot takes effect at the bar, its edges are events
   too. A liquidation is also an event of each asset that its own asset has an edge to, in the graph of the last close
   (TGN-24; ids: .github/sources.md).
2. It inserts an event from the market node to every asset that has the bar, with the features of the bar.
3. It embeds the assets at the close, with the embedded features of the bar as node features.
All of this is known at the close, and the targets begin after it.

Glossary: b chunks · l bars · n assets · N nodes of a chunk · e events · f features of a bar · d channels · z embedding.
Times are in bars since the start of the chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from models.graphs.events import EVENT_KINDS
from models.graphs.market_events import EXTERNAL_NODES, FEATURE_COLUMN, FEATURES, NODE_TYPES
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
from models.nets.temporal_graph import Sizes, copy_state, preset
from models.nets.temporal_graph_cpu import CompiledTemporalGraph

State = tuple[tuple[Tensor, ...], ...]
# the time encoding resolves elapsed times between these two bounds
SHORTEST_BARS = 0.1
LONGEST_BARS = 1000.0
N_NODE_TYPES = len(NODE_TYPES)
# fields of TrainConfig with which a network learns to predict links and nothing else
LINKS_ONLY_SETTINGS = {"return_weight": 0.0, "volatility_weight": 0.0, "class_weight": 0.0, "link_weight": 1.0}


class Tgn(nn.Module):
    """Batch → Forecast.

    Options: ``base``, a name of temporal_graph.PRESETS, whose Parts other options replace by name. ``together``: True
    if the network also forecasts which assets move in the same direction. ``links``: how the network learns to predict
    the next events, see link_prediction.py; None if it does not learn them:
    "jointly"  together with the forecasts
    "first"    before the forecasts, in a pretraining phase
    "alone"    without forecasts: the network of that pretraining phase
    A market without events and without new edges has no links to learn, and its forecasts are learned without them.

    ``n_layers`` and ``d_state`` of the spec are ignored. State, in three parts: the tensors of the Memory; the tensors
    of the NeighbourBuffer; the clock (b,), which is the last close in bars, with the edges (b, n, n) in effect at that
    close.
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
        n_event_features = n_features + len(FEATURES) + len(EVENT_KINDS)
        sizes = Sizes(d, n_event_features, d + d % 2, SHORTEST_BARS, LONGEST_BARS, spec.dropout)
        self.graph = CompiledTemporalGraph(preset(base, **parts), sizes)
        self.dropout = Dropout(spec.dropout)
        self.norm = nn.LayerNorm(d)
        self.heads = Heads(d, n_horizons)
        self.pairs = nn.Linear(d, d) if together else None
        self.link_learning = links
        self.links = MarketLinks(sizes) if links in ("jointly", "alone") else None

    @property
    def pretraining(self) -> PretrainingPhase | None:
        """How the graph part is pretrained on links; None for a network without pretraining."""
        return PretrainingPhase({"links": "alone"}, LINKS_ONLY_SETTINGS) if self.link_learning == "first" else None

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Loads the graph part from the weights of a network that was fitted to links alone. Raises StateError for a
        missing weight or another shape."""
        load_pretrained({"graph": self.graph}, weights, "links")

    def initial_state(self, b: int, n: int) -> State:
        """The state of n assets in b chunks before the first bar: no events, no edges, a clock of 0."""
        memory, buffer = self.graph.initial_state(b * _n_nodes(n))
        clock = memory.updated.new_zeros(b)
        return memory, buffer, (clock, self.norm.weight.new_zeros(b, n, n))

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar. Raises ShapeError, DtypeError or NotFiniteError for an invalid batch."""
        b, _, n, _ = batch.x.shape
        if self.link_learning == "alone" and batch.graph is None and batch.events is None:
            raise ShapeError(
                "there are no links to learn: the batch has neither events nor a graph; give it one of them"
            )
        node_features = self.embedding(batch)
        queries = None
        if self.links is not None and (self.training or self.link_learning == "alone"):
            queries = LinkQueries(self.links, b, n, node_features)
        forecast, _ = self._run(batch, node_features, self.initial_state(b, n), queries)
        return forecast if queries is None else replace(forecast, links=queries.collected_links())

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it; ``state`` does not change."""
        memory, buffer, clock_and_edges = state
        memory, buffer = copy_state((Memory(*memory), NeighbourBuffer(*buffer)))
        return self._run(batch, self.embedding(batch), (memory, buffer, clock_and_edges))

    def _run(
        self, batch: Batch, node_features: Tensor, state: State, queries: LinkQueries | None = None
    ) -> tuple[Forecast, State]:
        """The forecasts of all bars of the batch, and the state after them.

        ``node_features`` (b, l, n, d). The tensors of ``state`` are overwritten. ``queries`` collects link logits.
        """
        b, n_bars, n, _ = batch.x.shape
        memory, buffer, (clock, edges) = state
        graph_state = Memory(*memory), NeighbourBuffer(*buffer)
        assets = _asset_nodes(b, n, node_features.device)
        edges_by_bar = _edges_in_effect(batch)
        embeddings = []
        with torch.autocast(node_features.device.type, enabled=False):
            node_features = node_features.float()
            for bar in range(n_bars):
                last_close = clock
                clock = clock + batch.gaps[:, bar]
                new_edges = edges_by_bar[:, bar] if edges_by_bar is not None else edges
                events = self._events_since_close(batch, bar, clock, edges, new_edges)
                if queries is not None:
                    queries.score_at_close(self.graph, graph_state, last_close, events, batch.mask[:, bar])
                graph_state = self.graph.insert(graph_state, events, in_place=True)
                graph_state = self.graph.insert(graph_state, self._bar_events(batch, bar, clock), in_place=True)
                edges = new_edges
                close = clock.repeat_interleave(n)
                embeddings.append(self.graph.embed(graph_state, assets, close, node_features[:, bar].flatten(0, 1)))
        z = torch.stack(embeddings).view(n_bars, b, n, -1).transpose(0, 1)
        h = self.norm(node_features + self.dropout(z))
        forecast = self.heads(h, batch.mask)
        if self.pairs is not None:
            p = self.pairs(h)
            forecast = replace(forecast, co_movement=p @ p.mT / p.shape[-1] ** 0.5)
        return forecast, (*graph_state, (clock, edges))

    def _events_since_close(
        self, batch: Batch, bar: int, clock: Tensor, edges: Tensor, new_edges: Tensor
    ) -> EventBatch:
        """The events after the last close up to the close of the bar at ``clock`` (b,).

        They include all ``new_edges`` (b, n, n) of a chunk where these differ from ``edges``, the edges of the last
        close.
        """
        n = new_edges.shape[1]
        is_changed = (new_edges != edges).flatten(1).any(1)
        chunk, dst, src = (new_edges * is_changed[:, None, None]).nonzero().unbind(1)
        features = new_edges.new_zeros(len(chunk), self.graph.sizes.n_features)
        features[:, self.embedding.n_features + FEATURE_COLUMN["weight"]] = new_edges[chunk, dst, src]
        features[:, EVENT_KINDS.index("correlation") - len(EVENT_KINDS)] = 1.0
        first_node = chunk * _n_nodes(n)
        edge_events = EventBatch(first_node + src, first_node + dst, clock[chunk], features)
        if batch.events is None:
            return edge_events
        events = _spread_liquidations(self._market_events(batch.events, bar, clock, n), edges)
        return EventBatch(*(torch.cat(columns) for columns in zip(events, edge_events, strict=True)))

    def _market_events(self, events: EventSteps, bar: int, clock: Tensor, n: int) -> EventBatch:
        """The events of the bar that closes at ``clock`` (b,), among the nodes of all chunks. Raises ShapeError for
        events with another number of features than market events."""
        if events.features.shape[1] != len(FEATURES):
            raise ShapeError(
                f"the events have {events.features.shape[1]} features; build them with models.graphs.market_events, "
                f"which gives {len(FEATURES)}"
            )
        start, stop = events.event_ranges[:, bar].unbind(1)
        n_events = stop - start
        chunk = torch.repeat_interleave(torch.arange(len(n_events), device=n_events.device), n_events)
        index = torch.arange(len(chunk), device=n_events.device) + (stop - n_events.cumsum(0))[chunk]
        kinds = one_hot(events.kind[index], len(EVENT_KINDS)).float()
        bar_features = kinds.new_zeros(len(index), self.embedding.n_features)
        first_node = chunk * _n_nodes(n)
        features = torch.cat([bar_features, events.features[index], kinds], dim=1)
        # events before the start of the chunk get its time 0: its first bar may follow a longer pause than its gap
        event_t = (clock[chunk] - events.age_in_bars[index]).clamp(min=0)
        return EventBatch(first_node + events.src[index], first_node + events.dst[index], event_t, features)

    def _bar_events(self, batch: Batch, bar: int, clock: Tensor) -> EventBatch:
        """One event market → asset with the bar's features at its close ``clock`` (b,), for every asset that has the
        bar."""
        n = batch.mask.shape[2]
        chunk, asset = batch.mask[:, bar].nonzero().unbind(1)
        x = batch.x[:, bar][chunk, asset]
        features = x.new_zeros(len(x), self.graph.sizes.n_features)
        features[:, : x.shape[1]] = x
        features[:, EVENT_KINDS.index("bar") - len(EVENT_KINDS)] = 1.0
        first_node = chunk * _n_nodes(n)
        market = first_node + N_NODE_TYPES * n + EXTERNAL_NODES.index("external:market")
        return EventBatch(market, first_node + asset, clock[chunk], features)


def _spread_liquidations(events: EventBatch, edges: Tensor) -> EventBatch:
    """The events, followed by a copy of each liquidation for every asset that its own asset has an edge to.

    ``edges`` (b, n, n): weight of the edge from j to i at [i, j]. A copy has the weight as its feature ``weight``.
    """
    is_liquidation = events.features[:, EVENT_KINDS.index("liquidation") - len(EVENT_KINDS)] > 0
    liquidations = is_liquidation.nonzero()[:, 0]
    if not len(liquidations):
        return events
    nodes_per_chunk = _n_nodes(edges.shape[1])
    chunk = events.dst[liquidations] // nodes_per_chunk
    asset = events.dst[liquidations] % nodes_per_chunk
    index, neighbour = edges[chunk, :, asset].nonzero().unbind(1)
    copies = EventBatch(*(column[liquidations[index]] for column in events))
    weight_column = FEATURE_COLUMN["weight"] - len(FEATURES) - len(EVENT_KINDS)
    copies.features[:, weight_column] = edges[chunk[index], neighbour, asset[index]]
    copies = copies._replace(dst=chunk[index] * nodes_per_chunk + neighbour)
    return EventBatch(*(torch.cat(columns) for columns in zip(events, copies, strict=True)))


def _n_nodes(n: int) -> int:
    """N, the number of nodes of a market of n assets."""
    return N_NODE_TYPES * n + len(EXTERNAL_NODES)


def _asset_nodes(b: int, n: int, device: torch.device) -> Tensor:
    """Positions (b · n,) of the assets among the nodes of all chunks."""
    return (torch.arange(b, device=device)[:, None] * _n_nodes(n) + torch.arange(n, device=device)).flatten()


def _edges_in_effect(batch: Batch) -> Tensor | None:
    """Weights (b, l, n, n) of the edges at every bar, from j to i at [i, j], without self loops; 0 before the first
    snapshot. None for a batch without a graph."""
    if batch.graph is None:
        return None
    adjacency = batch.graph.adjacency
    no_edges = adjacency.new_zeros(1, *adjacency.shape[1:])
    loops = torch.eye(adjacency.shape[1], dtype=torch.bool, device=adjacency.device)
    return torch.cat([no_edges, adjacency.masked_fill(loops, 0.0)])[batch.graph.snapshot_index + 1]
