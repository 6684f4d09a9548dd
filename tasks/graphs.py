"""Feature rows and graph snapshots of a night: computed whole, written only where they are missing or changed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.features.indicators import compute_features
from models.graphs import correlation, sector
from models.graphs.correlation import CorrelationRule, correlation_snapshots, due_snapshots, window_returns
from models.graphs.snapshot import Snapshot
from models.panel import TS_TYPE, Panel
from tasks.night import Night
from tasks.panels import bar_grid, instants, just_after, load_bars, load_features
from warehouse.tables import append, read_query, upsert

logger = logging.getLogger(__name__)

FEATURE_KEY = ("source", "universe", "interval", "symbol", "ts")


@dataclass(frozen=True)
class FeatureReport:
    """What became of the feature rows: in all, new, replaced because a bar was restated, removed with their bar."""

    rows: int
    added: int
    replaced: int
    removed: int


@dataclass(frozen=True)
class GraphReport:
    """What became of the graph snapshots: in all, built in this run with so many edges, removed as no longer due."""

    snapshots: int
    built: int
    edges: int
    removed: int


@task(name="write features", cache_policy=NO_CACHE, persist_result=False)
def write_features(night: Night) -> FeatureReport:
    """Brings the universe's feature rows up to the night; a row that is stored with the same numbers is left alone."""
    bars, stored = load_bars(night), load_features(night)
    features = compute_features(bars, bar_grid(night)[1])
    same = np.all((features.values == stored.values) | (np.isnan(features.values) & np.isnan(stored.values)), axis=2)
    wrong = features.mask & stored.mask & ~same
    report = FeatureReport(
        rows=int(features.mask.sum()),
        added=int((features.mask & ~stored.mask).sum()),
        replaced=int(wrong.sum()),
        removed=int((stored.mask & ~features.mask).sum()),
    )
    if report.added or report.replaced or report.removed:
        _store_features(night, replace(features, mask=features.mask & ~(stored.mask & same)), stored.mask & ~bars.mask)
    logger.info("%s: features %s", night.universe.name, report)
    return report


@task(name="build graphs", cache_policy=NO_CACHE, persist_result=False)
def build_graphs(
    night: Night, window_bars: int = 60, min_correlation: float = 0.3, top_k: int = 10, every_bars: int = 5
) -> GraphReport:
    """Brings the universe's correlation and sector snapshots up to the night, building only those that are missing.

    One counts as missing too when it is stored with other parameters, or when a bar of its window was restated since.
    """
    rule = CorrelationRule(window_bars, min_correlation, top_k, every_bars)
    bars = load_bars(night)
    reports = [_build_correlation(night, bars, rule), _build_sector(night, bars)]
    total = GraphReport(*(sum(counts) for counts in zip(*(asdict(r).values() for r in reports), strict=True)))
    logger.info("%s: graphs %s", night.universe.name, total)
    return total


def _store_features(night: Night, rows: Panel, gone: np.ndarray) -> None:
    """Writes ``rows`` over those of the same bars and deletes the rows of the bars marked in ``gone`` (t, n)."""
    constants = {**night.slice, "interval": night.universe.interval}
    table = rows.to_table()
    with night.warehouse.write(f"features of {night.universe.name}") as con:
        for j in np.flatnonzero(gone.any(axis=0)):
            removed = _timestamps(rows.ts[gone[:, j]]).to_pylist()
            read_query(con, "delete_features", **constants, symbol=rows.symbols[j], ts=removed)
        upsert(con, "store.features", table, FEATURE_KEY, **constants, run_id=night.run_id)


def _build_correlation(night: Night, bars: Panel, rule: CorrelationRule) -> GraphReport:
    returns = window_returns(bars)
    names = " ".join(bars.symbols).encode()
    due = due_snapshots(bars.ts, rule.every_bars, rule.window_bars)
    wanted = {
        bars.ts[i]: _parameters(names + returns[i - rule.window_bars + 1 : i + 1].tobytes(), **asdict(rule))
        for i in due
    }

    def build(missing: list[np.datetime64]) -> list[Snapshot]:
        return correlation_snapshots(bars, rule, np.searchsorted(bars.ts, missing))

    return _bring_up(night, correlation.GRAPH, wanted, bars.ts[-1], build)


def _build_sector(night: Night, bars: Panel) -> GraphReport:
    sectors = night.universe.sectors
    members = json.dumps([(symbol, sectors.get(symbol)) for symbol in bars.symbols]).encode()

    def build(missing: list[np.datetime64]) -> list[Snapshot]:
        return [sector.sector_snapshot(as_of, bars.symbols, sectors) for as_of in missing]

    return _bring_up(night, sector.GRAPH, {bars.ts[0]: _parameters(members)}, bars.ts[-1], build)


def _parameters(data: bytes, **parameters: object) -> str:
    """How a snapshot is built and from what, as JSON: one that is stored with the same text need not be built again."""
    return json.dumps({**parameters, "data": hashlib.sha256(data).hexdigest()[:16]}, sort_keys=True)


def _bring_up(
    night: Night,
    graph: str,
    wanted: dict[np.datetime64, str],
    last: np.datetime64,
    build: Callable[[list[np.datetime64]], list[Snapshot]],
) -> GraphReport:
    """Makes the stored snapshots up to ``last`` those of ``wanted`` (parameters by as_of), building what differs."""
    span = {**night.slice, "graph": graph}
    found = night.warehouse.query("snapshots_before", **span, end=just_after(last))
    stored = dict(zip(instants(found["as_of"]), found["parameters"].to_pylist(), strict=True))
    missing = [as_of for as_of, parameters in wanted.items() if stored.get(as_of) != parameters]
    gone = [as_of for as_of in stored if as_of not in wanted]
    built = build(missing)
    if missing or gone:
        replaced = _timestamps([*missing, *gone]).to_pylist()
        with night.warehouse.write(f"{graph} graphs of {night.universe.name}") as con:
            for name in ("delete_snapshots", "delete_edges"):
                read_query(con, name, **span, as_of=replaced)
            append(con, "store.graph_snapshots", _snapshot_rows(built, wanted), **span, run_id=night.run_id)
            append(con, "store.graph_edges", _edge_rows(built), **span, run_id=night.run_id)
    return GraphReport(len(wanted), len(built), sum(len(s.src) for s in built), len(gone))


def _snapshot_rows(snapshots: Sequence[Snapshot], parameters: dict[np.datetime64, str]) -> pa.Table:
    """Rows of store.graph_snapshots without their keys."""
    return pa.table(
        {
            "as_of": _timestamps([s.as_of for s in snapshots]),
            "window_start": _timestamps([s.window_start for s in snapshots]),
            "nodes": pa.array([len(s.nodes) for s in snapshots], pa.int32()),
            "edges": pa.array([len(s.src) for s in snapshots], pa.int32()),
            "density": pa.array([s.density for s in snapshots], pa.float64()),
            "mean_weight": pa.array(
                [float(s.weight.mean()) if len(s.weight) else None for s in snapshots], pa.float64()
            ),
            "parameters": pa.array([parameters[s.as_of] for s in snapshots], pa.string()),
        }
    )


def _edge_rows(snapshots: Sequence[Snapshot]) -> pa.Table:
    """Rows of store.graph_edges without their keys."""
    edges = [len(s.src) for s in snapshots]
    return pa.table(
        {
            "as_of": _timestamps(np.repeat(np.array([s.as_of for s in snapshots], dtype="datetime64[us]"), edges)),
            "src": pa.array([s.nodes[i] for s in snapshots for i in s.src], pa.string()),
            "dst": pa.array([s.nodes[i] for s in snapshots for i in s.dst], pa.string()),
            "weight": pa.array(np.concatenate([np.empty(0), *(s.weight for s in snapshots)])),
        }
    )


def _timestamps(ts: Sequence[np.datetime64] | np.ndarray) -> pa.Array:
    """Instants as a UTC timestamp column, null where NaT."""
    return pa.array(np.array(ts, dtype="datetime64[us]")).cast(TS_TYPE)
