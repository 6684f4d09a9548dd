"""Snapshots of a graph as rows of graph_snapshots and graph_edges, and the function that writes these rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.graphs.snapshot import Snapshot
from models.graphs.stability import MAX_TRAILING, stability
from models.panel import TS_TYPE
from tasks.night import Night
from warehouse.tables import append, read_query


def write_snapshots(
    con: Any, night: Night, graph: str, rows: pa.Table, edges: pa.Table, removed: Sequence[np.datetime64] = ()
) -> None:
    """Replaces the snapshots and edges that are stored at the as_of of ``rows``, and deletes those at ``removed``.

    ``rows`` come from ``snapshot_rows``, ``edges`` from ``edge_rows`` of the same snapshots. ``con`` is an open write
    transaction.
    """
    keys = {**night.slice, "graph": graph}
    as_of_to_delete = rows["as_of"].to_pylist() + timestamp_column(removed).to_pylist()
    for query in ("delete_snapshots", "delete_edges"):
        read_query(con, query, **keys, as_of=as_of_to_delete)
    append(con, "store.graph_snapshots", rows, **keys, run_id=night.run_id)
    append(con, "store.graph_edges", edges, **keys, run_id=night.run_id)


def snapshot_rows(
    snapshots: Sequence[Snapshot],
    series: Sequence[Snapshot],
    parameters: Sequence[str],
    mean_correlation: Sequence[float | None],
) -> pa.Table:
    """Rows of store.graph_snapshots without their keys, one for each of ``snapshots``.

    ``series``, oldest first, holds ``snapshots`` and the earlier snapshots against which their stability is computed.
    ``parameters`` and ``mean_correlation`` have one entry per snapshot.
    """
    position = {s.as_of: k for k, s in enumerate(series)}
    stabilities = []
    for snapshot in snapshots:
        k = position[snapshot.as_of]
        stabilities.append(stability(snapshot, series[max(0, k - MAX_TRAILING) : k]))
    return pa.table(
        {
            "as_of": timestamp_column([s.as_of for s in snapshots]),
            "window_start": timestamp_column([s.window_start for s in snapshots]),
            "directed": pa.array([s.directed for s in snapshots], pa.bool_()),
            "nodes": pa.array([len(s.nodes) for s in snapshots], pa.int32()),
            "edges": pa.array([len(s.src) for s in snapshots], pa.int32()),
            "density": pa.array([s.density for s in snapshots], pa.float64()),
            "mean_weight": pa.array(
                [float(s.weight.mean()) if len(s.weight) else None for s in snapshots], pa.float64()
            ),
            "mean_correlation": pa.array(mean_correlation, pa.float64()),
            "turnover": pa.array([s.turnover for s in stabilities], pa.float64()),
            "drift": pa.array([s.drift for s in stabilities], pa.float64()),
            "parameters": pa.array(parameters, pa.string()),
        }
    )


def edge_rows(snapshots: Sequence[Snapshot]) -> pa.Table:
    """Rows of store.graph_edges without their keys: the edges of ``snapshots``, which share their nodes."""
    n_edges = [len(s.src) for s in snapshots]
    nodes = pa.array(snapshots[0].nodes if snapshots else (), pa.string())
    src = np.concatenate([np.zeros(0, np.int64), *(s.src for s in snapshots)])
    dst = np.concatenate([np.zeros(0, np.int64), *(s.dst for s in snapshots)])
    as_of = np.repeat(np.array([s.as_of for s in snapshots], dtype="datetime64[us]"), n_edges)
    return pa.table(
        {
            "as_of": timestamp_column(as_of),
            "src": nodes.take(pa.array(src)),
            "dst": nodes.take(pa.array(dst)),
            "weight": pa.array(np.concatenate([np.empty(0), *(s.weight for s in snapshots)])),
        }
    )


def timestamp_column(ts: Sequence[np.datetime64] | np.ndarray) -> pa.Array:
    """Instants as a UTC timestamp column, null where NaT."""
    return pa.array(np.array(ts, dtype="datetime64[us]")).cast(TS_TYPE)
