"""Link prediction inside a market network: which events happen before the next close (TGN-21 to TGN-23)?

Ids: .github/sources.md.

The targets are the events themselves, so no labels are needed. At every close, before later events are inserted, the
network scores each pair of nodes that has an event before the next close (a positive pair) and pairs that have none
(its negatives).

Most events of a market run from a node to its own asset. An event trade:BTC → asset:ETH never happens, so a network
would learn nothing from such a negative. Pairs are therefore divided into groups of comparable pairs. A group has one
pair for each asset a, and the negatives of a pair come from the group of that pair:
own         type:a → asset:a: which asset is traded, liquidated or settled next? One group for each node type.
external    one external node → asset:a: which asset's open interest is reported next? One group for each such node.
between     one node → asset:a: which other asset does an edge or a liquidation of this node reach? One group for each
            node of the types; the node's own asset is no candidate.

A pair has one negative of each strategy, as in models.graphs.negatives. It is in the same group and chunk as the pair,
its asset has the next bar, and it has no event before the next close:
random      any such pair
historical  a pair that had an event in an earlier bar
inductive   a pair that had its first event in the second half of the bars so far
temporal    a pair whose asset was a destination in the latest bar with events
If no pair qualifies for a strategy, any such pair is drawn. A group without any such pair is not scored.

Glossary: b chunks · n assets · N nodes of a chunk · g groups · q positive pairs · c candidates: the positive pair and
one negative of each strategy · d channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.graphs.market_events import EXTERNAL_NODES, NODE_TYPES
from models.graphs.negatives import STRATEGIES
from models.layers.dropout import RandomModule
from models.nets.event_batch import EventBatch
from models.nets.forecast import Links
from models.nets.link import N_PAIR_FEATURES, build_pair_decoder, pair_history_features
from models.nets.temporal_graph import Sizes, State, TemporalGraph

N_NODE_TYPES = len(NODE_TYPES)
N_EXTERNAL = len(EXTERNAL_NODES)
# groups are numbered in this order: own groups by type, external groups by node, groups between by node
FIRST_GROUP_BETWEEN = N_NODE_TYPES + N_EXTERNAL
N_SOURCE_TYPES = N_NODE_TYPES + N_EXTERNAL  # each external node is a type of its own


class Pairs(NamedTuple):
    """Candidate pairs. ``chunk`` (q,) int64; ``src``, ``dst`` (c, q) int64: positions among the nodes of the chunk.

    [0, k] is the positive pair k, [1 + i, k] its negative by the strategy STRATEGIES[i].
    """

    chunk: Tensor
    src: Tensor
    dst: Tensor


class PairHistory(NamedTuple):
    """Past events of all pairs.

    ``first_bar`` (b, g, n) float32: index of the bar of each pair's first event, infinite for a pair without events.
    ``is_recent_destination`` (b, n) bool: True for an asset that was a destination in the latest bar with events.
    ``n_bars``: the number of bars so far.
    """

    first_bar: Tensor
    is_recent_destination: Tensor
    n_bars: int

    @classmethod
    def empty(cls, b: int, n: int, like: Tensor) -> PairHistory:
        """The history before the first bar, on the device of ``like``."""
        # float32 even if ``like`` is bfloat16, which represents all whole numbers only up to 256
        first_bar = torch.full((b, _n_groups(n), n), torch.inf, device=like.device)
        return cls(first_bar, torch.zeros(b, n, dtype=torch.bool, device=like.device), 0)

    def after(self, has_event: Tensor) -> PairHistory:
        """The history one bar later; ``has_event`` (b, g, n): True for the pairs that had an event in that bar."""
        is_destination = has_event.any(1)
        first_bar = self.first_bar.masked_fill(has_event & self.first_bar.isinf(), self.n_bars)
        is_recent = torch.where(is_destination.any(1, keepdim=True), is_destination, self.is_recent_destination)
        return PairHistory(first_bar, is_recent, self.n_bars + 1)


class MarketLinks(RandomModule):
    """Scores pairs with a decoder, and samples negatives. In training each pass samples other negatives; in evaluation
    all passes sample the same."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.longest = sizes.longest
        self.decode = build_pair_decoder(2 * sizes.d + N_PAIR_FEATURES + N_SOURCE_TYPES, sizes.d, sizes.dropout)

    def forward(self, graph: TemporalGraph, state: State, clock: Tensor, pairs: Pairs) -> Tensor:
        """Logits (c, q) that the pairs have an event before the next close.

        ``state`` contains the events up to the last close of each chunk, at ``clock`` (b,).
        """
        memory, _ = state
        nodes_per_chunk = len(memory.event_count) // len(clock)
        ends = torch.stack([pairs.src, pairs.dst])
        unique_nodes, index = torch.unique(pairs.chunk * nodes_per_chunk + ends, return_inverse=True)
        z = graph.embed(state, unique_nodes, clock[unique_nodes // nodes_per_chunk])
        t = clock[pairs.chunk].expand_as(pairs.src).flatten()
        u, v = unique_nodes[index].flatten(1)
        z_u, z_v = z[index.flatten(1)]
        history = pair_history_features(state, u, v, t, self.longest)
        source_type = _source_type(pairs.src.flatten(), nodes_per_chunk)
        return self.decode(torch.cat([z_u, z_v, history, source_type], dim=1)).view(pairs.src.shape)

    def sample_pairs(
        self, has_event: Tensor, history: PairHistory, asset_mask: Tensor, generator: torch.Generator
    ) -> Pairs:
        """The positive pairs, each with one negative of each strategy.

        ``has_event`` (b, g, n): True for the positive pairs. ``asset_mask`` (b, n): True for the assets that have the
        next bar, to which negatives are restricted.
        """
        n = asset_mask.shape[1]
        is_negative = ~has_event & asset_mask[:, None] & _is_possible_pair(n, asset_mask.device)
        has_history = history.first_bar < history.n_bars
        is_eligible = {
            "random": is_negative,
            "historical": is_negative & has_history,
            "inductive": is_negative & has_history & (history.first_bar >= history.n_bars / 2),
            "temporal": is_negative & history.is_recent_destination[:, None],
        }
        chunk, group, asset = (has_event & is_negative.any(2, keepdim=True)).nonzero().unbind(1)
        candidates = [asset]
        for strategy in STRATEGIES:
            can_be_drawn = is_eligible[strategy][chunk, group]
            can_be_drawn = torch.where(can_be_drawn.any(1, keepdim=True), can_be_drawn, is_negative[chunk, group])
            priority = torch.rand(can_be_drawn.shape, generator=generator, device=asset_mask.device)
            candidates.append(priority.masked_fill(~can_be_drawn, -1.0).argmax(1))
        dst = torch.stack(candidates)
        return Pairs(chunk, _source_node(group, dst, n), dst)


class LinkQueries:
    """Collects the link logits of one pass over b chunks of n assets, bar by bar.

    ``like``: a tensor on the device of the pass.
    """

    def __init__(self, market_links: MarketLinks, b: int, n: int, like: Tensor) -> None:
        self._market_links = market_links
        self._history = PairHistory.empty(b, n, like)
        self._generator = (
            market_links.generator(like.device)
            if market_links.training
            else torch.Generator(like.device).manual_seed(0)
        )
        self._logits: list[Tensor] = []
        self._chunk_and_bar: list[Tensor] = []

    def score_at_close(
        self, graph: TemporalGraph, state: State, clock: Tensor, next_events: EventBatch, asset_mask: Tensor
    ) -> None:
        """Scores the pairs of ``next_events`` and their negatives.

        ``state`` contains the events up to the last close of each chunk, at ``clock`` (b,). ``next_events``: the
        events from that close to the next one. ``asset_mask`` (b, n): True for the assets that have the next bar. The
        first call scores nothing and only records its events, because the state is empty before the first bar.
        """
        b, n = asset_mask.shape
        has_event = positive_pair_mask(next_events, b, n)
        if self._history.n_bars:
            pairs = self._market_links.sample_pairs(has_event, self._history, asset_mask, self._generator)
            if len(pairs.chunk):
                self._logits.append(self._market_links(graph, state, clock, pairs))
                bar = torch.full_like(pairs.chunk, self._history.n_bars)
                self._chunk_and_bar.append(torch.stack([pairs.chunk, bar]))
        self._history = self._history.after(has_event)

    def collected_links(self) -> Links | None:
        """The logits of all bars scored so far, with the chunk and the bar of each pair; None if no pair was scored."""
        if not self._logits:
            return None
        chunk, bar = torch.cat(self._chunk_and_bar, dim=1)
        return Links(torch.cat(self._logits, dim=1), chunk, bar)


def positive_pair_mask(events: EventBatch, b: int, n: int) -> Tensor:
    """Mask (b, g, n) bool, True for the pairs that have one of the ``events`` of b chunks of n assets.

    Events that do not end at an asset are ignored.
    """
    nodes_per_chunk = N_NODE_TYPES * n + N_EXTERNAL
    chunk = events.dst // nodes_per_chunk
    src = events.src % nodes_per_chunk
    dst = events.dst % nodes_per_chunk
    is_own = (src < N_NODE_TYPES * n) & (src % n == dst)
    is_external = src >= N_NODE_TYPES * n
    external_group = N_NODE_TYPES + src - N_NODE_TYPES * n
    group = torch.where(is_own, src // n, torch.where(is_external, external_group, FIRST_GROUP_BETWEEN + src))
    has_event = torch.zeros(b, _n_groups(n), n, dtype=torch.bool, device=dst.device)
    is_asset = dst < n
    has_event[chunk[is_asset], group[is_asset], dst[is_asset]] = True
    return has_event


def _n_groups(n: int) -> int:
    """g, the number of groups in a market of n assets."""
    return FIRST_GROUP_BETWEEN + N_NODE_TYPES * n


def _source_node(group: Tensor, asset: Tensor, n: int) -> Tensor:
    """Positions (c, q) of the source nodes of the pairs in the groups (q,) that end at ``asset`` (c, q)."""
    own_source = group * n + asset
    external_source = N_NODE_TYPES * n + group - N_NODE_TYPES
    source_between = group - FIRST_GROUP_BETWEEN
    source = torch.where(group < FIRST_GROUP_BETWEEN, external_source, source_between)
    return torch.where(group < N_NODE_TYPES, own_source, source)


def _is_possible_pair(n: int, device: torch.device) -> Tensor:
    """Mask (g, n) bool: False for a pair of a "between" group that ends at the source node's own asset, else True."""
    group = torch.arange(_n_groups(n), device=device)[:, None]
    asset = torch.arange(n, device=device)
    return (group < FIRST_GROUP_BETWEEN) | ((group - FIRST_GROUP_BETWEEN) % n != asset)


def _source_type(src: Tensor, nodes_per_chunk: int) -> Tensor:
    """One-hot types (q, N_SOURCE_TYPES) of the sources ``src`` (q,), which are positions in a chunk."""
    n = (nodes_per_chunk - N_EXTERNAL) // N_NODE_TYPES
    source_type = torch.where(src < N_NODE_TYPES * n, src // n, N_NODE_TYPES + src - N_NODE_TYPES * n)
    return torch.nn.functional.one_hot(source_type, N_SOURCE_TYPES).float()
