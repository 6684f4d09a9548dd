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
    vector = state[0].vector
    if torch.is_grad_enabled() or graph.training or vector.device.type != "cpu" or vector.dtype != torch.float32:
        return False
    return graph.parts.plain and isinstance(graph.encoding, Functional)


def insert(graph: TemporalGraph, state: State, contacts: Contacts, in_place: bool) -> State | None:
    """The state after the events; None, and nothing written, where an event cannot be, or where a node has messages
    that come together."""
    e, g = len(contacts.src), 0
    if e and contacts.fit(graph.sizes.n_features):
        given, rows = flats(*(column.contiguous() for column in contacts)), np.empty(2 * e, np.int64)
        g = temporal_step.newest(given[:3], state[0].vector.shape[0], rows, graph.parts.aggregator != "last")
    if g < 1:
        return None
    if not in_place:
        state = Memory(*(part.clone() for part in state[0])), Ring(*(part.clone() for part in state[1]))
    (vector, updated, seen, decay), ring = state
    nodes, said, s = (
        seen.new_empty(g),
        vector.new_empty(g, graph.message.out_features),
        vector.new_empty(g, graph.sizes.d),
    )
    old, when, counts, forgets = flats(vector, updated, seen, decay)
    frequency, out = flat(graph.encoding.frequency), flats(nodes, said, s)
    temporal_step.tell((old, when, forgets), given, rows[:g], frequency, *_scales(graph), out)
    cell: Any = graph.updater.cell  # type: ignore[union-attr]  # there is one where the parts are known
    new, _, _ = gated(said, s, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    vector.index_copy_(0, nodes, new)
    temporal_step.remember(flats(*ring), (when, counts), given, graph.parts.neighbours)
    return state


def embed(graph: TemporalGraph, state: State, nodes: Tensor, t: Tensor) -> Tensor | None:
    """z (q, d) of a few nodes (q,) at the times t (q,); None where there is no such node."""
    layer: Any = graph.attention[0]
    merge, out = (layer.merge[0], layer.merge[3]), state[0].vector.new_empty(*nodes.shape, graph.sizes.d)
    weights = [graph.encoding.frequency, layer.query.weight, layer.query.bias, layer.key, layer.value]
    weights += [part for linear in merge for part in (linear.weight, linear.bias)]
    memory, asking = state[0], flats(nodes.contiguous(), t.contiguous())
    arrays = flats(memory.vector, memory.updated, memory.decay)
    known = temporal_step.embed(arrays, flats(*state[1]), asking, flats(*weights), *_scales(graph), flat(out))
    return out if known else None


def _scales(graph: TemporalGraph) -> tuple[temporal_step.Rates, temporal_step.Sizes]:
    """The time encoding's factor and the rate of fading; the sizes as temporal_step.py takes them."""
    rate, parts, sizes = 0.0, graph.parts, graph.sizes
    if graph.fading is not None:
        rate = math.exp(graph.fading.log_rate.item())
    counts = (parts.neighbours, parts.heads, sizes.d, sizes.n_features + 1, sizes.d_time)
    return (np.float32(graph.encoding.scale), np.float32(rate)), counts
