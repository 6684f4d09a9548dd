"""Graphs that networks learn themselves: read out of their forecasts, stored as graph_snapshots and graph_edges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.graphs.snapshot import Snapshot
from models.graphs.stability import TRAIL
from models.nets.ssm_gnn import LEARNED, learned_graph
from models.training.fit import Predictions
from tasks.graph_rows import edge_rows, snapshot_rows, write_snapshots
from tasks.night import Night
from tasks.panels import load_snapshots

EVERY_BARS = 5  # between stored graphs, counted from the panel's first bar, so that a longer panel moves none


def learned_snapshots(predictions: Predictions, first: int, model: str, seed: int) -> list[Snapshot]:
    """Snapshots of the learned graph at every EVERY_BARS-th bar; empty for a network that reads a stored graph.

    ``first`` is the position in the panel of the first predicted bar. The graph is named attention:MODEL, with a seed
    above 0 attention:MODEL:SEED.
    """
    if predictions.edges is None:
        return []
    name = f"{LEARNED}:{model}" + (f":{seed}" if seed else "")
    return [
        learned_graph(name, predictions.edges[k].astype(np.float64), predictions.ts[k], predictions.symbols)
        for k in range(-first % EVERY_BARS, len(predictions.ts), EVERY_BARS)
    ]


def with_trailing(night: Night, learned: Sequence[Snapshot], ts: np.ndarray) -> list[Snapshot]:
    """``learned`` after the stored snapshots that they are compared with, oldest first; ``ts`` are the panel's bars."""
    start = int(np.searchsorted(ts, learned[0].as_of)) if learned else 0
    if not start:
        return list(learned)
    first = ts[max(0, start - TRAIL * EVERY_BARS)]
    return [*load_snapshots(night, learned[0].graph, last=ts[start - 1], first=first), *learned]


def write_learned_graphs(
    con: Any, night: Night, learned: Sequence[Snapshot], series: Sequence[Snapshot], **origin: object
) -> None:
    """Writes the snapshots, all of one graph, over those of the same dates.

    ``series`` comes from ``with_trailing``; ``origin``, such as the trial, is stored as the snapshots' parameters.
    """
    if learned:
        parameters = [json.dumps(origin, sort_keys=True)] * len(learned)
        rows = snapshot_rows(learned, series, parameters, [None] * len(learned))
        write_snapshots(con, night, learned[0].graph, rows, edge_rows(learned))
