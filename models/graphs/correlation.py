"""Correlation graphs: rolling correlation of the assets' log total returns, and which pairs become edges.

Glossary: t bars, n assets, w bars of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.graphs.edge_selection import Edges, spanning_tree, strongest
from models.graphs.measures import MEASURES
from models.graphs.rolling import rolling_edges
from models.graphs.snapshot import GraphError
from models.graphs.windowed import ReturnWindows, check_window

KEEP = ("threshold", "top_k", "threshold_top_k", "mst")


@dataclass(frozen=True)
class CorrelationRule(ReturnWindows):
    """Undirected edges by the ``measure`` of each pair over ``window_bars``, one snapshot every ``every_bars``.

    ``keep`` selects the edges. "threshold": pairs with |measure| of at least ``min_correlation``. "top_k": pairs among
    the ``top_k`` strongest of either asset. "threshold_top_k": pairs that are both. "mst": the spanning tree of
    greatest total correlation. Only the measure "ewma" reads ``half_life_bars``.
    """

    window_bars: int
    min_correlation: float
    top_k: int
    every_bars: int
    measure: str = "pearson"
    keep: str = "threshold_top_k"
    half_life_bars: float = 20.0
    directed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, least=3)
        if not 0 < self.min_correlation <= 1:
            raise GraphError(f"min_correlation is {self.min_correlation}; it must be above 0 and at most 1")
        if self.top_k < 1:
            raise GraphError(f"top_k is {self.top_k}; it must be at least 1")
        if not self.half_life_bars > 0:
            raise GraphError(f"half_life_bars is {self.half_life_bars}; it must be above 0")
        for name, value, options in (("measure", self.measure, tuple(MEASURES)), ("keep", self.keep, KEEP)):
            if value not in options:
                raise GraphError(f"{name} is {value!r}; choose one of: {', '.join(options)}")

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """The edges of each window, see ``windowed.GraphRule``."""
        min_strength = 0.0 if self.keep == "top_k" else self.min_correlation
        top_k = None if self.keep == "threshold" else self.top_k
        if self.measure == "pearson" and self.keep != "mst":
            yield from rolling_edges(returns, ends, self.window_bars, min_strength, top_k)
            return
        options = {"half_life_bars": self.half_life_bars} if self.measure == "ewma" else {}
        for end in ends:
            matrix = MEASURES[self.measure](returns[end - self.window_bars + 1 : end + 1], **options)
            yield spanning_tree(matrix) if self.keep == "mst" else strongest(matrix, min_strength, top_k)
