"""The temporal graph network with compiled passes on a CPU, for use where no gradient is needed.

``CompiledTemporalGraph`` computes what ``TemporalGraph`` computes. It takes the compiled passes of
models/layers/kernels/tgn_cpu.py for the paper's own parts in float32, and the torch operations it inherits for
everything else. Glossary as in temporal_graph.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.layers.kernels import tgn_cpu
from models.layers.kernels.gru_cpu import gru_cell
from models.layers.kernels.parallel import as_array, as_arrays
from models.layers.time_encoding import Functional
from models.nets.event_batch import EventBatch
from models.nets.temporal_graph import State, TemporalGraph, copied

FEW_NODES = 4  # up to so many nodes, embedding one by one in a compiled pass is faster than torch's batch operations


class CompiledTemporalGraph(TemporalGraph):
    """A TemporalGraph whose ``insert`` and ``embed`` run as compiled passes in evaluation on a CPU.

    The parameters, their names and their order are those of TemporalGraph: a state dict fits both.
    """

    def insert(self, state: State, events: EventBatch, in_place: bool = False) -> State:
        """As TemporalGraph.insert."""
        after = self._insert_compiled(state, events, in_place) if self._can_compile(state) else None
        return super().insert(state, events, in_place) if after is None else after

    def embed(self, state: State, nodes: Tensor, t: Tensor, node_features: Tensor | None = None) -> Tensor:
        """As TemporalGraph.embed."""
        few = node_features is None and nodes.shape == t.shape and len(nodes) <= FEW_NODES
        z = self._embed_compiled(state, nodes, t) if few and self._can_compile(state) else None
        return super().embed(state, nodes, t, node_features) if z is None else z

    def _can_compile(self, state: State) -> bool:
        """True where no gradient is needed and the compiled passes support parts, device and precision."""
        vector = state[0].vector
        if torch.is_grad_enabled() or self.training or vector.device.type != "cpu" or vector.dtype != torch.float32:
            return False
        return self.parts.has_compiled_passes and isinstance(self.encoding, Functional)

    def _insert_compiled(self, state: State, events: EventBatch, in_place: bool) -> State | None:
        """The state after the events.

        None, and nothing written, for events that ``insert`` refuses, or for a node with several messages at one time.
        """
        count = len(events.src)
        touched = 0
        if count and events.has_shapes(self.sizes.n_features):
            columns = as_arrays(*(column.contiguous() for column in events))
            rows = np.empty(2 * count, np.int64)
            one_message = self.parts.aggregator != "last"
            touched = tgn_cpu.newest_ends(columns[:3], state[0].vector.shape[0], rows, one_message)
        if touched < 1:
            return None
        memory, buffer = state if in_place else copied(state)
        nodes = memory.event_count.new_empty(touched)
        messages = memory.vector.new_empty(touched, self.message.out_features)
        faded = memory.vector.new_empty(touched, self.sizes.d)
        vector, updated, event_count, decay = as_arrays(*memory)
        tgn_cpu.write_messages(
            (vector, updated, decay),
            columns,
            rows[:touched],
            as_array(self.encoding.frequency),
            *self._kernel_scales(),
            as_arrays(nodes, messages, faded),
        )
        cell: Any = self.updater.cell  # type: ignore[union-attr]  # parts with compiled passes have an updater
        new, _, _ = gru_cell(messages, faded, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        memory.vector.index_copy_(0, nodes, new)
        tgn_cpu.write_neighbours(as_arrays(*buffer), (updated, event_count), columns, self.parts.neighbours)
        return memory, buffer

    def _embed_compiled(self, state: State, nodes: Tensor, t: Tensor) -> Tensor | None:
        """z (q, d) of a few nodes (q,) at the times t (q,); None for a node that the state does not have."""
        memory, buffer = state
        layer: Any = self.attention[0]
        out = memory.vector.new_empty(*nodes.shape, self.sizes.d)
        weights = [self.encoding.frequency, layer.query.weight, layer.query.bias, layer.key, layer.value]
        weights += [layer.merge_in.weight, layer.merge_in.bias, layer.merge_out.weight, layer.merge_out.bias]
        all_known = tgn_cpu.embed(
            as_arrays(memory.vector, memory.updated, memory.decay),
            as_arrays(*buffer),
            as_arrays(nodes.contiguous(), t.contiguous()),
            as_arrays(*weights),
            *self._kernel_scales(),
            as_array(out),
        )
        return out if all_known else None

    def _kernel_scales(self) -> tuple[tgn_cpu.Rates, tgn_cpu.Sizes]:
        """The time encoding's factor and the rate of fading; then the sizes in the order of tgn_cpu.Sizes."""
        rate = 0.0 if self.fading is None else math.exp(self.fading.log_rate.item())
        parts = self.parts
        sizes = self.sizes
        counts = (parts.neighbours, parts.heads, sizes.d, sizes.n_features + 1, sizes.d_time)
        return (np.float32(self.encoding.scale), np.float32(rate)), counts
