"""Which events does a market receive before its next close? Link prediction inside a network (TGN-21 to TGN-23).

The targets are the events themselves: no labels are needed. At every close, before later events are inserted, the
network scores each pair of nodes that has an event before the next close against negatives, pairs that have none.
Most events of a market run from a node to its own asset. Against an impossible pair such as trade:BTC → asset:ETH the
score of trade:BTC → asset:BTC would be trivial, so pairs are sorted into rows of comparable pairs, one pair for each
asset a, and the negatives of a pair come from its row:
own         type:a → asset:a: which asset is traded, liquidated, settled next?
outside     one external node → asset:a: which asset's open interest is reported next?
between     one node → asset:a of another node: which asset does an edge or a liquidation of this node reach?
The negatives of a pair, by the strategies of models.graphs.negatives; all are of its row and chunk and have a bar:
random      any pair without an event before the next close
historical  a random one that had an event before
inductive   a historical one that had no event in the first half of the bars so far
temporal    a random one whose asset was a destination in the last bar that had events
Where no pair qualifies, a random one takes its place. A row in which all pairs have events is left out.

Glossary: b chunks · n assets · N nodes of a chunk · r rows · q pairs with an event · c candidates: the pair itself and
a negative of each strategy · d channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.graphs.market_events import EXTERNAL, NODE_TYPES
from models.graphs.negatives import STRATEGIES
from models.layers.dropout import RandomModule
from models.nets.event_batch import EventBatch
from models.nets.forecast import Links
from models.nets.link import PAIR_FEATURES, pair_decoder, pair_history_features
from models.nets.temporal_graph import Sizes, State, TemporalGraph

TYPES = len(NODE_TYPES)
OUTSIDE = len(EXTERNAL)
SINGLE = TYPES + OUTSIDE  # number of own and outside rows, which come before the rows between


class Pairs(NamedTuple):
    """Candidate pairs: ``chunk`` (q,); ``src``, ``dst`` (c, q), positions among the nodes of the chunk. Row 0 holds the
    pairs that have an event, the other rows their negatives."""

    chunk: Tensor
    src: Tensor
    dst: Tensor


class PairHistory(NamedTuple):
    """Past events of all pairs: ``first`` (b, r, n), the bar of each pair's first event, infinite for none;
    ``recent_destinations`` (b, n), True for destinations in the last bar with events; ``bar``, the number of bars."""

    first: Tensor
    recent_destinations: Tensor
    bar: int

    @classmethod
    def empty(cls, b: int, n: int, like: Tensor) -> PairHistory:
        """The history before the first bar, on the device of ``like``."""
        # float32 even where ``like`` is half precision, which represents whole numbers only up to 256
        first = torch.full((b, SINGLE + TYPES * n, n), torch.inf, device=like.device)
        return cls(first, torch.zeros(b, n, dtype=torch.bool, device=like.device), 0)

    def after(self, has_event: Tensor) -> PairHistory:
        """The history one bar later, given which pairs had an event in the bar, ``has_event`` (b, r, n)."""
        destinations = has_event.any(1)
        first = self.first.masked_fill(has_event & self.first.isinf(), self.bar)
        recent = torch.where(destinations.any(1, keepdim=True), destinations, self.recent_destinations)
        return PairHistory(first, recent, self.bar + 1)


class MarketLinks(RandomModule):
    """A decoder of pairs, and the sampling of their negatives: new ones in training, the same ones in evaluation."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.longest = sizes.longest
        self.decode = pair_decoder(2 * sizes.d + PAIR_FEATURES + SINGLE, sizes.d, sizes.dropout)

    def forward(self, graph: TemporalGraph, state: State, clock: Tensor, pairs: Pairs) -> Tensor:
        """Logits (c, q) that the pairs have an event next, from the events up to the last closes ``clock`` (b,)."""
        nodes = len(state[0].event_count) // len(clock)
        ends = torch.stack([pairs.src, pairs.dst])
        unique_nodes, index = torch.unique(pairs.chunk * nodes + ends, return_inverse=True)
        z = graph.embed(state, unique_nodes, clock[unique_nodes // nodes])
        t = clock[pairs.chunk].expand_as(pairs.src).flatten()
        u, v = unique_nodes[index].flatten(1)
        history = pair_history_features(state, u, v, t, self.longest)
        features = torch.cat([*z[index.flatten(1)], history, _source_type(pairs.src.flatten(), nodes)], dim=1)
        return self.decode(features).view(pairs.src.shape)

    def sample_pairs(
        self, has_event: Tensor, history: PairHistory, asset_mask: Tensor, generator: torch.Generator
    ) -> Pairs:
        """The pairs that have an event, ``has_event`` (b, r, n), with negatives among the assets of ``asset_mask``
        (b, n)."""
        n = asset_mask.shape[1]
        negative = ~has_event & asset_mask[:, None] & _possible_pairs(n, asset_mask.device)
        has_history = history.first < history.bar
        eligible = {
            "random": negative,
            "historical": negative & has_history,
            "inductive": negative & has_history & (history.first >= history.bar / 2),
            "temporal": negative & history.recent_destinations[:, None],
        }
        chunk, row, asset = (has_event & negative.any(2, keepdim=True)).nonzero().unbind(1)
        candidates = [asset]
        for strategy in STRATEGIES:
            pool = eligible[strategy][chunk, row]
            pool = torch.where(pool.any(1, keepdim=True), pool, negative[chunk, row])
            priority = torch.rand(pool.shape, generator=generator, device=asset_mask.device)
            candidates.append(priority.masked_fill(~pool, -1.0).argmax(1))
        dst = torch.stack(candidates)
        return Pairs(chunk, _source(row, dst, n), dst)


class LinkQueries:
    """The pairs scored in one pass over ``b`` chunks of n assets, bar by bar, and their logits."""

    def __init__(self, links: MarketLinks, b: int, n: int, like: Tensor) -> None:
        self._links = links
        self._history = PairHistory.empty(b, n, like)
        self._generator = (
            links.generator(like.device) if links.training else torch.Generator(like.device).manual_seed(0)
        )
        self._logits: list[Tensor] = []
        self._chunk_and_bar: list[Tensor] = []

    def ask_at_close(
        self, graph: TemporalGraph, state: State, clock: Tensor, next_events: EventBatch, asset_mask: Tensor
    ) -> None:
        """Scores the pairs of ``next_events`` and their negatives from ``state``, which holds the events up to the last
        closes ``clock`` (b,). The first call only records its events: before the first bar the state is empty.
        ``asset_mask`` (b, n): which assets have the next bar."""
        has_event = positive_pairs(next_events, *asset_mask.shape)
        if self._history.bar:
            pairs = self._links.sample_pairs(has_event, self._history, asset_mask, self._generator)
            if len(pairs.chunk):
                self._logits.append(self._links(graph, state, clock, pairs))
                bar = torch.full_like(pairs.chunk, self._history.bar)
                self._chunk_and_bar.append(torch.stack([pairs.chunk, bar]))
        self._history = self._history.after(has_event)

    def links(self) -> Links | None:
        """The logits of all bars, with their chunks and bars; None where no pair was scored."""
        if not self._logits:
            return None
        return Links(torch.cat(self._logits, dim=1), *torch.cat(self._chunk_and_bar, dim=1))


def positive_pairs(events: EventBatch, b: int, n: int) -> Tensor:
    """Which pairs (b, r, n) have one of the ``events`` of b chunks; events that end at no asset are left out."""
    nodes = TYPES * n + OUTSIDE
    chunk = events.dst // nodes
    src, dst = events.src % nodes, events.dst % nodes
    is_own = (src < TYPES * n) & (src % n == dst)
    is_outside = src >= TYPES * n
    row = torch.where(is_own, src // n, torch.where(is_outside, TYPES + src - TYPES * n, SINGLE + src))
    has_event = torch.zeros(b, SINGLE + TYPES * n, n, dtype=torch.bool, device=dst.device)
    is_asset = dst < n
    has_event[chunk[is_asset], row[is_asset], dst[is_asset]] = True
    return has_event


def _source(row: Tensor, asset: Tensor, n: int) -> Tensor:
    """Positions (c, q) of the source nodes of the pairs in the rows (q,) that end at ``asset`` (c, q)."""
    return torch.where(row < TYPES, row * n + asset, torch.where(row < SINGLE, TYPES * n + row - TYPES, row - SINGLE))


def _possible_pairs(n: int, device: torch.device) -> Tensor:
    """Which pairs (r, n) can have events: in the rows between, none from a node to its own asset."""
    row = torch.arange(SINGLE + TYPES * n, device=device)[:, None]
    asset = torch.arange(n, device=device)
    return (row < SINGLE) | ((row - SINGLE) % n != asset)


def _source_type(src: Tensor, nodes: int) -> Tensor:
    """One-hot types (q, TYPES + OUTSIDE) of the sources ``src`` (q,), positions in a chunk of ``nodes`` nodes."""
    n = (nodes - OUTSIDE) // TYPES
    kind = torch.where(src < TYPES * n, src // n, TYPES + src - TYPES * n)
    return torch.nn.functional.one_hot(kind, SINGLE).float()
