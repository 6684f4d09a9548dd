"""Windowed graphs: a snapshot every k bars, built from the window of bars that ends with the snapshot's own bar.

Glossary: t bars, n assets, e edges, w bars of the window (window_bars), k bars between two snapshots (every_bars).

Snapshots are at every k-th bar, counted from the panel's first bar. So bars added later never move a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from models.graphs.edge_selection import Edges
from models.graphs.snapshot import GraphError, Snapshot
from models.panel import Panel


class GraphRule(Protocol):
    """A rule that computes the edges of one windowed graph.

    To add a graph of returns, write a frozen dataclass with these five members and enter it in RETURN_GRAPHS of
    ``catalogue.py``. It inherits ``inputs`` from ``ReturnWindows``. To add a graph of trades, add a link to
    ``liquidity.TradeRule`` and enter it in TRADE_GRAPHS: only a TradeRule receives the panel of trades, every other
    rule receives the panel of bars.

    The fields of the dataclass are the rule's settings. Their names and values are stored with every snapshot, and a
    snapshot whose stored settings differ is built again. ``__post_init__`` raises GraphError for invalid settings;
    ``check_window`` checks ``window_bars`` and ``every_bars``.
    """

    @property
    def directed(self) -> bool:
        """True if an edge runs from src to dst only. Otherwise ``edges`` gives each edge once, with src < dst."""
        ...

    @property
    def window_bars(self) -> int:
        """w: the number of bars that the edges of a snapshot are computed from, its own bar included."""
        ...

    @property
    def every_bars(self) -> int:
        """k: the number of bars from one snapshot to the next."""
        ...

    def inputs(self, bars: Panel) -> np.ndarray:
        """The array (t, n, …) that the windows are slices of, NaN where a value is unknown.

        It has one row per bar of ``bars``, and a row depends on no later bar. Raises GraphError for bars that the graph
        cannot be built from.
        """
        ...

    def edges(self, inputs: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Yields the edges (src, dst, weight), (e,) each, of one window for every position in ``ends``.

        ``ends`` are ascending; the window of ``end`` is ``inputs[end - window_bars + 1 : end + 1]``. Its edges are a
        function of these rows alone, to the bit. ``src`` and ``dst`` are int64 positions of assets; ``weight`` is
        float64 and finite. No edge runs from an asset to itself, and none occurs twice. A window without edges yields
        empty arrays.
        """
        ...


class ReturnWindows:
    """Base class of the rules whose windows are log total returns (w, n)."""

    def inputs(self, bars: Panel) -> np.ndarray:
        """See ``window_returns``."""
        return window_returns(bars)


def build_snapshots(graph: str, bars: Panel, rule: GraphRule, due: Iterable[int] | None = None) -> list[Snapshot]:
    """The snapshots at the positions ``due`` of ``bars``, oldest first; by default at all of ``snapshot_positions``.

    ``due`` must be ascending. A snapshot is built from the ``window_bars`` bars that end with its own bar. Raises
    GraphError for fewer than two assets, for bars that the rule refuses, and for a position at which no full window
    ends.
    """
    inputs = rule.inputs(bars)
    ends = snapshot_positions(rule, inputs) if due is None else np.array(list(due), np.int64)
    invalid_ends = ends[(ends < rule.window_bars) | (ends >= len(bars))]
    if len(invalid_ends):
        raise GraphError(
            f"{graph}: no window of {rule.window_bars} returns ends at bar {invalid_ends[0]}; the windows of "
            f"{len(bars)} bars end at {rule.window_bars} … {len(bars) - 1}"
        )
    starts = bars.ts[ends - rule.window_bars + 1]
    return [
        Snapshot(graph, as_of, start, *edges, bars.symbols, rule.directed)
        for as_of, start, edges in zip(bars.ts[ends], starts, rule.edges(inputs, ends), strict=True)
    ]


def snapshot_positions(rule: GraphRule, inputs: np.ndarray) -> np.ndarray:
    """Positions of the snapshots among the bars of ``inputs`` (t, n, …), ascending int64.

    They are the multiples of ``every_bars`` at which a full window ends, without the positions whose window has no
    value at all. The first bar has no return, so the first full window ends at position ``window_bars``.
    """
    ends = np.arange(0, len(inputs), rule.every_bars)
    ends = ends[ends >= rule.window_bars]
    bars_with_values = np.cumsum(np.isfinite(inputs).any(axis=tuple(range(1, inputs.ndim))))
    return ends[bars_with_values[ends] > bars_with_values[ends - rule.window_bars]]


def window_returns(bars: Panel) -> np.ndarray:
    """Log total returns (t, n), NaN where an asset has no bar and at its first bar.

    Raises GraphError for fewer than two assets, and for bars without any return.
    """
    if len(bars.symbols) < 2:
        raise GraphError(f"a graph needs at least two assets, the bars have {len(bars.symbols)}")
    has_return = bars.mask & (np.cumsum(bars.mask, axis=0) > 1)
    returns = np.log1p(bars.column("total_return"), where=has_return, out=np.full(bars.mask.shape, np.nan))
    if len(bars) and not np.isfinite(returns).any():
        raise GraphError(f"no asset has a return in the {len(bars)} bars up to {bars.ts[-1]}; load bars first")
    return returns


def check_window(window_bars: int, every_bars: int, min_bars: int) -> None:
    """Raises GraphError for a window of fewer than ``min_bars`` bars, or ``every_bars`` below 1."""
    if window_bars < min_bars:
        raise GraphError(f"window_bars is {window_bars}; this graph needs at least {min_bars} bars")
    if every_bars < 1:
        raise GraphError(f"every_bars is {every_bars}; it must be at least 1")
