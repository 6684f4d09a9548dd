"""Windowed graphs: a snapshot every k bars, each built from a window of bars that ends with its own.

Glossary: t bars, n assets, w bars of the window.

Snapshots are at every k-th bar counted from the panel's first, so later bars never move them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from models.graphs.edge_selection import Edges
from models.graphs.snapshot import GraphError, Snapshot
from models.panel import Panel


class GraphRule(Protocol):
    """How the edges of one windowed graph are made. To add a graph, write a frozen dataclass with these five members
    and enter it in RETURN_GRAPHS of ``catalogue.py``.

    The fields of the dataclass are the rule's settings. Their names and values are stored with every snapshot, and a
    snapshot whose stored settings differ is built again. ``__post_init__`` raises GraphError for settings that make no
    sense; ``check_window`` checks ``window_bars`` and ``every_bars``. A rule on returns inherits ``inputs`` from
    ``ReturnWindows``. A graph of trades is a new link of ``liquidity.TradeRule`` and an entry in TRADE_GRAPHS: only a
    TradeRule receives the panel of trades, every other rule the panel of bars.
    """

    @property
    def directed(self) -> bool:
        """True if an edge runs from src to dst only. Otherwise ``edges`` gives each edge once, with src < dst."""
        ...

    @property
    def window_bars(self) -> int:
        """w: how many bars the edges of a snapshot are made of, its own bar included."""
        ...

    @property
    def every_bars(self) -> int:
        """How many bars apart the snapshots are."""
        ...

    def inputs(self, bars: Panel) -> np.ndarray:
        """What the windows are cut from: an array (t, n, …) with one row for each bar of ``bars``, NaN where unknown.

        A row depends on no later bar. Raises GraphError for bars that the graph cannot be made of.
        """
        ...

    def edges(self, inputs: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """(src, dst, weight), (e,) each, for every position in ``ends``, ascending: the edges of the window
        ``inputs[end - window_bars + 1 : end + 1]``.

        The edges depend on that window alone, to the bit: not on other rows of ``inputs`` and not on the other
        ``ends``. src and dst are int64 positions of assets, weight is float64 and finite; no edge runs from an asset
        to itself or is given twice. A window without edges gives empty arrays.
        """
        ...


class ReturnWindows:
    """Base of the rules whose windows are of log total returns (w, n)."""

    def inputs(self, bars: Panel) -> np.ndarray:
        """See ``window_returns``."""
        return window_returns(bars)


def snapshots(graph: str, bars: Panel, rule: GraphRule, due: Iterable[int] | None = None) -> list[Snapshot]:
    """Snapshots at the positions ``due`` of ``bars``, ascending; by default at all of ``due_snapshots``. Oldest first.

    Each is built from the rule's inputs of the ``window_bars`` bars up to and including its own. Raises GraphError for
    fewer than two assets, bars without any return, or a position at which no full window ends.
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
    """Positions of the snapshots among the bars of ``inputs`` (t, n, …): the multiples of ``every_bars`` at which a
    full window ends that has at least one value.

    The first bar has no return, so the first full window ends at position ``window_bars``.
    """
    ends = np.arange(0, len(inputs), rule.every_bars)
    ends = ends[ends >= rule.window_bars]
    bars_with_values = np.cumsum(np.isfinite(inputs).any(axis=tuple(range(1, inputs.ndim))))
    return ends[bars_with_values[ends] > bars_with_values[ends - rule.window_bars]]


def window_returns(bars: Panel) -> np.ndarray:
    """Log total returns (t, n), NaN where an asset has no bar or no earlier bar.

    Raises GraphError for fewer than two assets, or bars without any return.
    """
    if len(bars.symbols) < 2:
        raise GraphError(f"a graph needs at least two assets, the bars have {len(bars.symbols)}")
    has_return = bars.mask & (np.cumsum(bars.mask, axis=0) > 1)
    returns = np.log1p(bars.column("total_return"), where=has_return, out=np.full(bars.mask.shape, np.nan))
    if len(bars) and not np.isfinite(returns).any():
        raise GraphError(f"no asset has a return in the {len(bars)} bars up to {bars.ts[-1]}; load bars first")
    return returns


def check_window(window_bars: int, every_bars: int, least: int) -> None:
    """Raises GraphError for a window of fewer than ``least`` bars, or ``every_bars`` below 1."""
    if window_bars < least:
        raise GraphError(f"window_bars is {window_bars}; this graph needs at least {least} bars")
    if every_bars < 1:
        raise GraphError(f"every_bars is {every_bars}; it must be at least 1")
