"""The graphs that networks drew themselves, read out of their forecasts into graph_snapshots and graph_edges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.graphs.snapshot import Snapshot
from models.nets.ssm_gnn import LEARNED, drawn_graph
from models.panel import TS_TYPE
from models.training.fit import Predictions
from tasks.night import Night
from warehouse.tables import append, read_query

EVERY_BARS = 5  # from one graph that is kept to the next, counted from the panel's first bar: more bars move none


def drawn_snapshots(made: Predictions, first: int, model: str, seed: int) -> list[Snapshot]:
    """Those of every EVERY_BARS-th of the forecast bars, the first of which is bar ``first`` of the panel; none from a
    network that reads a stored graph. They are named attention:MODEL, those of a seed s above 0 attention:MODEL:s."""
    if made.edges is None:
        return []
    name = f"{LEARNED}:{model}" + (f":{seed}" if seed else "")
    due = range(-first % EVERY_BARS, len(made.ts), EVERY_BARS)
    return [drawn_graph(name, made.edges[k].astype(np.float64), made.ts[k], made.symbols) for k in due]


def write_drawn(con: Any, night: Night, snapshots: Sequence[Snapshot], **said: object) -> None:
    """Puts the snapshots, of one graph, in the place of those of the same dates; ``said``: how they came about."""
    if not snapshots:
        return
    as_of, edges = np.array([s.as_of for s in snapshots]), [len(s.src) for s in snapshots]
    keys, dates = {**night.slice, "graph": snapshots[0].graph}, _timestamps(as_of)
    for query in ("delete_snapshots", "delete_edges"):
        read_query(con, query, **keys, as_of=dates.to_pylist())
    rows = {
        "as_of": dates,
        "directed": pa.array([s.directed for s in snapshots], pa.bool_()),
        "nodes": pa.array([len(s.nodes) for s in snapshots], pa.int32()),
        "edges": pa.array(edges, pa.int32()),
        "density": pa.array([s.density for s in snapshots], pa.float64()),
        "mean_weight": pa.array([float(s.weight.mean()) if len(s.weight) else None for s in snapshots], pa.float64()),
        "parameters": pa.array([json.dumps(said, sort_keys=True)] * len(snapshots)),
    }
    append(con, "store.graph_snapshots", pa.table(rows), **keys, run_id=night.run_id)
    names = np.array(snapshots[0].nodes, dtype=object)
    ends = {
        "src": names[np.concatenate([s.src for s in snapshots])],
        "dst": names[np.concatenate([s.dst for s in snapshots])],
        "weight": np.concatenate([s.weight for s in snapshots]),
    }
    table = pa.table({"as_of": _timestamps(np.repeat(as_of, edges)), **ends})
    append(con, "store.graph_edges", table, **keys, run_id=night.run_id)


def _timestamps(ts: np.ndarray) -> pa.Array:
    return pa.array(ts.astype("datetime64[us]")).cast(TS_TYPE)
