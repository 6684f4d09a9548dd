"""The temporal graph network with compiled passes on a CPU, for evaluation without gradients.

``CompiledTemporalGraph`` computes what ``TemporalGraph`` computes. For the parts of TGN in float32 it uses the compiled
passes of models/layers/kernels/tgn_cpu.py; for everything else it uses the torch operations that it inherits.

Glossary: n nodes · e events · q nodes to embed · d channels · z embedding.
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
from models.nets.temporal_graph import State, TemporalGraph, copy_state

MAX_COMPILED_NODES = 4  # more nodes are embedded faster by torch's batch operations than one by one in a compiled pass


class CompiledTemporalGraph(TemporalGraph):
    """A TemporalGraph whose ``insert`` and ``embed`` run as compiled passes in evaluation mode on a CPU.

    The parameters have the names and the order of those in TemporalGraph, so a state dict fits both.
    """

    def insert(self, state: State, events: EventBatch, in_place: bool = False) -> State:
        """The state after the events, as TemporalGraph.insert."""
        next_state = self._insert_compiled(state, events, in_place) if self._can_compile(state) else None
        return super().insert(state, events, in_place) if next_state is None else next_state

    def embed(self, state: State, nodes: Tensor, t: Tensor, node_features: Tensor | None = None) -> Tensor:
        """z (q, d) of ``nodes``, as TemporalGraph.embed."""
        fits_pass = node_features is None and nodes.shape == t.shape and len(nodes) <= MAX_COMPILED_NODES
        z = self._embed_compiled(state, nodes, t) if fits_pass and self._can_compile(state) else None
        return super().embed(state, nodes, t, node_features) if z is None else z

    def _can_compile(self, state: State) -> bool:
        """True in evaluation without gradients, if the compiled passes support the parts, the device and the dtype."""
        memory, _ = state
        vector = memory.vector
        if torch.is_grad_enabled() or self.training or vector.device.type != "cpu" or vector.dtype != torch.float32:
            return False
        return self.parts.has_compiled_passes and isinstance(self.encoding, Functional)

    def _insert_compiled(self, state: State, events: EventBatch, in_place: bool) -> State | None:
        """The state after the events. Returns None and writes nothing if the compiled pass cannot insert them.

        It cannot insert events that ``insert`` refuses, events of one node that are not in strictly ascending order of
        time, and several events of one node where the aggregator needs more than the last message.
        """
        memory, _ = state
        e = len(events.src)
        if not e or not events.has_shapes(self.sizes.n_features):
            return None
        columns = as_arrays(*(column.contiguous() for column in events))
        src, dst, t, _ = columns
        end_index = np.empty(2 * e, np.int64)  # the newest end of each node: i is source i, e + i is destination i
        needs_one_message = self.parts.aggregator != "last"
        n_nodes = tgn_cpu.find_newest_ends((src, dst, t), memory.vector.shape[0], end_index, needs_one_message)
        if n_nodes < 1:
            return None
        memory, buffer = state if in_place else copy_state(state)
        nodes = memory.event_count.new_empty(n_nodes)
        messages = memory.vector.new_empty(n_nodes, self.message.out_features)
        faded = memory.vector.new_empty(n_nodes, self.sizes.d)
        vector, updated, event_count, decay = as_arrays(*memory)
        tgn_cpu.write_messages(
            (vector, updated, decay),
            columns,
            end_index[:n_nodes],
            as_array(self.encoding.frequency),
            *self._kernel_scales(),
            as_arrays(nodes, messages, faded),
        )
        cell: Any = self.updater.cell  # type: ignore[union-attr]  # parts with compiled passes have an updater
        new_vectors, _, _ = gru_cell(messages, faded, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        memory.vector.index_copy_(0, nodes, new_vectors)
        tgn_cpu.write_neighbours(as_arrays(*buffer), (updated, event_count), columns, self.parts.neighbours)
        return memory, buffer

    def _embed_compiled(self, state: State, nodes: Tensor, t: Tensor) -> Tensor | None:
        """z (q, d) of a few nodes (q,) at the times t (q,); None if the state lacks one of the nodes."""
        memory, buffer = state
        layer: Any = self.attention[0]
        z = memory.vector.new_empty(*nodes.shape, self.sizes.d)
        weights = [self.encoding.frequency, layer.query.weight, layer.query.bias, layer.key, layer.value]
        weights += [layer.merge_in.weight, layer.merge_in.bias, layer.merge_out.weight, layer.merge_out.bias]
        has_all_nodes = tgn_cpu.embed(
            as_arrays(memory.vector, memory.updated, memory.decay),
            as_arrays(*buffer),
            as_arrays(nodes.contiguous(), t.contiguous()),
            as_arrays(*weights),
            *self._kernel_scales(),
            as_array(z),
        )
        return z if has_all_nodes else None

    def _kernel_scales(self) -> tuple[tgn_cpu.Rates, tgn_cpu.Sizes]:
        """Two tuples, as the passes expect them: the time encoding's factor and the decay rate of memories; the sizes
        in the order of tgn_cpu.Sizes."""
        rate = 0.0 if self.fading is None else math.exp(self.fading.log_rate.item())
        parts = self.parts
        sizes = self.sizes
        kernel_sizes = (parts.neighbours, parts.heads, sizes.d, sizes.n_features + 1, sizes.d_time)
        return (np.float32(self.encoding.scale), np.float32(rate)), kernel_sizes
