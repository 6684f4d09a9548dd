"""The temporal graph network where nothing is learned: its inserting and embedding between a few compiled passes.

They say what temporal_graph.py says in torch operations, for the paper's own parts, on a CPU. Glossary as there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.layers import temporal_step
from models.layers.gru_cpu import gated
from models.layers.memory import Memory
from models.layers.neighbours import Ring
from models.layers.parallel import flat, flats
from models.layers.time_encoding import Functional
from models.nets.contacts import Contacts

if TYPE_CHECKING:
    from models.nets.temporal_graph import TemporalGraph

State = tuple[Memory, Ring]


def knows(graph: TemporalGraph, state: State) -> bool:
    """True where no gradient is asked for and temporal_step.py knows the parts."""
    parts, vector = graph.parts, state[0].vector
    if torch.is_grad_enabled() or graph.training or vector.device.type != "cpu" or vector.dtype != torch.float32:
        return False
    attends = parts.embedding == "attention" and parts.layers == 1 and parts.message_reads == "memory"
    return parts.unchanged and attends and isinstance(graph.encoding, Functional)


def newest(graph: TemporalGraph, state: State, contacts: Contacts) -> np.ndarray | None:
    """The newest end of every node that the events touch, as temporal_step.py counts ends; None where an event cannot
    be, or where a node has messages that come together."""
    e = len(contacts.src)
    if not e or contacts.features.shape != (e, graph.sizes.n_features):
        return None
    rows = np.empty(2 * e, np.int64)
    given = flats(*(column.contiguous() for column in contacts[:3]))
    count = temporal_step.newest(given, len(state[0].seen), rows, graph.parts.aggregator != "last")
    return None if count < 0 else rows[:count]


def insert(graph: TemporalGraph, state: State, contacts: Contacts, rows: np.ndarray) -> State:
    """The state after the events, whose ``newest`` are ``rows``, written over the one given."""
    memory, ring = state
    given, cell = flats(*(column.contiguous() for column in contacts)), graph.updater.cell  # type: ignore[union-attr]
    vector, g, d = memory.vector, len(rows), graph.sizes.d
    nodes, said, s = memory.seen.new_empty(g), vector.new_empty(g, graph.message.out_features), vector.new_empty(g, d)
    before, frequency = flats(vector, memory.updated, memory.decay), flat(graph.encoding.frequency)
    temporal_step.tell(before, given, rows, frequency, *_scales(graph), flats(nodes, said, s))
    new, _, _ = gated(said, s, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    vector.index_copy_(0, nodes, new)
    temporal_step.remember(flats(*ring), flats(memory.updated, memory.seen), given, graph.parts.neighbours)
    return state


def embed(graph: TemporalGraph, state: State, nodes: Tensor, t: Tensor) -> Tensor:
    """z (q, d) of a few nodes (q,) at the times t (q,)."""
    layer: Any = graph.attention[0]
    merge, out = (layer.merge[0], layer.merge[3]), state[0].vector.new_empty(len(nodes), graph.sizes.d)
    weights = [graph.encoding.frequency, layer.query.weight, layer.query.bias, layer.key, layer.value]
    weights += [part for linear in merge for part in (linear.weight, linear.bias)]
    memory, asking = state[0], flats(nodes, t.contiguous())
    arrays = flats(memory.vector, memory.updated, memory.decay)
    temporal_step.embed(arrays, flats(*state[1]), asking, flats(*weights), *_scales(graph), flat(out))
    return out


def _scales(graph: TemporalGraph) -> tuple[temporal_step.Rates, temporal_step.Sizes]:
    """The time encoding's factor and the rate of fading; the sizes as temporal_step.py takes them."""
    rate, parts, sizes = 0.0, graph.parts, graph.sizes
    if graph.fading is not None:
        rate = math.exp(graph.fading.log_rate.item())
    counts = (parts.neighbours, parts.heads, sizes.d, sizes.n_features + 1, sizes.d_time)
    return (np.float32(graph.encoding.scale), np.float32(rate)), counts
