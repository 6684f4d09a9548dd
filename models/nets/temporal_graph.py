"""The temporal graph network: events in, node embeddings out, whatever they are then used for.

Paper: Rossi et al. 2020, 2006.10637; as presets of the same parts (its table 1) TGAT (2002.07962), JODIE (1908.01207)
and DyRep (Trivedi et al., ICLR 2019).
Glossary: n nodes · e events · q nodes asked for · d channels · k slots of neighbours · f features of an event · s
memory · z embedding.

Life of a state: ``initial_state``, then for every batch of events ``embed`` what is to be predicted and only then
``insert`` the batch. To learn, hold a batch back and insert it at the head of the next one's graph: its messages give
the updater its gradient, and nothing predicts itself (TRAP-06). A state is plain tensors; ``detached`` cuts its past.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import memory as mem
from models.layers import neighbours as near
from models.layers.checks import check_choice, check_positive
from models.layers.errors import ShapeError, SizeError
from models.layers.memory import Memory
from models.layers.neighbours import Ends, Groups, NeighbourBuffer
from models.layers.temporal_attention import Slots, TemporalAttention
from models.layers.time_encoding import Functional, time_encoding
from models.nets.event_batch import EventBatch, check_event_batch

State = tuple[Memory, NeighbourBuffer]


@dataclass(frozen=True)
class Parts:
    """Which temporal graph network. ``updater`` None: no memory. ``embedding``: identity, time (JODIE's projection) or
    attention over ``neighbours`` slots in so many ``layers``. ``message_reads``: memory, or embedding as in DyRep.
    ``fades``: memories lose strength with time before they are read."""

    updater: str | None = "gru"
    message: str = "identity"
    aggregator: str = "last"
    encoding: str = "functional"
    embedding: str = "attention"
    message_reads: str = "memory"
    layers: int = 1
    heads: int = 2
    neighbours: int = 10
    fades: bool = True

    @cached_property
    def unchanged(self) -> bool:
        """True where a GRU hears a node's only message as it is."""
        alone = self.aggregator in ("last", "mean", "sum")
        return self.updater == "gru" and self.message == "identity" and alone

    @cached_property
    def has_compiled_passes(self) -> bool:
        """True for the paper's own parts with one layer of attention, which temporal_graph_cpu.py computes."""
        attends = self.embedding == "attention" and self.layers == 1
        return self.unchanged and attends and self.message_reads == "memory"


PRESETS = {
    "tgn": Parts(),
    "tgat": Parts(updater=None, layers=2),
    "jodie": Parts(updater="rnn", embedding="time"),
    "dyrep": Parts(updater="rnn", embedding="identity", message_reads="embedding"),
}


@dataclass(frozen=True)
class Sizes:
    """``d`` channels, ``n_features`` of an event, ``d_time`` of the time encoding; elapsed times matter between
    ``shortest`` and ``longest``, in the unit of the events' times."""

    d: int
    n_features: int
    d_time: int
    shortest: float = 1.0
    longest: float = 1e6
    dropout: float = 0.0


class TemporalGraph(nn.Module):
    """Memory and neighbours of n nodes, changed by ``insert``, read by ``embed``."""

    encoding: Any
    fading: Any

    def __init__(self, parts: Parts, sizes: Sizes) -> None:
        super().__init__()
        check_choice("embedding", parts.embedding, ("identity", "time", "attention"))
        check_choice("message", parts.message, ("identity", "mlp"))
        check_choice("message_reads", parts.message_reads, ("memory", "embedding"))
        if parts.updater == "decay" and not parts.fades:
            raise SizeError("updater is 'decay' and fades is False: its memories are what fades; leave fades True")
        if parts.updater is None and parts.embedding == "identity":
            raise SizeError("embedding is 'identity' and updater None: there is no memory to embed; choose an updater")
        check_positive(layers=parts.layers, heads=parts.heads, neighbours=parts.neighbours)
        self.parts, self.sizes = parts, sizes
        d, ends = sizes.d, sizes.n_features + 1  # an end also says which of the two it is
        self.encoding = time_encoding(parts.encoding, sizes.d_time, sizes.shortest, sizes.longest)
        self.fading = mem.Fading(sizes.longest) if parts.updater and parts.fades else None
        self.updater = None
        if parts.updater is not None:
            said = 2 * d + sizes.d_time + ends
            self.message = mem.Identity(said) if parts.message == "identity" else mem.Mlp(said, d)
            self.aggregate = mem.aggregator(parts.aggregator, self.message.out_features)
            self.updater = mem.updater(parts.updater, self.message.out_features, d)
        self.projection = nn.Parameter(torch.randn(d) * d**-0.5) if parts.embedding == "time" else None
        self.remembered = 0 if self.updater is None else d
        attends = parts.embedding == "attention" or parts.message_reads == "embedding"
        read = [sizes.d_time + ends + (d if layer else self.remembered) for layer in range(parts.layers)]
        self.attention = nn.ModuleList(
            TemporalAttention(d, r, parts.heads, sizes.dropout) for r in (read if attends else ())
        )

    def initial_state(self, n: int) -> State:
        """The state of n nodes before the first event."""
        like = next(self.parameters())
        width = 0 if self.updater is None else self.updater.width
        ring = near.empty_buffer(n, self.parts.neighbours, self.sizes.n_features + 1, like)
        return mem.empty_memory(n, width, like), ring

    def insert(self, state: State, events: EventBatch, in_place: bool = False) -> State:
        """The state after the events, all of which see the memories from before them.

        ``in_place``: the given state's own tensors are written to, but for vectors that gradients run through.
        """
        memory, ring = state
        check_event_batch(events, len(memory.event_count), self.sizes.n_features)
        if not len(events.src):
            return state
        if not in_place:
            ring = NeighbourBuffer(*(part.clone() for part in ring))
        ends, groups = near.grouped(events.ends())
        vector = memory.vector
        if self.updater is not None:
            write = vector.index_copy_ if in_place and not torch.is_grad_enabled() else vector.index_copy
            vector = write(0, groups.node, self._updated(state, ends, groups))
        near.insert(ring, memory.event_count, ends, groups)
        newest = torch.maximum(groups.newest, memory.updated.index_select(0, groups.node))
        if in_place:
            memory.updated.index_copy_(0, groups.node, newest)
            memory.event_count.index_add_(0, groups.node, groups.size)
            return memory._replace(vector=vector), ring
        updated = memory.updated.index_copy(0, groups.node, newest)
        event_count = memory.event_count.index_add(0, groups.node, groups.size)
        return Memory(vector, updated, event_count, memory.decay), ring

    def embed(self, state: State, nodes: Tensor, t: Tensor, node_features: Tensor | None = None) -> Tensor:
        """z (q, d) of ``nodes`` (q,) at times ``t`` (q,), by the events inserted so far; ``node_features`` (q, d) are added.

        Raises ShapeError for a node that the state does not have, or without a time.
        """
        if nodes.shape != t.shape:
            raise ShapeError(f"nodes are {tuple(nodes.shape)} and times {tuple(t.shape)}; give a time for each node")
        _check_nodes(nodes, len(state[0].event_count))
        if self.parts.embedding == "attention":
            return self._attended(state, nodes, t, self.parts.layers, node_features)
        s, elapsed = self._remembered(state[0], nodes, t)
        if self.projection is not None:
            s = s * (1 + (elapsed / self.sizes.longest)[:, None] * self.projection)
        return s if node_features is None else s + node_features

    def _updated(self, state: State, ends: Ends, groups: Groups) -> Tensor:
        """The new memories of ``groups.node``."""
        if self.parts.aggregator == "last" and len(ends.node) > len(groups.node):
            ends, groups = _newest(ends, groups)
        memory, r, d = state[0], len(ends.node), self.sizes.d
        nodes = torch.cat([ends.node, ends.other])
        s, elapsed = self._faded(memory, nodes, torch.cat([ends.t, ends.t]))
        others = s[r:, :d]
        if self.parts.message_reads == "embedding":
            others = self._attended(state, ends.other, ends.t, self.parts.layers, None)
        message: Any = s[:r, :d], others, self.encoding(elapsed[:r]), ends.features
        if not (self.parts.unchanged and r == len(groups.node)):
            message = self.aggregate(self.message(torch.cat(message, dim=1), ends.features[:, -1] > 0), groups)
        kept, before = elapsed[:r], s[:r]
        if r > len(groups.node):
            before, kept = self._faded(memory, groups.node, groups.newest)
        if self.parts.updater == "decay":
            rate = 1 / self.sizes.longest if self.fading is None else self.fading.log_rate.exp()
            kept = torch.exp(-rate * memory.decay.index_select(0, groups.node) * kept)
        return self.updater(message, before, kept)  # type: ignore[misc]  # there is one where this is called

    def _attended(self, state: State, nodes: Tensor, t: Tensor, layers: int, node_features: Tensor | None) -> Tensor:
        """z (q, d) after ``layers`` of attention; before the first, what the nodes remember and their own features."""
        if not layers:
            s, _ = self._remembered(state[0], nodes, t)
            z = s if self.remembered else s.new_zeros(len(nodes), self.sizes.d)
            return z if node_features is None else z + node_features
        z, memory = self._attended(state, nodes, t, layers - 1, node_features), state[0]
        ids, when, features = near.neighbours(state[1], nodes)
        elapsed, fade = (t[:, None] - when).float(), torch.ones_like(when, dtype=features.dtype)
        if layers > 1:
            table, ids = self._each_once(state, ids, t, layers - 1)
        else:
            table = memory.vector[:, : self.remembered]
            if self.fading is not None:
                known = ids.clamp(min=0).flatten()
                fade = self.fading.decay_factor(memory, known, t.repeat_interleave(ids.shape[1]))[0].view_as(when)
        if isinstance(self.encoding, Functional):
            return self.attention[layers - 1](z, Slots(table, ids, fade, features, elapsed, self.encoding.frequency))
        said = torch.cat([features, self.encoding(elapsed)], dim=-1)
        return self.attention[layers - 1](z, Slots(table, ids, fade, said, elapsed, elapsed.new_empty(0)))

    def _each_once(self, state: State, ids: Tensor, t: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """z of the nodes ``ids`` (q, k) at the times t (q,), a row for each pair there is, and their places in it."""
        there = ids >= 0
        times, at = torch.unique(t, return_inverse=True)
        pairs, place = torch.unique((ids * len(times) + at[:, None])[there], return_inverse=True)
        nodes, t = pairs // len(times), times.index_select(0, pairs % len(times))
        places = ids.masked_scatter(there, place)
        return self._attended(state, nodes, t, layers, None), places

    def _remembered(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What others may read of the nodes' memories at ``t``, and the time since their last events."""
        s, elapsed = self._faded(memory, nodes, t)
        return s[:, : self.remembered], elapsed

    def _faded(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.fading is not None:
            return self.fading(memory, nodes, t)
        elapsed = (t - memory.updated.index_select(0, nodes)).clamp(min=0).float()
        return memory.vector.index_select(0, nodes), elapsed


def _check_nodes(nodes: Tensor, n: int) -> None:
    """Raises ShapeError for a node that is none of n."""
    if not len(nodes):
        return
    lowest, highest = torch.stack(nodes.aminmax()).tolist()
    if lowest < 0 or highest >= n:
        unknown = lowest if lowest < 0 else highest
        raise ShapeError(f"an embedding is asked of the node {unknown}; those of this state are 0 … {n - 1}")


def copied(state: State) -> State:
    """The same state in new tensors, to be changed in place."""
    memory, ring = state
    return Memory(*(part.clone() for part in memory)), NeighbourBuffer(*(part.clone() for part in ring))


def detached(state: State) -> State:
    """The same state without the graph that made it."""
    memory, ring = state
    return memory._replace(vector=memory.vector.detach()), ring


def preset(name: str, **options: object) -> Parts:
    """The parts of that name with some of them exchanged. Raises SizeError, and TypeError for an unknown part."""
    check_choice("preset", name, PRESETS)
    return replace(PRESETS[name], **options)  # type: ignore[arg-type]


def _newest(ends: Ends, groups: Groups) -> tuple[Ends, Groups]:
    """Only the ends that no later one of the same node follows."""
    rows = (ends.t == groups.newest.index_select(0, groups.of)).nonzero()[:, 0]
    of = groups.of.index_select(0, rows)
    size = torch.bincount(of, minlength=len(groups.node))
    return ends.take(rows), Groups(groups.node, of, groups.place.index_select(0, rows), size, groups.newest)
