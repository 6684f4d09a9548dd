"""Snapshots of a graph as rows of graph_snapshots and graph_edges, and their writing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.graphs.snapshot import Snapshot
from models.graphs.stability import TRAIL, stability
from models.panel import TS_TYPE
from tasks.night import Night
from warehouse.tables import append, read_query


def write_snapshots(
    con: Any, night: Night, graph: str, rows: pa.Table, edges: pa.Table, gone: Sequence[np.datetime64] = ()
) -> None:
    """Writes ``rows`` and ``edges`` over those of the same dates, and deletes those dated ``gone``."""
    keys = {**night.slice, "graph": graph}
    replaced = rows["as_of"].to_pylist() + timestamps(gone).to_pylist()
    for query in ("delete_snapshots", "delete_edges"):
        read_query(con, query, **keys, as_of=replaced)
    append(con, "store.graph_snapshots", rows, **keys, run_id=night.run_id)
    append(con, "store.graph_edges", edges, **keys, run_id=night.run_id)


def snapshot_rows(
    built: Sequence[Snapshot],
    series: Sequence[Snapshot],
    parameters: Sequence[str],
    mean_correlation: Sequence[float | None],
) -> pa.Table:
    """Rows of store.graph_snapshots without their keys.

    ``series`` holds the snapshots ``built`` and the earlier ones that they are compared with, oldest first.
    """
    position = {s.as_of: k for k, s in enumerate(series)}
    changes = [stability(s, series[max(0, position[s.as_of] - TRAIL) : position[s.as_of]]) for s in built]
    return pa.table(
        {
            "as_of": timestamps([s.as_of for s in built]),
            "window_start": timestamps([s.window_start for s in built]),
            "directed": pa.array([s.directed for s in built], pa.bool_()),
            "nodes": pa.array([len(s.nodes) for s in built], pa.int32()),
            "edges": pa.array([len(s.src) for s in built], pa.int32()),
            "density": pa.array([s.density for s in built], pa.float64()),
            "mean_weight": pa.array([float(s.weight.mean()) if len(s.weight) else None for s in built], pa.float64()),
            "mean_correlation": pa.array(mean_correlation, pa.float64()),
            "turnover": pa.array([change.turnover for change in changes], pa.float64()),
            "drift": pa.array([change.drift for change in changes], pa.float64()),
            "parameters": pa.array(parameters, pa.string()),
        }
    )


def edge_rows(built: Sequence[Snapshot]) -> pa.Table:
    """Rows of store.graph_edges without their keys."""
    edges = [len(s.src) for s in built]
    names = pa.array(built[0].nodes if built else (), pa.string())
    src, dst = (np.concatenate([np.zeros(0, np.int64), *(getattr(s, end) for s in built)]) for end in ("src", "dst"))
    return pa.table(
        {
            "as_of": timestamps(np.repeat(np.array([s.as_of for s in built], dtype="datetime64[us]"), edges)),
            "src": names.take(pa.array(src)),
            "dst": names.take(pa.array(dst)),
            "weight": pa.array(np.concatenate([np.empty(0), *(s.weight for s in built)])),
        }
    )


def timestamps(ts: Sequence[np.datetime64] | np.ndarray) -> pa.Array:
    """Instants as a UTC timestamp column, null where NaT."""
    return pa.array(np.array(ts, dtype="datetime64[us]")).cast(TS_TYPE)
