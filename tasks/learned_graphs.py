"""Graphs that networks learn, such as attention weights: read from their predictions, and stored like other graphs.

Glossary: t bars.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.graphs.snapshot import Snapshot
from models.graphs.stability import MAX_TRAILING
from models.nets.ssm_gnn import LEARNED, learned_snapshot
from models.training.fit import Predictions
from tasks.graph_rows import edge_rows, snapshot_rows, write_snapshots
from tasks.night import Night
from tasks.panels import load_snapshots

EVERY_BARS = 5  # one learned snapshot per so many bars; counted from the panel's first bar, so new bars move none


def learned_snapshots(predictions: Predictions, first: int, model: str, seed: int) -> list[Snapshot]:
    """Snapshots of the graph that the network has learned, at every EVERY_BARS-th bar of the panel, oldest first.

    The list is empty for a network that learns no graph. ``first`` is the position in the panel of the first predicted
    bar. The graph is named attention:MODEL for seed 0 and attention:MODEL:SEED for other seeds.
    """
    if predictions.edges is None:
        return []
    name = f"{LEARNED}:{model}" + (f":{seed}" if seed else "")
    return [
        learned_snapshot(name, predictions.edges[k].astype(np.float64), predictions.ts[k], predictions.symbols)
        for k in range(-first % EVERY_BARS, len(predictions.ts), EVERY_BARS)
    ]


def with_trailing_snapshots(night: Night, learned: Sequence[Snapshot], ts: np.ndarray) -> list[Snapshot]:
    """The stored snapshots with which the stability of ``learned`` is computed, then ``learned``; oldest first.

    ``ts`` (t,) are the open times of the panel's bars.
    """
    start = int(np.searchsorted(ts, learned[0].as_of)) if learned else 0
    if not start:
        return list(learned)
    first = ts[max(0, start - MAX_TRAILING * EVERY_BARS)]
    return [*load_snapshots(night, learned[0].graph, last=ts[start - 1], first=first), *learned]


def write_learned_graphs(
    con: Any, night: Night, learned: Sequence[Snapshot], series: Sequence[Snapshot], **origin: object
) -> None:
    """Writes the snapshots, all of one graph, and replaces the stored snapshots with the same as_of.

    ``series`` comes from ``with_trailing_snapshots``. ``origin``, such as the trial, is stored as JSON in the column
    parameters.
    """
    if learned:
        parameters = [json.dumps(origin, sort_keys=True)] * len(learned)
        rows = snapshot_rows(learned, series, parameters, [None] * len(learned))
        write_snapshots(con, night, learned[0].graph, rows, edge_rows(learned))
