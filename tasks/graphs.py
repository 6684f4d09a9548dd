"""Feature rows and graph snapshots of a night (the run for one as-of date).

Features are computed for the whole history, and a row is written only if it is missing or differs from the stored one.
A snapshot is built only if it is missing or its stored parameters differ. Glossary: t bars, n assets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.features.indicators import compute_features
from models.graphs.catalogue import windowed_rules
from models.graphs.membership import INDUSTRY, SECTOR, membership_snapshot
from models.graphs.snapshot import Snapshot
from models.graphs.stability import MAX_TRAILING, mean_correlation
from models.graphs.windowed import GraphRule, build_snapshots, snapshot_positions, window_returns
from models.hashing import short_hash
from models.panel import Panel
from tasks.graph_rows import edge_rows, snapshot_rows, timestamp_column, write_snapshots
from tasks.night import Night
from tasks.panels import (
    bar_grid,
    column_to_datetime64,
    just_after,
    load_bars,
    load_features,
    load_snapshots,
    windowed_panels,
)
from warehouse.tables import read_query, upsert

logger = logging.getLogger(__name__)

BEFORE_ALL_BARS = datetime(1900, 1, 1, tzinfo=UTC)
FEATURE_KEY = ("source", "universe", "interval", "symbol", "ts")


@dataclass(frozen=True)
class FeatureReport:
    """Counts of feature rows: all rows up to the night, and those added, replaced or removed in this run.

    A row is replaced when its numbers changed because a bar was restated, and removed when its bar was withdrawn.
    """

    rows: int
    added: int
    replaced: int
    removed: int


@dataclass(frozen=True)
class GraphReport:
    """Counts over all graphs: snapshots up to the night, and those built or removed in this run.

    ``edges`` counts the edges of the built snapshots. A snapshot is removed when the settings no longer ask for it.
    """

    snapshots: int
    built: int
    edges: int
    removed: int


@task(name="write features", cache_policy=NO_CACHE, persist_result=False)
def write_features(night: Night) -> FeatureReport:
    """Writes the new and changed feature rows of the members up to the night's clock, and deletes withdrawn rows.

    Raises FeatureError for impossible bars, NoBarsError without bars.
    """
    bars = load_bars(night)
    stored = load_features(night)
    features = compute_features(bars, bar_grid(night).close_times)
    is_equal = (features.values == stored.values) | (np.isnan(features.values) & np.isnan(stored.values))
    is_same_row = np.all(is_equal, axis=2)
    is_replaced = features.mask & stored.mask & ~is_same_row
    report = FeatureReport(
        rows=int(features.mask.sum()),
        added=int((features.mask & ~stored.mask).sum()),
        replaced=int(is_replaced.sum()),
        removed=int((stored.mask & ~features.mask).sum()),
    )
    if report.added or report.replaced or report.removed:
        new_rows = replace(features, mask=features.mask & ~(stored.mask & is_same_row))
        _store_features(night, new_rows, is_removed=stored.mask & ~bars.mask)
    logger.info("%s: features %s", night.universe.name, report)
    return report


@task(name="build graphs", cache_policy=NO_CACHE, persist_result=False)
def build_graphs(
    night: Night,
    graphs: Sequence[str] = ("correlation", "sector"),
    window_bars: int = 60,
    min_correlation: float = 0.3,
    top_k: int = 10,
    every_bars: int = 5,
) -> GraphReport:
    """Writes the missing snapshots of ``graphs`` (names of models/graphs/catalogue.py) up to the night's clock.

    A snapshot also counts as missing in two cases: it is stored with other parameters, or a bar was restated in its
    window or in the window of one of the trailing snapshots with which it is compared. Graphs that are not named stay
    as stored. Raises GraphError for unusable parameters or bars, NoBarsError without bars.
    """
    rules = windowed_rules(graphs, window_bars, min_correlation, top_k, every_bars)
    bars = load_bars(night)
    panels = windowed_panels(night, rules, bars)
    plans = [_plan_windowed_graph(graph, rule, bars, panels[graph]) for graph, rule in rules.items()]
    plans += [
        _plan_membership_graph(graph, groups, bars) for graph, groups in memberships(night).items() if graph in graphs
    ]
    reports = [_add_missing_snapshots(night, plan, bars.ts[-1]) for plan in plans]
    total = GraphReport(
        snapshots=sum(report.snapshots for report in reports),
        built=sum(report.built for report in reports),
        edges=sum(report.edges for report in reports),
        removed=sum(report.removed for report in reports),
    )
    logger.info("%s: graphs %s", night.universe.name, total)
    return total


def memberships(night: Night) -> dict[str, dict[str, str]]:
    """By membership graph, the group (sector or industry) of each symbol that has one."""
    return {SECTOR: night.universe.sectors, INDUSTRY: night.universe.industries}


def _store_features(night: Night, rows: Panel, is_removed: np.ndarray) -> None:
    """Writes the rows whose mask is True, and deletes the stored rows where ``is_removed`` (t, n) is True.

    A written row replaces the stored row of the same bar.
    """
    constants = {**night.slice, "interval": night.universe.interval}
    table = rows.to_table()
    with night.warehouse.write(f"features of {night.universe.name}") as con:
        for j in np.flatnonzero(is_removed.any(axis=0)):
            removed_ts = timestamp_column(rows.ts[is_removed[:, j]]).to_pylist()
            read_query(con, "delete_features", **constants, symbol=rows.symbols[j], ts=removed_ts)
        upsert(con, "store.features", table, FEATURE_KEY, **constants, run_id=night.run_id)


@dataclass(frozen=True, eq=False)
class GraphPlan:
    """The snapshots of one graph that should be stored, and how to build them.

    ``parameters`` maps the as_of of each snapshot, ascending, to its column "parameters" (JSON). ``build`` returns the
    snapshots at the given as_of. ``mean_correlation`` returns the mean correlation of the returns in the window that
    ends at an as_of, None for a graph without windows.
    """

    graph: str
    parameters: dict[np.datetime64, str]
    build: Callable[[list[np.datetime64]], list[Snapshot]]
    mean_correlation: Callable[[np.datetime64], float | None] = lambda _: None


def _plan_windowed_graph(graph: str, rule: GraphRule, bars: Panel, panel: Panel) -> GraphPlan:
    """The plan of a graph whose snapshots are built from windows of ``panel``.

    The parameters of a snapshot contain a hash of its window's data and a hash of the trailing snapshots' data.
    """
    returns = window_returns(bars)
    inputs = rule.inputs(panel)
    symbols_bytes = " ".join(bars.symbols).encode()
    windows = {bars.ts[i]: slice(i - rule.window_bars + 1, i + 1) for i in snapshot_positions(rule, inputs)}
    data_hashes = [short_hash(symbols_bytes + inputs[window].tobytes()) for window in windows.values()]
    settings = asdict(rule)  # type: ignore[call-overload]
    parameters = {}
    for k, as_of in enumerate(windows):
        trailing_hash = short_hash("".join(data_hashes[max(0, k - MAX_TRAILING) : k]).encode())
        parameters[as_of] = _parameters_json(**settings, data=data_hashes[k], trailing=trailing_hash)

    def build(as_of_to_build: list[np.datetime64]) -> list[Snapshot]:
        return build_snapshots(graph, panel, rule, np.searchsorted(bars.ts, as_of_to_build))

    return GraphPlan(graph, parameters, build, lambda as_of: mean_correlation(returns[windows[as_of]]))


def _plan_membership_graph(graph: str, groups: Mapping[str, str], bars: Panel) -> GraphPlan:
    """The plan of a graph of fixed groups of symbols: a single snapshot, as of the first bar."""
    members_json = json.dumps([(symbol, groups.get(symbol)) for symbol in bars.symbols]).encode()

    def build(as_of_to_build: list[np.datetime64]) -> list[Snapshot]:
        return [membership_snapshot(graph, as_of, bars.symbols, groups) for as_of in as_of_to_build]

    return GraphPlan(graph, {bars.ts[0]: _parameters_json(data=short_hash(members_json))}, build)


def _parameters_json(**parameters: object) -> str:
    """The parameters column of a snapshot; a snapshot stored with the same text is not built again."""
    return json.dumps(parameters, sort_keys=True)


def _add_missing_snapshots(night: Night, plan: GraphPlan, last: np.datetime64) -> GraphReport:
    """Makes the stored snapshots with as_of ≤ ``last`` equal to the plan: builds missing ones, deletes others."""
    keys = {**night.slice, "graph": plan.graph}
    rows = night.warehouse.query("snapshots_before", **keys, start=BEFORE_ALL_BARS, end=just_after(last))
    stored = dict(zip(column_to_datetime64(rows["as_of"]), rows["parameters"].to_pylist(), strict=True))
    missing_as_of = [as_of for as_of, parameters in plan.parameters.items() if stored.get(as_of) != parameters]
    removed_as_of = [as_of for as_of in stored if as_of not in plan.parameters]
    built = plan.build(missing_as_of)
    if missing_as_of or removed_as_of:
        mean_correlations = [plan.mean_correlation(s.as_of) for s in built]
        series = _with_trailing_snapshots(night, plan, built)
        parameters = [plan.parameters[s.as_of] for s in built]
        rows = snapshot_rows(built, series, parameters, mean_correlations)
        with night.warehouse.write(f"{plan.graph} graphs of {night.universe.name}") as con:
            write_snapshots(con, night, plan.graph, rows, edge_rows(built), removed_as_of)
    return GraphReport(len(plan.parameters), len(built), sum(len(s.src) for s in built), len(removed_as_of))


def _with_trailing_snapshots(night: Night, plan: GraphPlan, built: Sequence[Snapshot]) -> list[Snapshot]:
    """``built`` and the stored snapshots with which their stability is computed, oldest first."""
    by_as_of = {s.as_of: s for s in built}
    planned_as_of = list(plan.parameters)
    position = {as_of: k for k, as_of in enumerate(planned_as_of)}
    trailing_as_of: set[np.datetime64] = set()
    for snapshot in built:
        k = position[snapshot.as_of]
        trailing_as_of.update(planned_as_of[max(0, k - MAX_TRAILING) : k])
    to_load = sorted(trailing_as_of - by_as_of.keys())
    if to_load:
        stored = load_snapshots(night, plan.graph, last=to_load[-1], first=to_load[0])
        by_as_of = {s.as_of: s for s in stored} | by_as_of
    return [by_as_of[as_of] for as_of in planned_as_of if as_of in by_as_of]
