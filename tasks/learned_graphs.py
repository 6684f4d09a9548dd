"""The graphs that networks drew themselves, read out of their forecasts into graph_snapshots and graph_edges."""

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

EVERY_BARS = 5  # from one graph that is kept to the next, counted from the panel's first bar: more bars move none


def learned_snapshots(made: Predictions, first: int, model: str, seed: int) -> list[Snapshot]:
    """Those of every EVERY_BARS-th of the forecast bars, the first of which is bar ``first`` of the panel; none from a
    network that reads a stored graph. They are named attention:MODEL, those of a seed s above 0 attention:MODEL:s."""
    if made.edges is None:
        return []
    name = f"{LEARNED}:{model}" + (f":{seed}" if seed else "")
    due = range(-first % EVERY_BARS, len(made.ts), EVERY_BARS)
    return [learned_graph(name, made.edges[k].astype(np.float64), made.ts[k], made.symbols) for k in due]


def with_trailing(night: Night, drawn: Sequence[Snapshot], ts: np.ndarray) -> list[Snapshot]:
    """``drawn`` and the stored snapshots that those are compared with, oldest first; ``ts`` are the panel's bars."""
    start = int(np.searchsorted(ts, drawn[0].as_of)) if drawn else 0
    if not start:
        return list(drawn)
    first = ts[max(0, start - TRAIL * EVERY_BARS)]
    return [*load_snapshots(night, drawn[0].graph, last=ts[start - 1], first=first), *drawn]


def write_learned_graphs(
    con: Any, night: Night, drawn: Sequence[Snapshot], series: Sequence[Snapshot], **said: object
) -> None:
    """Puts the snapshots, of one graph, in the place of those of the same dates; ``series`` as ``with_trailing`` gives
    it, ``said``: how they came about."""
    if drawn:
        parameters = [json.dumps(said, sort_keys=True)] * len(drawn)
        rows = snapshot_rows(drawn, series, parameters, [None] * len(drawn))
        write_snapshots(con, night, drawn[0].graph, rows, edge_rows(drawn))
