"""Graphs made of a window of bars, one every k bars: what all of them share.

Glossary: t bars, n assets, w bars of the window.

Snapshots sit at every k-th bar counted from the panel's first, so that more bars never move them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from models.graphs.edge_selection import Edges
from models.graphs.snapshot import GraphError, Snapshot
from models.panel import Panel


class GraphRule(Protocol):
    """How one kind of graph is made: which windows, and which edges each gives."""

    @property
    def directed(self) -> bool: ...

    @property
    def window_bars(self) -> int: ...

    @property
    def every_bars(self) -> int: ...

    def inputs(self, bars: Panel) -> np.ndarray:
        """What the windows are cut from, (t, n, …), NaN where unknown. Raises GraphError."""
        ...

    def edges(self, inputs: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """(src, dst, weight) for the window of ``inputs`` that ends at each of the bars ``ends``, ascending."""
        ...


class OfReturns:
    """A rule whose windows are of log total returns."""

    def inputs(self, bars: Panel) -> np.ndarray:
        """``window_returns``."""
        return window_returns(bars)


def snapshots(graph: str, bars: Panel, rule: GraphRule, due: Iterable[int] | None = None) -> list[Snapshot]:
    """Graphs at the positions ``due`` of ``bars``, ascending (default: all that are), oldest first.

    Each is made of the rule's inputs at the ``window_bars`` bars up to and including its own. Raises GraphError for
    fewer than two assets, bars without any return, or a position where no full window ends.
    """
    inputs = rule.inputs(bars)
    ends = due_snapshots(rule, inputs) if due is None else np.array(list(due), np.int64)
    outside = ends[(ends < rule.window_bars) | (ends >= len(bars))]
    if len(outside):
        raise GraphError(
            f"{graph}: no window of {rule.window_bars} returns ends at bar {outside[0]}; those of {len(bars)} bars end "
            f"at {rule.window_bars} … {len(bars) - 1}"
        )
    starts = bars.ts[ends - rule.window_bars + 1]
    return [
        Snapshot(graph, as_of, start, *edges, bars.symbols, rule.directed)
        for as_of, start, edges in zip(bars.ts[ends], starts, rule.edges(inputs, ends), strict=True)
    ]


def due_snapshots(rule: GraphRule, inputs: np.ndarray) -> np.ndarray:
    """Positions of the snapshots among the bars of ``inputs`` (t, n, …): multiples of ``every_bars`` with a full window
    up to them in which something is known.

    The first bar has no return, so the first full window ends at position ``window_bars``.
    """
    every = np.arange(0, len(inputs), rule.every_bars)
    every = every[every >= rule.window_bars]
    known = np.cumsum(np.isfinite(inputs).any(axis=tuple(range(1, inputs.ndim))))
    return every[known[every] > known[every - rule.window_bars]]


def window_returns(bars: Panel) -> np.ndarray:
    """Log total returns (t, n), NaN where an asset has no bar or no earlier one."""
    if len(bars.symbols) < 2:
        raise GraphError(f"a graph needs at least two assets, the bars have {len(bars.symbols)}")
    has_return = bars.mask & (np.cumsum(bars.mask, axis=0) > 1)
    returns = np.log1p(bars.column("total_return"), where=has_return, out=np.full(bars.mask.shape, np.nan))
    if len(bars) and not np.isfinite(returns).any():
        raise GraphError(f"no asset has a return in the {len(bars)} bars up to {bars.ts[-1]}; load bars first")
    return returns


def check_window(window_bars: int, every_bars: int, least: int) -> None:
    """Raises GraphError for a window of fewer than ``least`` bars, or snapshots that never come."""
    if window_bars < least:
        raise GraphError(f"window_bars is {window_bars}; this graph needs at least {least} bars")
    if every_bars < 1:
        raise GraphError(f"every_bars is {every_bars}; it must be at least 1")
