"""Correlation graphs: undirected edges between assets whose log total returns correlate over a rolling window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.graphs.edge_selection import Edges, spanning_tree, strongest_edges
from models.graphs.measures import MEASURES
from models.graphs.rolling import rolling_edges
from models.graphs.snapshot import GraphError
from models.graphs.windowed import ReturnWindows, check_window

KEEP_OPTIONS = ("threshold", "top_k", "threshold_top_k", "mst")


@dataclass(frozen=True)
class CorrelationRule(ReturnWindows):
    """Undirected edges, weighted by the correlation of a pair over ``window_bars`` bars, every ``every_bars`` bars.

    ``measure`` is the kind of correlation, a name in ``measures.MEASURES``; only "ewma" reads ``half_life_bars``.
    ``keep`` says which pairs become edges, by the absolute value of their correlation:
    "threshold": at least ``min_correlation``. "top_k": among the ``top_k`` greatest of either asset.
    "threshold_top_k": both conditions hold. "mst": the spanning tree with the greatest sum of correlations.
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
        check_window(self.window_bars, self.every_bars, min_bars=3)
        if not 0 < self.min_correlation <= 1:
            raise GraphError(f"min_correlation is {self.min_correlation}; it must be above 0 and at most 1")
        if self.top_k < 1:
            raise GraphError(f"top_k is {self.top_k}; it must be at least 1")
        if not self.half_life_bars > 0:
            raise GraphError(f"half_life_bars is {self.half_life_bars}; it must be above 0")
        for name, value, options in (("measure", self.measure, tuple(MEASURES)), ("keep", self.keep, KEEP_OPTIONS)):
            if value not in options:
                raise GraphError(f"{name} is {value!r}; choose one of: {', '.join(options)}")

    def edges(self, returns: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Yields the edges of each window, see ``windowed.GraphRule``."""
        min_strength = 0.0 if self.keep == "top_k" else self.min_correlation
        top_k = None if self.keep == "threshold" else self.top_k
        if self.measure == "pearson" and self.keep != "mst":
            yield from rolling_edges(returns, ends, self.window_bars, min_strength, top_k)
            return
        measure_options = {"half_life_bars": self.half_life_bars} if self.measure == "ewma" else {}
        for end in ends:
            matrix = MEASURES[self.measure](returns[end - self.window_bars + 1 : end + 1], **measure_options)
            yield spanning_tree(matrix) if self.keep == "mst" else strongest_edges(matrix, min_strength, top_k)
