"""The leak audit: stored rows of a night against the same rows computed again from the data up to random past bars."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models import zoo
from models.features.indicators import compute_features
from models.graphs.catalogue import windowed_rules
from models.graphs.context import SideInputs
from models.graphs.liquidity import TradeRule
from models.graphs.membership import membership_snapshot
from models.graphs.snapshot import Snapshot
from models.graphs.windowed import snapshots
from models.panel import Panel
from models.scoring.folds import Fold
from models.scoring.leaks import Comparison, compare
from models.sessions import bar_closes, session_ends
from models.training.fit import predict_fold
from tasks.errors import LeakFoundError
from tasks.forecasts import FORECAST_COLUMNS, PROBABILITIES, Contender, load_forecasts, networks, utc_datetime
from tasks.graphs import memberships
from tasks.leaderboard import Row
from tasks.night import Night
from tasks.panels import load_bar_events, load_bars, load_features, load_snapshots, windowed_panels
from warehouse.tables import replace_slice

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9  # of features and edges
FORECAST_TOLERANCE = 1e-6  # of single-precision networks


@dataclass(frozen=True)
class AuditReport:
    """Number of cuts, and of rows compared over all of them."""

    cuts: int
    rows_compared: int


@dataclass(frozen=True, eq=False)
class Stored:
    """The night's stored features and snapshots, and the bars they were computed from."""

    bars: Panel
    features: Panel
    snapshots: dict[str, list[Snapshot]]


@task(name="audit leaks", cache_policy=NO_CACHE, persist_result=False)
def audit_leaks(
    night: Night,
    models: Sequence[Contender],
    graph: Mapping[str, Any],
    class_horizon: int,
    test_bars: int,
    dates: int = 2,
) -> AuditReport:
    """Recomputes features, edges of windowed graphs and forecasts from the data up to a cut, at ``dates`` cuts.

    The cuts are sampled from the later half of the forecasts' decisions with a seed derived from the night. The verdict
    on each subject is a row of ``leak_audit``; raises LeakFoundError, after writing them, when a subject differs.
    ``graph``, the arguments of ``build_graphs``, and ``test_bars`` must be those of the stored graphs and folds.
    """
    edges = {name: load_snapshots(night, name) for name in windowed_rules(**graph)}
    stored = Stored(load_bars(night), load_features(night), edges)
    contenders = networks(models)
    rows: list[Row] = []
    for bar in _cuts(night, stored.bars, contenders, class_horizon, dates):
        rows += _audit_cut(night, stored, contenders, graph, test_bars, bar)
    with night.warehouse.write(f"leak audit of {night.universe.name}") as con:
        keys = {"night": night.as_of, **night.slice}
        replace_slice(con, "store.leak_audit", pa.Table.from_pylist(rows), **keys, run_id=night.run_id)
    if leaks := [f"{row['subject']} at {row['cut']}: {row['message']}" for row in rows if not row["passed"]]:
        raise LeakFoundError(
            f"night {night.as_of} of {night.universe.name} is not published: {'; '.join(leaks)}. Stored rows differ "
            "from those computed from data up to the cut: see the view leak_audit"
        )
    report = AuditReport(len({row["cut"] for row in rows}), sum(row["rows_compared"] for row in rows))
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _cuts(night: Night, bars: Panel, contenders: Sequence[Contender], class_horizon: int, dates: int) -> list[int]:
    """Bar positions to cut after: decisions that every network forecast, from their later half, never the last one."""
    closed_at = bar_closes(night.universe.calendar, night.universe.interval, bars.ts)
    decisions = session_ends(night.universe.calendar, night.universe.interval, closed_at)
    for contender in contenders:
        forecast = load_forecasts(night, contender, class_horizon, bars.ts)
        decisions = decisions[forecast.mask[decisions].any(axis=1)]
    candidates = decisions[len(decisions) // 2 : -1] if len(decisions) > 2 else decisions
    cuts = np.random.default_rng(int(night.run_id, 16)).permutation(candidates)[:dates]
    return sorted(cuts.tolist())


def _audit_cut(
    night: Night,
    stored: Stored,
    contenders: Sequence[Contender],
    graph: Mapping[str, Any],
    test_bars: int,
    bar: int,
) -> list[Row]:
    """One row per subject: the rows up to ``bar``, computed from the data up to it, against the stored rows."""
    bars = stored.bars.rows(0, bar + 1)
    features = compute_features(bars, bar_closes(night.universe.calendar, night.universe.interval, bars.ts))
    rules = windowed_rules(**graph)
    panels = windowed_panels(night, rules, bars)
    built = {name: snapshots(name, panels[name], rule) for name, rule in rules.items()}
    members = {name: groups for name, groups in memberships(night).items() if name in graph["graphs"]}
    graphs = [membership_snapshot(name, bars.ts[0], bars.symbols, groups) for name, groups in members.items()]
    graphs += [snapshot for series in built.values() for snapshot in series]
    before = stored.features.rows(0, bar + 1)
    comparisons = {"features": compare(before.values, features.values, before.mask, features.mask, TOLERANCE)}
    for name, series in built.items():
        edges = _compare_edges(stored.snapshots[name], series, bars.ts[bar])
        if edges.rows_compared or not isinstance(rules[name], TradeRule):  # there may be no trades up to a cut
            comparisons[f"{name} edges"] = edges
    reads_events = any(zoo.network(contender.model).events for contender in contenders)
    side_inputs = SideInputs(graphs, load_bar_events(night, bars.ts[bar]) if reads_events else None)
    for contender in contenders:
        for trial_id in contender.trial_ids:
            subject = f"predictions of {contender.model}, trial {trial_id}"
            comparisons[subject] = _compare_forecasts(night, trial_id, features, side_inputs, test_bars)
    return [_verdict(subject, bars.ts[bar], comparison) for subject, comparison in comparisons.items()]


def _compare_edges(stored: Sequence[Snapshot], again: Sequence[Snapshot], last: np.datetime64) -> Comparison:
    """Compares every snapshot and edge up to ``last`` that either side has, by (as_of, src, dst)."""
    sides = [_edges(s for s in side if s.as_of <= last) for side in (stored, again)]
    union, row = np.unique(np.concatenate([keys for keys, _ in sides]), axis=0, return_inverse=True)
    values = np.full((2, len(union), 1), np.nan)
    mask = np.zeros((2, len(union)), dtype=bool)
    rows = np.split(row, [len(sides[0][0])])
    for k, (_, weight) in enumerate(sides):
        values[k, rows[k], 0] = weight
        mask[k, rows[k]] = True
    return compare(values[0], values[1], mask[0], mask[1], TOLERANCE)


def _edges(snapshots: Iterable[Snapshot]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the snapshots as (as_of in microseconds, src, dst), (e, 3), and their weights, (e,).

    Each snapshot adds the edge (−1, −1) with its number of edges as weight, so that an empty snapshot counts too.
    """
    parts = []
    for s in snapshots:
        as_of = np.full(len(s.src) + 1, s.as_of.astype(np.int64))
        keys = np.column_stack((as_of, np.append(s.src, -1), np.append(s.dst, -1)))
        parts.append((keys, np.append(s.weight, len(s.src))))
    all_keys, weights = zip((np.zeros((0, 3), dtype=np.int64), np.zeros(0)), *parts, strict=False)
    return np.concatenate(all_keys), np.concatenate(weights)


def _compare_forecasts(
    night: Night, trial_id: str, features: Panel, side_inputs: SideInputs, test_bars: int
) -> Comparison:
    """Compares the stored forecasts of the last bar of ``features`` with those that the fold's model file makes."""
    ts = features.ts[-1]
    keys = {**night.slice, "trial_id": trial_id, "ts": utc_datetime(ts)}
    fold = night.warehouse.query("fold_at", **keys).to_pylist()[0]
    start = int(np.searchsorted(features.ts, np.datetime64(fold["test_start"].replace(tzinfo=None), "us")))
    window = Fold(fold["fold"], np.zeros(0, dtype=np.int64), start, start, start + test_bars, 0)
    again = predict_fold(night.warehouse.artifacts / fold["artifact"], features, side_inputs, window, len(features) - 1)
    shape = (len(again.symbols), len(again.horizons), len(FORECAST_COLUMNS))
    values = np.empty(shape)
    values[:, :, : len(PROBABILITIES)] = again.probabilities[0][:, None, :]
    values[:, :, -2] = again.returns[0]
    values[:, :, -1] = again.volatility[0][:, None]
    stored = np.full(shape, np.nan)
    is_stored = np.zeros(shape[:2], dtype=bool)
    rows = night.warehouse.query("forecasts_at", **keys)
    i = np.array([again.symbols.index(s) for s in rows["symbol"].to_pylist()], dtype=np.int64)
    h = np.array([again.horizons.index(x) for x in rows["horizon_bars"].to_pylist()], dtype=np.int64)
    stored[i, h] = np.column_stack([rows[name].to_numpy() for name in FORECAST_COLUMNS])
    is_stored[i, h] = True
    valid = np.repeat(again.valid[0][:, None], shape[1], axis=1)
    return compare(stored, values, is_stored, valid, FORECAST_TOLERANCE)


def _verdict(subject: str, cut: np.datetime64, comparison: Comparison) -> Row:
    message = (
        f"{comparison.rows_compared} rows are the same without the bars after the cut"
        if comparison.passed
        else f"{comparison.rows_different} of {comparison.rows_compared} rows differ without the bars after the cut, "
        f"by up to {comparison.max_abs_difference:g}"
    )
    return {
        "subject": subject,
        "cut": utc_datetime(cut),
        "rows_compared": comparison.rows_compared,
        "rows_different": comparison.rows_different,
        "max_abs_difference": comparison.max_abs_difference,
        "passed": comparison.passed,
        "message": message,
    }
