"""Feature rows and graph snapshots of a night: computed in full, written only where they are missing or changed."""

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
from models.graphs.stability import TRAIL, mean_correlation
from models.graphs.windowed import GraphRule, due_snapshots, snapshots, window_returns
from models.hashing import short_hash
from models.panel import Panel
from tasks.graph_rows import edge_rows, snapshot_rows, timestamps, write_snapshots
from tasks.night import Night
from tasks.panels import bar_grid, instants, just_after, load_bars, load_features, load_snapshots, windowed_panels
from warehouse.tables import read_query, upsert

logger = logging.getLogger(__name__)

BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
FEATURE_KEY = ("source", "universe", "interval", "symbol", "ts")


@dataclass(frozen=True)
class FeatureReport:
    """Counts of feature rows: in all, added, replaced because a bar was restated, removed with their bar."""

    rows: int
    added: int
    replaced: int
    removed: int


@dataclass(frozen=True)
class GraphReport:
    """Counts of graph snapshots: in all, built in this run, their edges, removed because they are no longer planned."""

    snapshots: int
    built: int
    edges: int
    removed: int


@task(name="write features", cache_policy=NO_CACHE, persist_result=False)
def write_features(night: Night) -> FeatureReport:
    """Writes the universe's feature rows up to the night; a row stored with the same numbers is left unchanged."""
    bars = load_bars(night)
    stored = load_features(night)
    features = compute_features(bars, bar_grid(night)[1])
    same = np.all((features.values == stored.values) | (np.isnan(features.values) & np.isnan(stored.values)), axis=2)
    differs = features.mask & stored.mask & ~same
    report = FeatureReport(
        rows=int(features.mask.sum()),
        added=int((features.mask & ~stored.mask).sum()),
        replaced=int(differs.sum()),
        removed=int((stored.mask & ~features.mask).sum()),
    )
    if report.added or report.replaced or report.removed:
        _store_features(night, replace(features, mask=features.mask & ~(stored.mask & same)), stored.mask & ~bars.mask)
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
    """Writes the snapshots of ``graphs`` (models/graphs/catalogue.py) up to the night, building only missing ones.

    A snapshot also counts as missing when it is stored with other parameters, or when a bar of its window, or of the
    window of a trailing snapshot it is compared with, was restated since. Graphs that are not named stay as stored.
    """
    rules = windowed_rules(graphs, window_bars, min_correlation, top_k, every_bars)
    bars = load_bars(night)
    panels = windowed_panels(night, rules, bars)
    plans = [_windowed(graph, rule, bars, panels[graph]) for graph, rule in rules.items()]
    plans += [_membership(graph, groups, bars) for graph, groups in memberships(night).items() if graph in graphs]
    reports = [_add_missing_snapshots(night, plan, bars.ts[-1]) for plan in plans]
    total = GraphReport(*(sum(counts) for counts in zip(*(asdict(r).values() for r in reports), strict=True)))
    logger.info("%s: graphs %s", night.universe.name, total)
    return total


def memberships(night: Night) -> dict[str, dict[str, str]]:
    """Group of each symbol that has one, by membership graph."""
    return {SECTOR: night.universe.sectors, INDUSTRY: night.universe.industries}


def _store_features(night: Night, rows: Panel, gone: np.ndarray) -> None:
    """Writes ``rows`` over those of the same bars and deletes the rows of the bars marked in ``gone`` (t, n)."""
    constants = {**night.slice, "interval": night.universe.interval}
    table = rows.to_table()
    with night.warehouse.write(f"features of {night.universe.name}") as con:
        for j in np.flatnonzero(gone.any(axis=0)):
            removed = timestamps(rows.ts[gone[:, j]]).to_pylist()
            read_query(con, "delete_features", **constants, symbol=rows.symbols[j], ts=removed)
        upsert(con, "store.features", table, FEATURE_KEY, **constants, run_id=night.run_id)


@dataclass(frozen=True, eq=False)
class Plan:
    """How one graph should be stored.

    ``parameters`` of each snapshot by as_of, ascending; ``build`` makes the snapshots of some of these dates;
    ``mean_correlation`` of the window of one date, None where there is no window.
    """

    graph: str
    parameters: dict[np.datetime64, str]
    build: Callable[[list[np.datetime64]], list[Snapshot]]
    mean_correlation: Callable[[np.datetime64], float | None] = lambda _: None


def _windowed(graph: str, rule: GraphRule, bars: Panel, panel: Panel) -> Plan:
    """The plan of a graph of windows of ``panel``; a snapshot's parameters hold hashes of its own data and of the data
    of the trailing snapshots."""
    returns = window_returns(bars)
    inputs = rule.inputs(panel)
    names = " ".join(bars.symbols).encode()
    windows = {bars.ts[i]: slice(i - rule.window_bars + 1, i + 1) for i in due_snapshots(rule, inputs)}
    data = [short_hash(names + inputs[window].tobytes()) for window in windows.values()]
    settings = asdict(rule)  # type: ignore[call-overload]
    parameters = {
        as_of: _json(**settings, data=data[k], trailing=short_hash("".join(data[max(0, k - TRAIL) : k]).encode()))
        for k, as_of in enumerate(windows)
    }

    def build(missing: list[np.datetime64]) -> list[Snapshot]:
        return snapshots(graph, panel, rule, np.searchsorted(bars.ts, missing))

    return Plan(graph, parameters, build, lambda as_of: mean_correlation(returns[windows[as_of]]))


def _membership(graph: str, groups: Mapping[str, str], bars: Panel) -> Plan:
    """The plan of a graph of fixed groups of symbols: a single snapshot, at the first bar."""
    members = json.dumps([(symbol, groups.get(symbol)) for symbol in bars.symbols]).encode()

    def build(missing: list[np.datetime64]) -> list[Snapshot]:
        return [membership_snapshot(graph, as_of, bars.symbols, groups) for as_of in missing]

    return Plan(graph, {bars.ts[0]: _json(data=short_hash(members))}, build)


def _json(**parameters: object) -> str:
    """The parameters column of a snapshot: one that is stored with the same text need not be built again."""
    return json.dumps(parameters, sort_keys=True)


def _add_missing_snapshots(night: Night, plan: Plan, last: np.datetime64) -> GraphReport:
    """Makes the stored snapshots up to ``last`` equal to the plan, building those that are missing or differ."""
    span = {**night.slice, "graph": plan.graph}
    rows = night.warehouse.query("snapshots_before", **span, start=BEGINNING, end=just_after(last))
    stored = dict(zip(instants(rows["as_of"]), rows["parameters"].to_pylist(), strict=True))
    missing = [as_of for as_of, parameters in plan.parameters.items() if stored.get(as_of) != parameters]
    gone = [as_of for as_of in stored if as_of not in plan.parameters]
    built = plan.build(missing)
    if missing or gone:
        mean = [plan.mean_correlation(s.as_of) for s in built]
        rows = snapshot_rows(built, _with_trailing(night, plan, built), [plan.parameters[s.as_of] for s in built], mean)
        with night.warehouse.write(f"{plan.graph} graphs of {night.universe.name}") as con:
            write_snapshots(con, night, plan.graph, rows, edge_rows(built), gone)
    return GraphReport(len(plan.parameters), len(built), sum(len(s.src) for s in built), len(gone))


def _with_trailing(night: Night, plan: Plan, built: Sequence[Snapshot]) -> list[Snapshot]:
    """``built`` and the stored snapshots that they are compared with, oldest first."""
    by_as_of = {s.as_of: s for s in built}
    order = list(plan.parameters)
    position = {as_of: k for k, as_of in enumerate(order)}
    trailing = {t for s in built for t in order[max(0, position[s.as_of] - TRAIL) : position[s.as_of]]}
    needed = sorted(trailing - by_as_of.keys())
    if needed:
        stored = load_snapshots(night, plan.graph, last=needed[-1], first=needed[0])
        by_as_of = {s.as_of: s for s in stored} | by_as_of
    return [by_as_of[as_of] for as_of in order if as_of in by_as_of]
