"""Membership graphs: links between all assets of one sector or one industry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.graphs.snapshot import GraphError, Snapshot

SECTOR = "sector"
INDUSTRY = "industry"


def membership_snapshot(
    graph: str, as_of: np.datetime64, symbols: Sequence[str], groups: Mapping[str, str | None]
) -> Snapshot:
    """A graph that links every two ``symbols`` of one group with weight 1; a symbol without a group has no links.

    ``groups`` gives the group of each symbol. ``as_of`` is the panel's first bar: the one snapshot is valid for the
    whole history. Raises GraphError for fewer than two symbols.
    """
    if len(symbols) < 2:
        raise GraphError(f"a graph needs at least two assets, got {len(symbols)}")
    names = [groups.get(symbol) for symbol in symbols]
    # every asset without a group is a group of its own
    codes = {name: k for k, name in enumerate(sorted({name for name in names if name}))}
    group = np.array([codes[name] if name else -1 - k for k, name in enumerate(names)])
    src, dst = np.nonzero(np.triu(group[:, None] == group[None, :], k=1))
    no_window = np.datetime64("NaT", "us")
    return Snapshot(graph, as_of, no_window, src, dst, np.ones(len(src)), tuple(symbols))
