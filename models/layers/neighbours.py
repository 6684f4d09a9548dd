"""The newest neighbours of every node, in dense ring buffers.

Source: the neighbour loader of Rossi et al. 2020, 2006.10637, "most recent" sampling.
Glossary: n nodes · k slots a node · e events · r = 2e ends, one for each node an event touches · f features of an end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_NEIGHBOUR = -1


class NeighbourBuffer(NamedTuple):
    """``other`` (n, k) int64, the node at the far end, NOBODY in slots not yet used; ``t`` (n, k) float64, when;
    ``features`` (n, k, f). The slots stand in no order of time: the oldest is the next to be written over."""

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
    """Ends in rows, grouped by node and by time within: ``node`` (g,) one of each; ``of`` (r,) the group of every row;
    ``place`` (r,) its position in the group; ``size`` (g,); ``newest`` (g,) time of its last end."""

    node: Tensor
    of: Tensor
    place: Tensor
    size: Tensor
    newest: Tensor


def empty_buffer(n: int, k: int, f: int, like: Tensor) -> NeighbourBuffer:
    """Nobody has met anybody yet."""
    other = torch.full((n, k), NO_NEIGHBOUR, dtype=torch.int64, device=like.device)
    return NeighbourBuffer(other, like.new_zeros(n, k, dtype=torch.float64), like.new_zeros(n, k, f))


def grouped(ends: Ends) -> tuple[Ends, Groups]:
    """The ends sorted by node, then by time, and their groups.

    Simultaneous ends of a node are put in an order that follows from their features (then from the far end), neither
    from the order they came in nor from how the nodes are numbered.
    """
    if len(ends.node) == 2:  # the two ends of one event: two nodes, nothing to sort
        alone = torch.ones_like(ends.node)
        return ends, Groups(ends.node, alone.cumsum(0) - 1, alone - 1, alone, ends.t)
    ends = ends.take(_order(ends))
    node, size = torch.unique_consecutive(ends.node, return_counts=True)
    of = torch.repeat_interleave(torch.arange(len(node), device=node.device), size, output_size=len(ends.node))
    stop = size.cumsum(0)
    place = torch.arange(len(of), device=of.device) - (stop - size).index_select(0, of)
    return ends, Groups(node, of, place, size, ends.t.index_select(0, stop - 1))


def insert(ring: NeighbourBuffer, count: Tensor, ends: Ends, groups: Groups) -> None:
    """Writes the sorted ``ends`` into ``ring``, in place; ``count`` (n,): how many events each node had before.

    Of more than k ends of one node the last k stay.
    """
    slots = ring.other.shape[1]
    place = ends.node * slots + (count.index_select(0, ends.node) + groups.place) % slots
    if len(ends.node) > slots:
        rows = (groups.place >= groups.size.index_select(0, groups.of) - slots).nonzero()[:, 0]
        if len(rows) < len(place):
            ends, place = ends.take(rows), place.index_select(0, rows)
    ring.other.view(-1).index_copy_(0, place, ends.other)
    ring.t.view(-1).index_copy_(0, place, ends.t)
    ring.features.view(-1, ring.features.shape[2]).index_copy_(0, place, ends.features)


def neighbours(ring: NeighbourBuffer, nodes: Tensor) -> NeighbourBuffer:
    """The rows of ``nodes`` (m,): (m, k), (m, k), (m, k, f)."""
    return NeighbourBuffer(*(part.index_select(0, nodes) for part in ring))


def _order(ends: Ends) -> Tensor:
    """Positions by node, then time, then features, then far end."""
    order = torch.argsort(ends.node, stable=True)
    t = ends.t.index_select(0, order)
    node = ends.node.index_select(0, order)
    if bool(((node[1:] != node[:-1]) | (t[1:] > t[:-1])).all()):
        return order
    return _sorted_by(ends.node, ends.t, _content(ends.features), ends.other)


def _sorted_by(*keys: Tensor) -> Tensor:
    """Positions sorted by the first key, ties by the second, and so on."""
    order = torch.argsort(keys[-1], stable=True)
    for key in keys[-2::-1]:
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    return order


def _content(features: Tensor) -> Tensor:
    """One number (r,) for each row of features, the same for the same features."""
    weights = torch.arange(1, features.shape[1] + 1, dtype=torch.float64, device=features.device).sqrt()
    return (features.double() * weights).sum(-1)
