"""The leak audit on a trained warehouse: it passes on correct rows and fails for each kind of synthetic leak.

A night is the run for one as-of date. A cut is the bar after which the audit leaves the data out. A Desk is a test
warehouse with recorded bars of four stocks, see tests/desk.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from models.scoring.portfolio import Limits
from tasks.audit import AuditReport, audit_leaks
from tasks.backtest import run_backtests
from tasks.errors import LeakFoundError
from tasks.graphs import build_graphs, write_features
from tasks.signals import write_next_session_signals
from tasks.train import Recipe, contenders, load_training_data, train_model
from tests.desk import Desk

FRIDAY = date(2024, 6, 28)
GRAPH = {
    "graphs": ("correlation", "lead_lag", "sector"),
    "window_bars": 20,
    "min_correlation": 0.05,
    "top_k": 2,
    "every_bars": 5,
}
RECIPE = Recipe(
    horizons=(1, 5),
    class_horizon=5,
    folds={"warmup_bars": 61, "train_bars": 30, "test_bars": 20, "embargo_bars": 2},
    train={"epochs": 1, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)
NETWORKS = ("lstm", "ssm_gnn")
MODELS = (*NETWORKS, "buy_and_hold")
CLASS_HORIZON = RECIPE.class_horizon
TEST_BARS = RECIPE.folds["test_bars"]


@pytest.fixture(scope="module")
def trained_folder(open_desk: Callable, desk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a warehouse that has features, graphs, model files and forecasts of the night of FRIDAY."""
    folder = tmp_path_factory.mktemp("trained")
    desk = open_desk(shutil.copy(desk_file, folder))
    desk.delay_aaa_behind_bbb()
    night = desk.night(FRIDAY)
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    data = load_training_data.fn(night, RECIPE)
    for model in NETWORKS:
        train_model.fn(night, data, model, 0, RECIPE)
    return folder


@pytest.fixture
def desk(open_desk: Callable, trained_folder: Path, tmp_path: Path) -> Desk:
    """A test warehouse: a copy of ``trained_folder``."""
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    return open_desk(tmp_path / "warehouse.duckdb")


def run_audit(desk: Desk, dates: int = 2) -> AuditReport:
    """Audits the night of FRIDAY with MODELS, at ``dates`` cuts."""
    night = desk.night(FRIDAY)
    return audit_leaks.fn(night, contenders(night, MODELS, (0,), RECIPE), GRAPH, CLASS_HORIZON, TEST_BARS, dates)


def verdicts(desk: Desk) -> dict[str, set[bool]]:
    """By subject without its trial, the set of its verdicts (True for passed) over all cuts."""
    rows = desk.rows("SELECT split_part(subject, ',', 1), list(DISTINCT passed) FROM store.leak_audit GROUP BY 1")
    return {subject: set(results) for subject, results in rows}


ALL_PASSED = {
    "features": {True},
    "correlation edges": {True},
    "lead_lag edges": {True},
    "predictions of lstm": {True},
    "predictions of ssm_gnn": {True},
}


def test_rows_computed_from_past_data_alone_pass_the_audit(desk: Desk) -> None:
    report = run_audit(desk)
    assert report.cuts == 2
    assert verdicts(desk) == ALL_PASSED
    rows = desk.rows("SELECT subject, rows_compared, rows_different, max_abs_difference FROM store.leak_audit")
    assert len(rows) == 2 * len(ALL_PASSED)  # two cuts
    assert all(compared > 0 and different == 0 for _, compared, different, _ in rows)
    # four symbols at two horizons
    assert {compared for subject, compared, _, _ in rows if subject.startswith("predictions")} == {4 * 2}
    assert report.rows_compared == sum(compared for _, compared, _, _ in rows)


def test_a_night_without_a_sector_graph_is_audited_without_it(
    open_desk: Callable, desk_file: Path, tmp_path: Path
) -> None:
    night = open_desk(shutil.copy(desk_file, tmp_path)).night(FRIDAY)
    graph_options = GRAPH | {"graphs": ("correlation",)}
    write_features.fn(night)
    build_graphs.fn(night, **graph_options)
    model = "ssm_gnn_sector"
    train_model.fn(night, load_training_data.fn(night, RECIPE, (model,)), model, 0, RECIPE)
    report = audit_leaks.fn(night, contenders(night, (model,), (0,), RECIPE), graph_options, CLASS_HORIZON, TEST_BARS)
    assert report.cuts == 2 and report.rows_compared > 0


def test_cuts_are_past_decisions_sampled_the_same_in_every_run_of_a_night(desk: Desk) -> None:
    run_audit(desk, dates=3)
    cuts = [cut for (cut,) in desk.rows("SELECT DISTINCT cut FROM store.leak_audit ORDER BY 1")]
    assert len(cuts) == 3
    forecasts = [ts for (ts,) in desk.rows("SELECT DISTINCT ts FROM predictions ORDER BY 1")]
    assert set(cuts) <= set(forecasts[len(forecasts) // 2 : -1])
    before = desk.contents("store.leak_audit")
    run_audit(desk, dates=3)
    assert desk.contents("store.leak_audit") == before


def test_features_scaled_with_the_whole_history_fail_the_audit(desk: Desk) -> None:
    desk.execute(
        "UPDATE store.features SET volume_z_20 = volume_z_20 - (SELECT avg(volume_z_20) FROM store.features "
        "WHERE universe = 'stocks')"
    )
    with pytest.raises(LeakFoundError, match=r"features at 2024-06.*rows differ without the bars after the cut"):
        run_audit(desk)
    assert verdicts(desk) == ALL_PASSED | {"features": {False}}


def test_edges_from_a_later_window_fail_the_audit(desk: Desk) -> None:
    desk.execute(
        "UPDATE store.graph_edges AS e SET weight = later.weight FROM store.graph_edges AS later "
        "WHERE e.graph = 'correlation' AND later.graph = e.graph AND later.src = e.src AND later.dst = e.dst "
        "AND later.as_of > e.as_of"
    )
    with pytest.raises(LeakFoundError, match="correlation edges"):
        run_audit(desk)
    assert verdicts(desk) == ALL_PASSED | {"correlation edges": {False}}


def test_an_empty_stored_snapshot_passes_and_a_missing_snapshot_fails_the_audit(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    graph_options = GRAPH | {"graphs": ("correlation", "spearman"), "min_correlation": 1.0}
    build_graphs.fn(night, **graph_options)
    lstm = contenders(night, ("lstm",), (0,), RECIPE)
    assert desk.rows("SELECT sum(edges) FROM graph_snapshots WHERE graph = 'spearman'") == [(0,)]
    audit_leaks.fn(night, lstm, graph_options, CLASS_HORIZON, TEST_BARS)
    desk.execute("DELETE FROM store.graph_snapshots WHERE graph = 'spearman'")
    with pytest.raises(LeakFoundError, match="spearman edges"):
        audit_leaks.fn(night, lstm, graph_options, CLASS_HORIZON, TEST_BARS)


def test_without_trades_a_trade_graph_is_audited_only_if_a_snapshot_is_stored(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    graph_options = GRAPH | {"graphs": ("correlation", "order_flow")}
    lstm = contenders(night, ("lstm",), (0,), RECIPE)
    build_graphs.fn(night, **graph_options)
    audit_leaks.fn(night, lstm, graph_options, CLASS_HORIZON, TEST_BARS)
    assert "order_flow edges" not in verdicts(desk)
    desk.execute(
        "INSERT INTO store.graph_snapshots SELECT * REPLACE ('order_flow' AS graph) FROM store.graph_snapshots "
        "WHERE graph = 'correlation'"
    )
    with pytest.raises(LeakFoundError, match="order_flow edges"):
        audit_leaks.fn(night, lstm, graph_options, CLASS_HORIZON, TEST_BARS)


def test_edges_in_the_wrong_direction_fail_the_audit(desk: Desk) -> None:
    desk.execute("UPDATE store.graph_edges SET src = dst, dst = src WHERE graph = 'lead_lag'")
    with pytest.raises(LeakFoundError, match="lead_lag edges"):
        run_audit(desk)
    assert verdicts(desk) == ALL_PASSED | {"lead_lag edges": {False}}


def test_missing_edges_fail_the_audit(desk: Desk) -> None:
    desk.execute("DELETE FROM store.graph_edges WHERE graph = 'correlation' AND as_of < '2024-03-01'")
    with pytest.raises(LeakFoundError, match="correlation edges"):
        run_audit(desk)


@pytest.mark.parametrize("column", ["p_buy", "expected_return", "expected_volatility"])
def test_a_stored_forecast_that_differs_from_the_model_files_forecast_fails_the_audit(desk: Desk, column: str) -> None:
    (trial_id,) = desk.rows("SELECT trial_id FROM trials WHERE model = 'lstm'")[0]
    desk.execute(
        f"UPDATE store.predictions SET {column} = {column} + 1e-4 WHERE trial_id = $trial_id", trial_id=trial_id
    )
    with pytest.raises(LeakFoundError, match=f"predictions of lstm, trial {trial_id}"):
        run_audit(desk)
    assert verdicts(desk) == ALL_PASSED | {"predictions of lstm": {False}}


def test_missing_forecasts_fail_the_audit(desk: Desk) -> None:
    desk.execute("DELETE FROM store.predictions WHERE symbol = 'CCC' AND horizon_bars = 1")
    with pytest.raises(LeakFoundError, match="of 8 rows differ"):
        run_audit(desk)


def test_a_passed_audit_replaces_the_verdicts_of_a_failed_one(desk: Desk) -> None:
    desk.execute("UPDATE store.features SET rsi_14 = rsi_14 + 1 WHERE symbol = 'AAA'")
    with pytest.raises(LeakFoundError):
        run_audit(desk)
    desk.execute("UPDATE store.features SET rsi_14 = rsi_14 - 1 WHERE symbol = 'AAA'")
    run_audit(desk)
    assert verdicts(desk) == ALL_PASSED


def test_forecasts_of_trained_networks_become_signals(desk: Desk) -> None:
    night = replace(desk.night(FRIDAY), tape=Path("tape"))
    models = contenders(night, MODELS, (0,), RECIPE)
    limits = Limits(min_confidence=0.01, correlation_sessions=20)
    run_backtests.fn(night, models, limits, CLASS_HORIZON)
    report = write_next_session_signals.fn(night, models, limits, RECIPE.horizons, CLASS_HORIZON)
    assert (report.signals, report.for_session) == (8, date(2024, 7, 1))
    assert report.champion in NETWORKS
