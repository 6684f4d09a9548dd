"""The newest neighbours of every node, in dense ring buffers.

Source: the neighbour loader of Rossi et al. 2020, 2006.10637, "most recent" sampling.
Glossary: n nodes · k slots a node · e events, each with a source and another node as destination · r = 2e ends, one for
each node of an event; the other node is its far end · g nodes with an end among the r · f features of an end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_NEIGHBOUR = -1


class NeighbourBuffer(NamedTuple):
    """The far ends of the last k events of every node.

    ``other`` (n, k) int64: the node at the far end, NO_NEIGHBOUR in unused slots; ``t`` (n, k) float64: time of the
    event, 0 in unused slots; ``features`` (n, k, f). Slots are not sorted by time: a new neighbour overwrites the
    oldest slot. A node is listed once for each of its events.
    """

    other: Tensor
    t: Tensor
    features: Tensor


class Ends(NamedTuple):
    """Ends of events: ``node`` (r,), ``other`` (r,) the node at the far end, ``t`` (r,) float64 time of the event,
    ``features`` (r, f)."""

    node: Tensor
    other: Tensor
    t: Tensor
    features: Tensor

    def take(self, index: Tensor) -> Ends:
        """The ends at the positions ``index`` (int64), in that order."""
        return Ends(*(tensor.index_select(0, index) for tensor in self))


class Groups(NamedTuple):
    """How sorted ends group by node: ``node`` (g,), each node once; ``group_index`` (r,), the group of every end;
    ``position`` (r,), its position in the group, from 0; ``size`` (g,), number of ends; ``newest`` (g,), time of the
    last end."""

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
    """The ends sorted by node, then by time, and their groups. The two ends of a single event keep their order.

    Simultaneous ends of a node are ordered by their features (then by the far end), so that the order does not depend
    on the order of arrival or on the numbering of the nodes.
    """
    if len(ends.node) == 2:  # the ends of one event belong to two nodes: nothing to sort
        ones = torch.ones_like(ends.node)
        return ends, Groups(ends.node, ones.cumsum(0) - 1, ones - 1, ones, ends.t)
    ends = ends.take(_sort_order(ends))
    node, size = torch.unique_consecutive(ends.node, return_counts=True)
    groups = torch.arange(len(node), device=node.device)
    group_index = torch.repeat_interleave(groups, size, output_size=len(ends.node))
    group_stop = size.cumsum(0)
    position = torch.arange(len(group_index), device=node.device) - (group_stop - size).index_select(0, group_index)
    return ends, Groups(node, group_index, position, size, ends.t.index_select(0, group_stop - 1))


def insert(buffer: NeighbourBuffer, event_count: Tensor, ends: Ends, groups: Groups) -> None:
    """Writes the sorted ``ends`` into ``buffer``, in place.

    ``event_count`` (n,) int64: number of events of each node before these.
    If a node has more than k ends, only the last k are written.
    """
    n_slots = buffer.other.shape[1]
    index = ends.node * n_slots + (event_count.index_select(0, ends.node) + groups.position) % n_slots
    if len(ends.node) > n_slots:
        is_newest = groups.position >= groups.size.index_select(0, groups.group_index) - n_slots
        newest = is_newest.nonzero()[:, 0]
        if len(newest) < len(index):
            ends = ends.take(newest)
            index = index.index_select(0, newest)
    buffer.other.view(-1).index_copy_(0, index, ends.other)
    buffer.t.view(-1).index_copy_(0, index, ends.t)
    buffer.features.view(-1, buffer.features.shape[2]).index_copy_(0, index, ends.features)


def neighbours_of(buffer: NeighbourBuffer, nodes: Tensor) -> NeighbourBuffer:
    """The buffer rows of ``nodes`` (m,), shaped (m, k), (m, k) and (m, k, f)."""
    return NeighbourBuffer(*(tensor.index_select(0, nodes) for tensor in buffer))


def _sort_order(ends: Ends) -> Tensor:
    """Positions that sort the ends by node, then time, then features, then far end."""
    order = torch.argsort(ends.node, stable=True)
    t = ends.t.index_select(0, order)
    node = ends.node.index_select(0, order)
    if bool(((node[1:] != node[:-1]) | (t[1:] > t[:-1])).all()):
        return order
    return _sort_by(ends.node, ends.t, _feature_key(ends.features), ends.other)


def _sort_by(*keys: Tensor) -> Tensor:
    """Positions that sort by the first key, ties by the second, and so on; remaining ties keep their order."""
    order = torch.argsort(keys[-1], stable=True)
    for key in keys[-2::-1]:
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    return order


def _feature_key(features: Tensor) -> Tensor:
    """A sort key (r,) float64 for each row of features (r, f): a weighted sum, equal for equal rows.

    Different rows have equal keys only in rare cases, since the weights √1, √2, √3, … are mostly irrational.
    """
    weights = torch.arange(1, features.shape[1] + 1, dtype=torch.float64, device=features.device).sqrt()
    return (features.double() * weights).sum(-1)
