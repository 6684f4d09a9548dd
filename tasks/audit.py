"""The leak audit: compares stored rows of a night with the same rows recomputed without the data after a past bar.

A night is the run for one as-of date. A cut is the past bar after which the data are left out. A stored row that
differs from the recomputed one depends on later data.
"""

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
from models.graphs.windowed import build_snapshots
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

VALUE_TOLERANCE = 1e-9  # absolute, for features and edge weights, which are computed in double precision
FORECAST_TOLERANCE = 1e-6  # absolute, for forecasts, which networks compute in single precision


@dataclass(frozen=True)
class AuditReport:
    """``cuts`` counts the cuts, and ``rows_compared`` the rows compared over all cuts."""

    cuts: int
    rows_compared: int


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The night's stored features and snapshots (by graph name), and the bars from which both were computed."""

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
    """Compares stored rows with rows recomputed from the data up to a cut, for ``dates`` cuts; writes the verdicts.

    The rows are features, edges of windowed graphs, and forecasts.

    The cuts are sampled without replacement from the later half of the decisions that every network has forecast; the
    seed is derived from the night. ``graph`` holds the arguments with which ``build_graphs`` made the stored graphs,
    ``test_bars`` is the length of the stored folds' test windows in bars, ``class_horizon`` a forecast horizon in bars.

    Each subject (the features, the edges of one graph, the forecasts of one trial) gets one row of ``leak_audit`` per
    cut. All rows are written before LeakFoundError is raised for the subjects that differ.
    """
    snapshots = {name: load_snapshots(night, name) for name in windowed_rules(**graph)}
    stored = StoredRows(load_bars(night), load_features(night), snapshots)
    contenders = networks(models)
    rows: list[Row] = []
    for cut_bar in _sample_cuts(night, stored.bars, contenders, class_horizon, dates):
        rows += _audit_cut(night, stored, contenders, graph, test_bars, cut_bar)
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


def _sample_cuts(
    night: Night, bars: Panel, contenders: Sequence[Contender], class_horizon: int, dates: int
) -> list[int]:
    """Positions of the bars to cut after, ascending, at most ``dates``.

    They are sampled from the later half of the decisions that every network has forecast, without the last decision.
    With one or two such decisions, all are candidates.
    """
    close_times = bar_closes(night.universe.calendar, night.universe.interval, bars.ts)
    decisions = session_ends(night.universe.calendar, night.universe.interval, close_times)
    for contender in contenders:
        forecast = load_forecasts(night, contender, class_horizon, bars.ts)
        decisions = decisions[forecast.mask[decisions].any(axis=1)]
    candidates = decisions[len(decisions) // 2 : -1] if len(decisions) > 2 else decisions
    cuts = np.random.default_rng(int(night.run_id, 16)).permutation(candidates)[:dates]
    return sorted(cuts.tolist())


def _audit_cut(
    night: Night,
    stored: StoredRows,
    contenders: Sequence[Contender],
    graph: Mapping[str, Any],
    test_bars: int,
    cut_bar: int,
) -> list[Row]:
    """Verdicts, one row of ``leak_audit`` per subject, on the stored rows up to the bar at position ``cut_bar``."""
    bars = stored.bars.slice_bars(0, cut_bar + 1)
    cut_ts = bars.ts[-1]
    features = compute_features(bars, bar_closes(night.universe.calendar, night.universe.interval, bars.ts))
    rules = windowed_rules(**graph)
    panels = windowed_panels(night, rules, bars)
    recomputed = {name: build_snapshots(name, panels[name], rule) for name, rule in rules.items()}
    groups_by_graph = {name: groups for name, groups in memberships(night).items() if name in graph["graphs"]}
    graphs = [membership_snapshot(name, bars.ts[0], bars.symbols, groups) for name, groups in groups_by_graph.items()]
    graphs += [snapshot for series in recomputed.values() for snapshot in series]
    stored_features = stored.features.slice_bars(0, cut_bar + 1)
    comparisons = {
        "features": compare(
            stored_features.values, features.values, stored_features.mask, features.mask, VALUE_TOLERANCE
        )
    }
    for name, series in recomputed.items():
        edges = _compare_edges(stored.snapshots[name], series, cut_ts)
        if edges.rows_compared or not isinstance(rules[name], TradeRule):  # there may be no trade up to the cut
            comparisons[f"{name} edges"] = edges
    reads_events = any(zoo.find_network(contender.model).reads_events for contender in contenders)
    side_inputs = SideInputs(graphs, load_bar_events(night, cut_ts) if reads_events else None)
    for contender in contenders:
        for trial_id in contender.trial_ids:
            subject = f"predictions of {contender.model}, trial {trial_id}"
            comparisons[subject] = _compare_forecasts(night, trial_id, features, side_inputs, test_bars)
    return [_verdict(subject, cut_ts, comparison) for subject, comparison in comparisons.items()]


def _compare_edges(stored: Sequence[Snapshot], recomputed: Sequence[Snapshot], last: np.datetime64) -> Comparison:
    """Compares every edge with as_of ≤ ``last`` that is stored or recomputed, by (as_of, src, dst).

    A snapshot counts as one more row, so that a missing snapshot is noticed even if it has no edge.
    """
    stored_keys, stored_weight = _edge_table(s for s in stored if s.as_of <= last)
    recomputed_keys, recomputed_weight = _edge_table(s for s in recomputed if s.as_of <= last)
    keys, row_of_edge = np.unique(np.concatenate([stored_keys, recomputed_keys]), axis=0, return_inverse=True)
    stored_row = row_of_edge[: len(stored_keys)]
    recomputed_row = row_of_edge[len(stored_keys) :]
    weights = np.full((2, len(keys), 1), np.nan)
    weights[0, stored_row, 0] = stored_weight
    weights[1, recomputed_row, 0] = recomputed_weight
    exists = np.zeros((2, len(keys)), dtype=bool)
    exists[0, stored_row] = True
    exists[1, recomputed_row] = True
    return compare(weights[0], weights[1], exists[0], exists[1], VALUE_TOLERANCE)


def _edge_table(snapshots: Iterable[Snapshot]) -> tuple[np.ndarray, np.ndarray]:
    """Keys (as_of in epoch microseconds, src, dst), (e, 3) int64, and weights, (e,), of the edges of the snapshots.

    Each snapshot adds the edge (−1, −1) with its number of edges as weight, so that an empty snapshot counts too.
    """
    keys = [np.zeros((0, 3), dtype=np.int64)]
    weights = [np.zeros(0)]
    for s in snapshots:
        as_of = np.full(len(s.src) + 1, s.as_of.astype(np.int64))
        keys.append(np.column_stack((as_of, np.append(s.src, -1), np.append(s.dst, -1))))
        weights.append(np.append(s.weight, len(s.src)))
    return np.concatenate(keys), np.concatenate(weights)


def _compare_forecasts(
    night: Night, trial_id: str, features: Panel, side_inputs: SideInputs, test_bars: int
) -> Comparison:
    """Compares the stored forecasts of the last bar of ``features`` with the forecasts of the fold's model file.

    A row is one (asset, horizon) and has the FORECAST_COLUMNS.
    """
    ts = features.ts[-1]
    keys = {**night.slice, "trial_id": trial_id, "ts": utc_datetime(ts)}
    fold_row = night.warehouse.query("fold_at", **keys).to_pylist()[0]
    start = int(np.searchsorted(features.ts, np.datetime64(fold_row["test_start"].replace(tzinfo=None), "us")))
    # predict_fold reads only the test window of a Fold, so the training rows are left empty
    window = Fold(fold_row["fold"], np.zeros(0, dtype=np.int64), start, start, start + test_bars, 0)
    artifact = night.warehouse.artifacts / fold_row["artifact"]
    predictions = predict_fold(artifact, features, side_inputs, window, len(features) - 1)
    shape = (len(predictions.symbols), len(predictions.horizons), len(FORECAST_COLUMNS))
    recomputed = np.empty(shape)
    recomputed[:, :, : len(PROBABILITIES)] = predictions.probabilities[0][:, None, :]
    recomputed[:, :, FORECAST_COLUMNS.index("expected_return")] = predictions.returns[0]
    recomputed[:, :, FORECAST_COLUMNS.index("expected_volatility")] = predictions.volatility[0][:, None]
    stored = np.full(shape, np.nan)
    is_stored = np.zeros(shape[:2], dtype=bool)
    rows = night.warehouse.query("forecasts_at", **keys)
    asset = np.array([predictions.symbols.index(s) for s in rows["symbol"].to_pylist()], dtype=np.int64)
    horizon = np.array([predictions.horizons.index(h) for h in rows["horizon_bars"].to_pylist()], dtype=np.int64)
    stored[asset, horizon] = np.column_stack([rows[name].to_numpy() for name in FORECAST_COLUMNS])
    is_stored[asset, horizon] = True
    is_recomputed = np.repeat(predictions.valid[0][:, None], shape[1], axis=1)
    return compare(stored, recomputed, is_stored, is_recomputed, FORECAST_TOLERANCE)


def _verdict(subject: str, cut_ts: np.datetime64, comparison: Comparison) -> Row:
    """The row of ``leak_audit``, without its keys, for one subject and the cut at the bar that opens at ``cut_ts``."""
    message = (
        f"{comparison.rows_compared} rows are the same without the bars after the cut"
        if comparison.passed
        else f"{comparison.rows_different} of {comparison.rows_compared} rows differ without the bars after the cut, "
        f"by up to {comparison.max_abs_difference:g}"
    )
    return {
        "subject": subject,
        "cut": utc_datetime(cut_ts),
        "rows_compared": comparison.rows_compared,
        "rows_different": comparison.rows_different,
        "max_abs_difference": comparison.max_abs_difference,
        "passed": comparison.passed,
        "message": message,
    }
