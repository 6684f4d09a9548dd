"""The temporal graph network: it reads events between nodes and computes embeddings of the nodes.

Papers: Rossi et al. 2020, 2006.10637. The presets TGAT (2002.07962), JODIE (1908.01207) and DyRep (Trivedi et al., ICLR
2019) are made of the same parts, as in table 1 of Rossi et al.

Use: call ``initial_state``. Then, for every batch of events, first ``embed`` the nodes that a prediction needs, and
then ``insert`` the batch. A state contains all events inserted so far, so that no batch predicts itself (TRAP-06; ids:
.github/sources.md). For training, insert a batch in the autograd graph of the loss of the next batch: then its messages
give the memory updater a gradient. ``detach_state`` separates a state from the autograd graph.

Glossary: n nodes · e events · r ends of events, two an event · q nodes to embed · d channels · k slots of neighbours ·
f features of an event · s memory · z embedding. Times are float64 in one unit, which the caller chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.checks import check_choice, check_positive
from models.layers.errors import ShapeError, SizeError
from models.layers.memory import Fading, Identity, Memory, Mlp, empty_memory, make_aggregator, make_updater
from models.layers.neighbours import Ends, Groups, NeighbourBuffer, empty_buffer, group_by_node
from models.layers.neighbours import insert as insert_neighbours
from models.layers.neighbours import neighbours_of as newest_neighbours
from models.layers.temporal_attention import Slots, TemporalAttention
from models.layers.time_encoding import Functional, make_time_encoding
from models.nets.event_batch import EventBatch, check_event_batch

State = tuple[Memory, NeighbourBuffer]


@dataclass(frozen=True)
class Parts:
    """The parts of a temporal graph network.

    ``updater``: one of models.layers.memory.UPDATERS, None for a network without memories. ``message``: "identity"
    or "mlp". ``aggregator``: one of models.layers.memory.AGGREGATORS. ``encoding``: a name in
    models.layers.time_encoding. ``embedding``: "identity" is the memory, "time" is JODIE's projection of it,
    "attention" reads ``neighbours`` slots in ``layers`` layers with ``heads`` heads. ``message_reads``: a message
    contains the other node's "memory", or its "embedding" as in DyRep. ``fades``: True if memories decay with the time
    since the node's last event.
    """

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
    def passes_raw_messages(self) -> bool:
        """True if the GRU receives a node's message unchanged where the node has only one message."""
        is_identity_of_one = self.aggregator in ("last", "mean", "sum")
        return self.updater == "gru" and self.message == "identity" and is_identity_of_one

    @cached_property
    def has_compiled_passes(self) -> bool:
        """True if temporal_graph_cpu.py has compiled passes for these parts: those of TGN with one attention layer."""
        has_attention = self.embedding == "attention" and self.layers == 1
        return self.passes_raw_messages and has_attention and self.message_reads == "memory"


PRESETS = {
    "tgn": Parts(),
    "tgat": Parts(updater=None, layers=2),
    "jodie": Parts(updater="rnn", embedding="time"),
    "dyrep": Parts(updater="rnn", embedding="identity", message_reads="embedding"),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a temporal graph network.

    ``d``: channels of memories and embeddings. ``n_features``: features of an event. ``d_time``: channels of the time
    encoding. ``shortest`` and ``longest``: the range of elapsed times that the encoding resolves, in the unit of the
    events' times; ``longest`` is also the initial half-life of memories.
    """

    d: int
    n_features: int
    d_time: int
    shortest: float = 1.0
    longest: float = 1e6
    dropout: float = 0.0


class TemporalGraph(nn.Module):
    """A network on the memories and neighbours of n nodes: ``insert`` updates them, ``embed`` reads them.

    Raises SizeError for unknown parts and for parts that contradict each other.
    """

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
        self.parts = parts
        self.sizes = sizes
        d = sizes.d
        n_end_features = sizes.n_features + 1  # the last is +1 for the event's source, −1 for its destination
        self.encoding = make_time_encoding(parts.encoding, sizes.d_time, sizes.shortest, sizes.longest)
        self.fading = Fading(sizes.longest) if parts.updater and parts.fades else None
        self.updater = None
        if parts.updater is not None:
            m = 2 * d + sizes.d_time + n_end_features
            self.message = Identity(m) if parts.message == "identity" else Mlp(m, d)
            self.aggregate = make_aggregator(parts.aggregator, self.message.out_features)
            self.updater = make_updater(parts.updater, self.message.out_features, d)
        self.projection = nn.Parameter(torch.randn(d) * d**-0.5) if parts.embedding == "time" else None
        self.d_memory = 0 if self.updater is None else d
        has_attention = parts.embedding == "attention" or parts.message_reads == "embedding"
        n_attention_layers = parts.layers if has_attention else 0
        widths = [
            sizes.d_time + n_end_features + (d if layer else self.d_memory) for layer in range(n_attention_layers)
        ]
        self.attention = nn.ModuleList(TemporalAttention(d, width, parts.heads, sizes.dropout) for width in widths)

    def initial_state(self, n: int) -> State:
        """The state of n nodes before the first event."""
        like = next(self.parameters())
        width = 0 if self.updater is None else self.updater.width
        buffer = empty_buffer(n, self.parts.neighbours, self.sizes.n_features + 1, like)
        return empty_memory(n, width, like), buffer

    def insert(self, state: State, events: EventBatch, in_place: bool = False) -> State:
        """The state after the events. All their messages read the memories of ``state``, before any of the events.

        The order of the events in the batch does not matter. ``in_place``: True overwrites the tensors of ``state``,
        except the memory vectors while gradients are recorded; False leaves ``state`` unchanged. Returns ``state``
        itself for a batch without events. Raises ShapeError, NotFiniteError.
        """
        memory, buffer = state
        check_event_batch(events, len(memory.event_count), self.sizes.n_features)
        if not len(events.src):
            return state
        if not in_place:
            buffer = NeighbourBuffer(*(part.clone() for part in buffer))
        ends, groups = group_by_node(events.ends())
        vector = memory.vector
        if self.updater is not None:
            write = vector.index_copy_ if in_place and not torch.is_grad_enabled() else vector.index_copy
            vector = write(0, groups.node, self._updated_memories(state, ends, groups))
        insert_neighbours(buffer, memory.event_count, ends, groups)
        newest = torch.maximum(groups.newest, memory.updated.index_select(0, groups.node))
        if in_place:
            memory.updated.index_copy_(0, groups.node, newest)
            memory.event_count.index_add_(0, groups.node, groups.size)
            return memory._replace(vector=vector), buffer
        updated = memory.updated.index_copy(0, groups.node, newest)
        event_count = memory.event_count.index_add(0, groups.node, groups.size)
        return Memory(vector, updated, event_count, memory.decay), buffer

    def embed(self, state: State, nodes: Tensor, t: Tensor, node_features: Tensor | None = None) -> Tensor:
        """z (q, d) of ``nodes`` (q,) int64 at times ``t`` (q,), from the events inserted so far.

        ``node_features`` (q, d) are added to the memories. Raises ShapeError for a node that the state does not have,
        and where ``nodes`` and ``t`` have different shapes.
        """
        memory, _ = state
        if nodes.shape != t.shape:
            raise ShapeError(f"nodes are {tuple(nodes.shape)} and times {tuple(t.shape)}; give a time for each node")
        _check_nodes(nodes, len(memory.event_count))
        if self.parts.embedding == "attention":
            return self._attend(state, nodes, t, self.parts.layers, node_features)
        s, elapsed = self._read_memory(memory, nodes, t)
        if self.projection is not None:
            s = s * (1 + (elapsed / self.sizes.longest)[:, None] * self.projection)
        return s if node_features is None else s + node_features

    def _updated_memories(self, state: State, ends: Ends, groups: Groups) -> Tensor:
        """The memory vectors of ``groups.node`` after their messages; ``ends`` are sorted as in group_by_node."""
        if self.parts.aggregator == "last" and len(ends.node) > len(groups.node):
            ends, groups = _newest_ends(ends, groups)
        memory, _ = state
        r = len(ends.node)
        nodes = torch.cat([ends.node, ends.other])
        s, elapsed = self._faded(memory, nodes, torch.cat([ends.t, ends.t]))
        elapsed = elapsed[:r]
        others = s[r:, : self.sizes.d]
        if self.parts.message_reads == "embedding":
            others = self._attend(state, ends.other, ends.t, self.parts.layers, None)
        message: Any = s[:r, : self.sizes.d], others, self.encoding(elapsed), ends.features
        if not (self.parts.passes_raw_messages and r == len(groups.node)):
            message = self.aggregate(self.message(torch.cat(message, dim=1), ends.features[:, -1] > 0), groups)
        before = s[:r]
        if r > len(groups.node):
            before, elapsed = self._faded(memory, groups.node, groups.newest)
        decay_factor = elapsed  # only the "decay" updater reads it
        if self.parts.updater == "decay":
            rate = 1 / self.sizes.longest if self.fading is None else self.fading.log_rate.exp()
            decay_factor = torch.exp(-rate * memory.decay.index_select(0, groups.node) * elapsed)
        return self.updater(message, before, decay_factor)  # type: ignore[misc]  # only networks with an updater call this

    def _attend(self, state: State, nodes: Tensor, t: Tensor, n_layers: int, node_features: Tensor | None) -> Tensor:
        """z (q, d) after ``n_layers`` layers of attention; with 0 layers, the memories plus ``node_features``.

        A layer reads the neighbours' embeddings of the layer before, the first layer their memories.
        """
        memory, buffer = state
        if not n_layers:
            s, _ = self._read_memory(memory, nodes, t)
            z = s if self.d_memory else s.new_zeros(len(nodes), self.sizes.d)
            return z if node_features is None else z + node_features
        z = self._attend(state, nodes, t, n_layers - 1, node_features)
        ids, event_t, features = newest_neighbours(buffer, nodes)
        elapsed = (t[:, None] - event_t).float()
        fade = torch.ones_like(event_t, dtype=features.dtype)
        if n_layers > 1:
            table, ids = self._unique_embeddings(state, ids, t, n_layers - 1)
        else:
            table = memory.vector[:, : self.d_memory]
            if self.fading is not None:
                slot_nodes = ids.clamp(min=0).flatten()  # an empty slot reads node 0, which the attention then masks
                factors, _ = self.fading.decay_factor(memory, slot_nodes, t.repeat_interleave(ids.shape[1]))
                fade = factors.view_as(event_t)
        if isinstance(self.encoding, Functional):
            return self.attention[n_layers - 1](z, Slots(table, ids, fade, features, elapsed, self.encoding.frequency))
        encoded = torch.cat([features, self.encoding(elapsed)], dim=-1)
        return self.attention[n_layers - 1](z, Slots(table, ids, fade, encoded, elapsed, elapsed.new_empty(0)))

    def _unique_embeddings(self, state: State, ids: Tensor, t: Tensor, n_layers: int) -> tuple[Tensor, Tensor]:
        """Embeds each different pair of a node in ``ids`` (q, k) and its time in ``t`` (q,) once.

        Returns z of the different pairs, and for each slot (q, k) the position of its pair in z; empty slots keep their
        negative id.
        """
        is_used = ids >= 0
        times, time_index = torch.unique(t, return_inverse=True)
        pairs, pair_index = torch.unique((ids * len(times) + time_index[:, None])[is_used], return_inverse=True)
        nodes = pairs // len(times)
        pair_t = times.index_select(0, pairs % len(times))
        position = ids.masked_scatter(is_used, pair_index)
        return self._attend(state, nodes, pair_t, n_layers, None), position

    def _read_memory(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The part (q, d_memory) of the nodes' memories at ``t`` that embeddings read, and the times (q,) since the
        nodes' last events. The rest of a memory, such as an LSTM's cell, is for its updater alone."""
        s, elapsed = self._faded(memory, nodes, t)
        return s[:, : self.d_memory], elapsed

    def _faded(self, memory: Memory, nodes: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The whole memory vectors (q, w) of the nodes, decayed until ``t``, and the times (q,) since their last
        events."""
        if self.fading is not None:
            return self.fading(memory, nodes, t)
        elapsed = (t - memory.updated.index_select(0, nodes)).clamp(min=0).float()
        return memory.vector.index_select(0, nodes), elapsed


def _check_nodes(nodes: Tensor, n: int) -> None:
    """Raises ShapeError unless all ``nodes`` are in [0, n)."""
    if not len(nodes):
        return
    lowest, highest = torch.stack(nodes.aminmax()).tolist()
    if lowest < 0 or highest >= n:
        unknown = lowest if lowest < 0 else highest
        raise ShapeError(f"node {unknown} cannot be embedded; this state has the nodes 0 … {n - 1}")


def copy_state(state: State) -> State:
    """The same state in new tensors."""
    memory, buffer = state
    return Memory(*(part.clone() for part in memory)), NeighbourBuffer(*(part.clone() for part in buffer))


def detach_state(state: State) -> State:
    """The same state without the autograd graph that computed it; the tensors share their memory with ``state``."""
    memory, buffer = state
    return memory._replace(vector=memory.vector.detach()), buffer


def preset(name: str, **options: object) -> Parts:
    """The parts of the preset of that name, with those in ``options`` replaced.

    Raises SizeError for an unknown name, TypeError for an unknown part.
    """
    check_choice("preset", name, PRESETS)
    return replace(PRESETS[name], **options)  # type: ignore[arg-type]


def _newest_ends(ends: Ends, groups: Groups) -> tuple[Ends, Groups]:
    """The ends at the latest time of their node, several where they are simultaneous, and their groups."""
    newest = (ends.t == groups.newest.index_select(0, groups.group_index)).nonzero()[:, 0]
    group_index = groups.group_index.index_select(0, newest)
    size = torch.bincount(group_index, minlength=len(groups.node))
    position = groups.position.index_select(0, newest)
    return ends.take(newest), Groups(groups.node, group_index, position, size, groups.newest)
