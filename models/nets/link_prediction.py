"""Which events will a market see before its next close? Links learned without labels, inside a network (TGN-21 to 23).

Asked at every close, of the memory as it is then, before anything later is inserted: for each pair that meets until the
next close, will it, or will another one? Most events of a market run from a node to the asset it belongs to; against
trade:BTC → asset:ETH, which cannot be, trade:BTC → asset:BTC would be no question. So pairs stand in rows of those that
might as well have met, one for each asset a, and an answer is told from others of its row:
own         type:a → asset:a: which asset is traded, liquidated, settled next?
outside     one external node → asset:a: of which asset is open interest told next?
between     one node → asset:a, not its own: whom does an edge from here reach, or a liquidation?
The negatives of a pair, by the strategies of models.graphs.negatives, all of its row and chunk and with a bar:
random      any that does not meet until the next close
historical  of these, one that met before
inductive   one that met before, but not in the first half of the bars so far
temporal    one whose asset was the destination of an event in the last bar that had any
Where none qualifies a random one takes its place; of a row that meets as a whole nothing is asked.

Glossary: b chunks · n assets · N nodes of a chunk · r rows · q pairs that meet · c candidates, the pair itself and a
negative of each strategy · d channels.
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

TYPES, OUTSIDE = len(NODE_TYPES), len(EXTERNAL)
SINGLE = TYPES + OUTSIDE  # rows of own and outside pairs, before those between


class Pairs(NamedTuple):
    """``chunk`` (q,); ``src``, ``dst`` (c, q) positions among a chunk's nodes, first the pair that meets."""

    chunk: Tensor
    src: Tensor
    dst: Tensor


class PairHistory(NamedTuple):
    """What pairs did so far: ``first`` (b, r, n), the bar in which each met first, infinite for never; ``about``
    (b, n), the destinations of the last bar with events; ``bar``, how many there were."""

    first: Tensor
    about: Tensor
    bar: int

    @classmethod
    def empty(cls, b: int, n: int, like: Tensor) -> PairHistory:
        """Nobody has met."""
        first = torch.full((b, SINGLE + TYPES * n, n), torch.inf, device=like.device)  # half precision counts to 256
        return cls(first, torch.zeros(b, n, dtype=torch.bool, device=like.device), 0)

    def after(self, meets: Tensor) -> PairHistory:
        """The past of the next bar, when pairs have met where ``meets`` (b, r, n)."""
        now, first = meets.any(1), self.first.masked_fill(meets & self.first.isinf(), self.bar)
        return PairHistory(first, torch.where(now.any(1, keepdim=True), now, self.about), self.bar + 1)


class MarketLinks(RandomModule):
    """A decoder of pairs, and what draws their negatives: anew for every bar, in evaluation always the same ones."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.longest = sizes.longest
        self.decode = pair_decoder(2 * sizes.d + PAIR_FEATURES + SINGLE, sizes.d, sizes.dropout)

    def forward(self, graph: TemporalGraph, state: State, clock: Tensor, pairs: Pairs) -> Tensor:
        """Logits (c, q) of the pairs meeting next, by what came until the chunks' last closes ``clock`` (b,)."""
        nodes = len(state[0].event_count) // len(clock)
        ends = torch.stack([pairs.src, pairs.dst])
        every, place = torch.unique(pairs.chunk * nodes + ends, return_inverse=True)
        z = graph.embed(state, every, clock[every // nodes])
        t = clock[pairs.chunk].expand_as(pairs.src).flatten()
        u, v = every[place].flatten(1)
        met = pair_history_features(state, u, v, t, self.longest)
        said = torch.cat([*z[place.flatten(1)], met, _type(pairs.src.flatten(), nodes)], dim=1)
        return self.decode(said).view(pairs.src.shape)

    def drawn(self, meets: Tensor, past: PairHistory, there: Tensor, draw: torch.Generator) -> Pairs:
        """The pairs that meet, (b, r, n), with their negatives among the assets ``there`` (b, n)."""
        n = there.shape[1]
        free = ~meets & there[:, None] & _possible(n, there.device)
        met = past.first < past.bar
        fits = {
            "random": free,
            "historical": free & met,
            "inductive": free & met & (past.first >= past.bar / 2),
            "temporal": free & past.about[:, None],
        }
        chunk, row, asset = (meets & free.any(2, keepdim=True)).nonzero().unbind(1)
        candidates = [asset]
        for strategy in STRATEGIES:
            pool = fits[strategy][chunk, row]
            pool = torch.where(pool.any(1, keepdim=True), pool, free[chunk, row])
            chance = torch.rand(pool.shape, generator=draw, device=there.device)
            candidates.append(chance.masked_fill(~pool, -1.0).argmax(1))
        dst = torch.stack(candidates)
        return Pairs(chunk, _source(row, dst, n), dst)


class LinkQueries:
    """The questions of one pass over ``b`` chunks of n assets, bar by bar, and the logits they were answered with."""

    def __init__(self, links: MarketLinks, b: int, n: int, like: Tensor) -> None:
        self.links, self.past = links, PairHistory.empty(b, n, like)
        self.draw = links.generator(like.device) if links.training else torch.Generator(like.device).manual_seed(0)
        self.logits: list[Tensor] = []
        self.asked: list[Tensor] = []

    def bar(self, graph: TemporalGraph, state: State, clock: Tensor, coming: EventBatch, there: Tensor) -> None:
        """Asks of the ``coming`` events at the last closes ``clock`` (b,), of whose market ``state`` says everything;
        of those before the first bar there is nothing to say. ``there`` (b, n): who has the bar."""
        meets = positive_pairs(coming, *there.shape)
        if self.past.bar:
            pairs = self.links.drawn(meets, self.past, there, self.draw)
            if len(pairs.chunk):
                self.logits.append(self.links(graph, state, clock, pairs))
                self.asked.append(torch.stack([pairs.chunk, torch.full_like(pairs.chunk, self.past.bar)]))
        self.past = self.past.after(meets)

    def said(self) -> Links | None:
        """All of it; None where nothing was asked."""
        return Links(torch.cat(self.logits, dim=1), *torch.cat(self.asked, dim=1)) if self.logits else None


def positive_pairs(contacts: EventBatch, b: int, n: int) -> Tensor:
    """Which pairs (b, r, n) are among the contacts of b chunks; those that end at no asset are left out."""
    nodes = TYPES * n + OUTSIDE
    chunk, src, dst = contacts.dst // nodes, contacts.src % nodes, contacts.dst % nodes
    own, outside = (src < TYPES * n) & (src % n == dst), src >= TYPES * n
    row = torch.where(own, src // n, torch.where(outside, TYPES + src - TYPES * n, SINGLE + src))
    meets = torch.zeros(b, SINGLE + TYPES * n, n, dtype=torch.bool, device=dst.device)
    ends = dst < n
    meets[chunk[ends], row[ends], dst[ends]] = True
    return meets


def _source(row: Tensor, asset: Tensor, n: int) -> Tensor:
    """Where in the chunk the pairs of the rows (q,) that end at ``asset`` (c, q) begin."""
    return torch.where(row < TYPES, row * n + asset, torch.where(row < SINGLE, TYPES * n + row - TYPES, row - SINGLE))


def _possible(n: int, device: torch.device) -> Tensor:
    """Which pairs (r, n) there may be: a node has no pair with its own asset but in its type's row."""
    row, asset = torch.arange(SINGLE + TYPES * n, device=device)[:, None], torch.arange(n, device=device)
    return (row < SINGLE) | ((row - SINGLE) % n != asset)


def _type(src: Tensor, nodes: int) -> Tensor:
    """One-hot (q, TYPES + OUTSIDE) of what the sources are, positions in a chunk of so many nodes."""
    n = (nodes - OUTSIDE) // TYPES
    kind = torch.where(src < TYPES * n, src // n, TYPES + src - TYPES * n)
    return torch.nn.functional.one_hot(kind, SINGLE).float()
