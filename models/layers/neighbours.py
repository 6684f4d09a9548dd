"""The newest neighbours of every node, in dense ring buffers.

Source: the neighbour loader of Rossi et al. 2020, 2006.10637, "most recent" sampling.
Glossary: n nodes · k slots a node · e events · r = 2e ends, one for each node an event touches · g nodes with an end
among the r · f features of an end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_NEIGHBOUR = -1


class NeighbourBuffer(NamedTuple):
    """The last k neighbours of every node. ``other`` (n, k) int64: the node at the far end, NO_NEIGHBOUR in unused
    slots; ``t`` (n, k) float64: time of the event; ``features`` (n, k, f). Slots are not sorted by time: a new
    neighbour overwrites the oldest slot."""

    other: Tensor
    t: Tensor
    features: Tensor


class Ends(NamedTuple):
    """Ends of events: ``node`` (r,), ``other`` (r,) the node at the far end, ``t`` (r,), ``features`` (r, f)."""

    node: Tensor
    other: Tensor
    t: Tensor
    features: Tensor

    def take(self, rows: Tensor) -> Ends:
        """The ends at the positions ``rows``."""
        return Ends(*(part.index_select(0, rows) for part in self))


class Groups(NamedTuple):
    """How sorted ends group by node: ``node`` (g,), each node once; ``group_index`` (r,), the group of every end;
    ``position`` (r,), its position in the group; ``size`` (g,), ends a group; ``newest`` (g,), time of its last end."""

    node: Tensor
    group_index: Tensor
    position: Tensor
    size: Tensor
    newest: Tensor


def empty_buffer(n: int, k: int, f: int, like: Tensor) -> NeighbourBuffer:
    """A buffer of n nodes without any neighbour, with the dtype and device of ``like``."""
    other = torch.full((n, k), NO_NEIGHBOUR, dtype=torch.int64, device=like.device)
    return NeighbourBuffer(other, like.new_zeros(n, k, dtype=torch.float64), like.new_zeros(n, k, f))


def group_by_node(ends: Ends) -> tuple[Ends, Groups]:
    """The ends sorted by node, then by time, and their groups.

    Simultaneous ends of a node are ordered by their features (then by the far end), so that the order does not depend
    on the order of arrival or on the numbering of the nodes.
    """
    if len(ends.node) == 2:  # the two ends of one event: two nodes, nothing to sort
        ones = torch.ones_like(ends.node)
        return ends, Groups(ends.node, ones.cumsum(0) - 1, ones - 1, ones, ends.t)
    ends = ends.take(_order(ends))
    node, size = torch.unique_consecutive(ends.node, return_counts=True)
    groups = torch.arange(len(node), device=node.device)
    group_index = torch.repeat_interleave(groups, size, output_size=len(ends.node))
    stop = size.cumsum(0)
    position = torch.arange(len(group_index), device=node.device) - (stop - size).index_select(0, group_index)
    return ends, Groups(node, group_index, position, size, ends.t.index_select(0, stop - 1))


def insert(buffer: NeighbourBuffer, count: Tensor, ends: Ends, groups: Groups) -> None:
    """Writes the sorted ``ends`` into ``buffer``, in place; ``count`` (n,): number of events each node had before.

    Of more than k ends of one node only the last k are written.
    """
    slots = buffer.other.shape[1]
    index = ends.node * slots + (count.index_select(0, ends.node) + groups.position) % slots
    if len(ends.node) > slots:
        rows = (groups.position >= groups.size.index_select(0, groups.group_index) - slots).nonzero()[:, 0]
        if len(rows) < len(index):
            ends = ends.take(rows)
            index = index.index_select(0, rows)
    buffer.other.view(-1).index_copy_(0, index, ends.other)
    buffer.t.view(-1).index_copy_(0, index, ends.t)
    buffer.features.view(-1, buffer.features.shape[2]).index_copy_(0, index, ends.features)


def neighbours(buffer: NeighbourBuffer, nodes: Tensor) -> NeighbourBuffer:
    """The buffer rows of ``nodes`` (m,), shaped (m, k), (m, k) and (m, k, f)."""
    return NeighbourBuffer(*(part.index_select(0, nodes) for part in buffer))


def _order(ends: Ends) -> Tensor:
    """Positions that sort the ends by node, then time, then features, then far end."""
    order = torch.argsort(ends.node, stable=True)
    t = ends.t.index_select(0, order)
    node = ends.node.index_select(0, order)
    if bool(((node[1:] != node[:-1]) | (t[1:] > t[:-1])).all()):
        return order
    return _sorted_by(ends.node, ends.t, _feature_key(ends.features), ends.other)


def _sorted_by(*keys: Tensor) -> Tensor:
    """Positions sorted by the first key, ties by the second, and so on."""
    order = torch.argsort(keys[-1], stable=True)
    for key in keys[-2::-1]:
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    return order


def _feature_key(features: Tensor) -> Tensor:
    """A sort key (r,) of each row of features, equal for equal rows."""
    weights = torch.arange(1, features.shape[1] + 1, dtype=torch.float64, device=features.device).sqrt()
    return (features.double() * weights).sum(-1)
