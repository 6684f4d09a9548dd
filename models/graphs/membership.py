"""Membership graphs: undirected edges between all assets of one sector or of one industry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.graphs.snapshot import GraphError, Snapshot

SECTOR = "sector"
INDUSTRY = "industry"


def membership_snapshot(
    graph: str, as_of: np.datetime64, symbols: Sequence[str], groups: Mapping[str, str | None]
) -> Snapshot:
    """A graph with an edge of weight 1 between every two ``symbols`` of the same group.

    ``groups`` maps a symbol to its group. A symbol that maps to None, or is missing, has no edges. ``as_of`` is the
    panel's first bar, so this one snapshot is valid for the whole history. Raises GraphError for fewer than two
    symbols.
    """
    if len(symbols) < 2:
        raise GraphError(f"a graph needs at least two assets, got {len(symbols)}")
    group_names = [groups.get(symbol) for symbol in symbols]
    code_by_name = {name: code for code, name in enumerate(sorted({name for name in group_names if name}))}
    # an asset without a group gets a negative code that no other asset has
    codes = np.array([code_by_name[name] if name else -1 - i for i, name in enumerate(group_names)])
    src, dst = np.nonzero(np.triu(codes[:, None] == codes[None, :], k=1))
    no_window = np.datetime64("NaT", "us")
    return Snapshot(graph, as_of, no_window, src, dst, np.ones(len(src)), tuple(symbols))
