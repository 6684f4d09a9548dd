"""Training in a real warehouse: every fold is fitted once, later nights add only new rows, interruptions change no row.

A night is the run for one as-of date. With RECIPE, the night of FRIDAY has two folds. A Desk is a test warehouse with
recorded bars of four stocks and two perpetuals; it opens their nights, see tests/desk.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from models.training import fit
from models.training.artifact import file_hash, read_header
from models.training.errors import EmptyFoldError
from models.zoo import UnknownModelError
from tasks import train as train_module
from tasks.errors import NoFoldsError
from tasks.graphs import build_graphs, write_features
from tasks.learned_graphs import EVERY_BARS as BARS_BETWEEN_LEARNED_GRAPHS
from tasks.night import Night
from tasks.panels import load_snapshots
from tasks.train import Progress, Recipe, TrialReport, contenders, load_training_data, train_model, trial_id
from tests.desk import Desk

FRIDAY = date(2024, 6, 28)
MONDAY = date(2024, 7, 1)
TABLES = ("store.trials", "store.folds", "store.predictions")
RECIPE = Recipe(
    horizons=(1, 5),
    class_horizon=5,
    folds={"warmup_bars": 61, "train_bars": 30, "test_bars": 20, "embargo_bars": 2},
    train={"epochs": 2, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)


def build_night(desk: Desk, as_of: date) -> Night:
    """Writes features and graphs of the night of stocks, and returns the night."""
    night = desk.night(as_of)
    write_features.fn(night)
    build_graphs.fn(night, window_bars=20, min_correlation=0.05, top_k=2, every_bars=5)
    return night


def train_night(
    desk: Desk, as_of: date = FRIDAY, model: str = "s4d", seed: int = 0, recipe: Recipe = RECIPE, **options
) -> TrialReport:
    """Writes features and graphs of the night, then trains one model; ``options`` go to train_model."""
    night = build_night(desk, as_of)
    return train_model.fn(night, load_training_data.fn(night, recipe), model, seed, recipe, **options)


def table_contents(desk: Desk, where: str = "true") -> dict[str, pa.Table]:
    """The rows of each of TABLES that satisfy ``where``."""
    return {table: desk.contents(f"{table} WHERE {where}") for table in TABLES}


def tables_are_equal(first: dict[str, pa.Table], second: dict[str, pa.Table]) -> bool:
    """True when each of TABLES has equal rows in ``first`` and ``second``."""
    return all(first[table].equals(second[table]) for table in TABLES)


@pytest.fixture(scope="module")
def trained_folder(open_desk: Callable, desk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the warehouse and model files of the published night of FRIDAY, which trained the network s4d."""
    folder = tmp_path_factory.mktemp("trained")
    desk = open_desk(shutil.copy(desk_file, folder))
    train_night(desk)
    desk.publish(FRIDAY)
    return folder


@pytest.fixture
def trained(open_desk: Callable, trained_folder: Path, tmp_path: Path) -> Desk:
    """A test warehouse: a copy of ``trained_folder``."""
    shutil.copytree(trained_folder, tmp_path / "trained")
    return open_desk(tmp_path / "trained" / "warehouse.duckdb")


def count_duplicate_predictions(desk: Desk) -> int:
    """Number of (symbol, ts, horizon_bars) with more than one prediction."""
    keys = "SELECT 1 FROM store.predictions GROUP BY symbol, ts, horizon_bars HAVING count(*) > 1"
    ((count,),) = desk.rows(f"SELECT count(*) FROM ({keys})")
    return count


def interrupt_at_fold(fold: int) -> Progress:
    """A progress callback that raises KeyboardInterrupt when ``fold`` folds are done, as Ctrl-C does."""

    def on_progress(done: int, total: int, label: str) -> None:
        if done == fold:
            raise KeyboardInterrupt

    return on_progress


def model_files(desk: Desk) -> list[Path]:
    """Paths of the stored model files, ordered by name; each fold of each network has at least one."""
    return sorted(desk.warehouse.artifacts.glob("*.safetensors"))


def test_the_first_night_fits_every_fold_and_forecasts_every_test_bar(desk: Desk) -> None:
    report = train_night(desk)
    assert (report.model, report.seed) == ("s4d", 0)
    assert (report.folds, report.fitted, report.skipped) == (2, 2, 0)
    (fold_0, first_0, last_0, n_rows_0), (fold_1, first_1, last_1, n_rows_1) = desk.rows(
        "SELECT fold, min(ts)::DATE, max(ts)::DATE, count(*) FROM store.predictions GROUP BY 1 ORDER BY 1"
    )
    (start_0, end_0), (start_1, _) = desk.rows("SELECT test_start::DATE, test_end::DATE FROM store.folds ORDER BY fold")
    assert (fold_0, fold_1) == (0, 1)
    assert (first_0, first_1) == (start_0, start_1)
    assert last_0 < end_0 == start_1
    assert last_1 == FRIDAY
    assert n_rows_0 + n_rows_1 == report.predictions
    assert count_duplicate_predictions(desk) == 0


def test_every_bar_with_a_trailing_volatility_is_predicted_at_every_horizon(trained: Desk) -> None:
    expected = trained.rows(
        f"SELECT symbol, ts, h FROM features, (SELECT unnest({list(RECIPE.horizons)})) AS t(h) WHERE volatility_60 > 0 "
        "AND ts >= (SELECT min(test_start) FROM folds) AND universe = 'stocks' ORDER BY ALL"
    )
    assert trained.rows("SELECT symbol, ts, horizon_bars FROM predictions ORDER BY ALL") == expected
    assert len({symbol for symbol, _, _ in expected}) == 4
    is_invalid = "abs(p_strong_sell + p_sell + p_hold + p_buy + p_strong_buy - 1) > 1e-9 OR expected_volatility <= 0"
    assert trained.rows(f"SELECT * FROM predictions WHERE {is_invalid} OR NOT isfinite(expected_return)") == []


def test_trial_and_fold_rows_record_how_the_fold_was_fitted(trained: Desk) -> None:
    (trial,) = trained.contents("store.trials").to_pylist()
    assert (trial["model"], trial["seed"], trial["horizons_bars"]) == ("s4d", 0, [1, 5])
    assert json.loads(trial["spec"])["fit"]["epochs"] == 2
    assert trial["trial_id"] == trial_id(trained.night(FRIDAY), "s4d", 0, RECIPE)
    for row in trained.contents("store.folds").to_pylist():
        path = trained.warehouse.artifacts / row["artifact"]
        header = read_header(path)
        assert row["artifact_sha256"] == file_hash(path)
        assert trial["parameters"] == header.fit_result.parameters
        for name in ("epochs", "validation_loss", "train_rows", "validation_rows", "data_hash", "code_version"):
            assert row[name] == getattr(header.fit_result, name)
        assert row["last_label_end"] < row["test_start"]
        assert row["purge_bars"] == max(RECIPE.horizons) + 1
        assert row["embargo_bars"] == RECIPE.folds["embargo_bars"]
    assert len(model_files(trained)) == 2


def test_training_again_fits_nothing_and_changes_no_row(trained: Desk) -> None:
    before = table_contents(trained)
    modified_at = [(p.name, p.stat().st_mtime_ns) for p in model_files(trained)]
    report = train_night(trained)
    assert (report.folds, report.fitted, report.predictions) == (2, 0, 0)
    assert tables_are_equal(table_contents(trained), before)
    assert [(p.name, p.stat().st_mtime_ns) for p in model_files(trained)] == modified_at


def test_the_next_night_adds_forecasts_of_its_new_bars_and_changes_no_row(trained: Desk) -> None:
    before = table_contents(trained)
    report = train_night(trained, MONDAY)
    assert (report.fitted, report.predictions) == (0, 4 * 2)  # one new bar of four symbols at two horizons
    assert tables_are_equal(table_contents(trained, f"run_id <> '{trained.night(MONDAY).run_id}'"), before)
    assert trained.rows("SELECT DISTINCT ts::DATE FROM predictions ORDER BY 1 DESC LIMIT 1") == [(MONDAY,)]


def test_two_nights_in_a_row_write_the_same_numbers_as_the_later_night_alone(trained: Desk, desk: Desk) -> None:
    """Forecasts are exactly equal except at the last bar, which the second night forecasts from a saved state.

    At that bar they agree to 1e-7, the rounding of single precision.
    """
    train_night(trained, MONDAY)
    train_night(desk, MONDAY)
    columns = "* EXCLUDE (run_id)"
    for table in set(TABLES) - {"store.predictions"}:
        assert trained.contents(table, columns).equals(desk.contents(table, columns))
    two_nights = trained.contents("store.predictions", columns).to_pandas()
    one_night = desk.contents("store.predictions", columns).to_pandas()
    pd.testing.assert_frame_equal(two_nights, one_night, check_exact=False, rtol=0, atol=1e-7)
    is_before_last = two_nights["ts"] < two_nights["ts"].max()
    pd.testing.assert_frame_equal(two_nights[is_before_last], one_night[is_before_last], check_exact=True)


def test_the_next_night_forecasts_incrementally_from_the_saved_state(
    trained: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(list(trained.warehouse.artifacts.glob("*.state"))) == 1
    monkeypatch.setattr(fit, "_forecast_segment", pytest.fail)  # it would forecast a whole window without the state
    train_night(trained, MONDAY)
    n_states = len(list(trained.warehouse.artifacts.glob("*.state")))
    assert n_states == 2  # the new state, and the state from which it was computed


@pytest.mark.parametrize("fold", [0, 1])
def test_rows_and_files_after_an_interruption_and_a_second_run_equal_uninterrupted_ones(
    desk: Desk, trained: Desk, fold: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_night(desk, on_progress=interrupt_at_fold(fold))
    assert len(desk.rows("SELECT fold FROM store.folds")) == fold
    train_night(desk)
    assert tables_are_equal(table_contents(desk), table_contents(trained))
    assert [p.name for p in model_files(desk)] == [p.name for p in model_files(trained)]


def test_an_unexpected_error_in_one_fit_stops_the_other_fits_and_nothing_is_written(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_for_first_fold(spec, config, features, labels, side_inputs, fold, *arguments):
        if fold.index == 0:
            raise OSError("no space left")
        return fit.fit_fold(spec, config, features, labels, side_inputs, fold, *arguments)

    # long enough that the fit of the second fold still runs when the first fails
    long_fits = replace(RECIPE, train={**RECIPE.train, "epochs": 400, "patience": 400})
    monkeypatch.setattr(train_module, "fit_fold", raise_for_first_fold)
    with pytest.raises(OSError, match="no space left"):
        train_night(desk, recipe=long_fits, workers=2)
    assert all(rows.num_rows == 0 for rows in table_contents(desk).values())
    assert not list(desk.warehouse.artifacts.glob("*.safetensors"))


def test_a_lost_or_damaged_model_file_is_fitted_again_and_no_row_changes(trained: Desk) -> None:
    before = table_contents(trained)
    lost, damaged = model_files(trained)
    hashes = [file_hash(lost), file_hash(damaged)]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:500])
    report = train_night(trained)
    assert (report.fitted, report.predictions) == (2, 0)
    assert [file_hash(lost), file_hash(damaged)] == hashes
    assert tables_are_equal(table_contents(trained), before)


def test_a_fold_whose_rows_are_lost_is_not_fitted_again_while_its_model_file_exists(trained: Desk) -> None:
    before = table_contents(trained)
    for table in TABLES:
        trained.execute(f"DELETE FROM {table}")
    assert train_night(trained).fitted == 0
    assert tables_are_equal(table_contents(trained), before)


def test_after_a_restated_bar_the_folds_trained_on_it_are_fitted_again(trained: Desk) -> None:
    """The bar is in the training rows of the second fold only, and in the test window of the first."""
    before = dict(trained.rows("SELECT fold, fold_key FROM store.folds"))
    trained.execute("UPDATE store.bars SET volume = volume * 3 WHERE symbol = 'AAA' AND ts::DATE = '2024-05-17'")
    report = train_night(trained)
    assert report.fitted == 1
    after = dict(trained.rows("SELECT fold, fold_key FROM store.folds"))
    assert after[0] == before[0] and after[1] != before[1]
    assert count_duplicate_predictions(trained) == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_folds_fitted_in_parallel_equal_folds_fitted_in_sequence(desk: Desk, trained: Desk, workers: int) -> None:
    train_night(desk, workers=workers)
    assert tables_are_equal(table_contents(desk), table_contents(trained))


def test_each_pair_of_network_and_seed_is_a_separate_trial(trained: Desk) -> None:
    night = trained.night(FRIDAY)
    train_night(trained, seed=1)
    train_night(trained, model="ssm_gnn")
    # momentum is a trading rule, so it has no trials
    s4d, ssm_gnn, momentum = contenders(night, ("s4d", "ssm_gnn", "momentum"), (0, 1), RECIPE)
    assert [(c.model, c.kind, len(c.trial_ids)) for c in (s4d, ssm_gnn, momentum)] == [
        ("s4d", "network", 2),
        ("ssm_gnn", "network", 2),
        ("momentum", "rule", 0),
    ]
    stored = {stored_id for (stored_id,) in trained.rows("SELECT trial_id FROM store.trials")}
    assert stored == {*s4d.trial_ids, ssm_gnn.trial_ids[0]}
    seed_0, seed_1 = (f"(FROM store.predictions WHERE trial_id = '{stored_id}')" for stored_id in s4d.trial_ids)
    seeds = f"{seed_0} AS a JOIN {seed_1} AS b USING (symbol, ts, horizon_bars)"
    assert trained.rows(f"SELECT DISTINCT a.expected_return = b.expected_return FROM {seeds}") == [(False,)]


def test_a_trial_id_depends_on_source_universe_model_seed_and_recipe(desk: Desk) -> None:
    night = desk.night(FRIDAY)
    longer_recipe = replace(RECIPE, train={**RECIPE.train, "epochs": 3})
    trial_ids = {
        trial_id(night, "s4d", 0, RECIPE),
        trial_id(night, "s4d", 1, RECIPE),
        trial_id(night, "lstm", 0, RECIPE),
        trial_id(night, "s4d", 0, longer_recipe),
        trial_id(replace(night, source="simulated"), "s4d", 0, RECIPE),
        trial_id(desk.night(FRIDAY, "perpetuals"), "s4d", 0, RECIPE),
    }
    assert len(trial_ids) == 6
    assert trial_id(desk.night(MONDAY), "s4d", 0, RECIPE) in trial_ids  # the date of the night does not matter


def test_a_fold_without_training_rows_is_skipped_and_the_others_are_fitted(
    desk: Desk, trained: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_empty_for_first_fold(spec, config, features, labels, side_inputs, fold, *arguments):
        if fold.index == 0:
            raise EmptyFoldError("fold 0: nothing")
        return fit.fit_fold(spec, config, features, labels, side_inputs, fold, *arguments)

    monkeypatch.setattr(train_module, "fit_fold", raise_empty_for_first_fold)
    report = train_night(desk)
    assert (report.fitted, report.skipped) == (1, 1)
    assert desk.contents("store.predictions").equals(trained.contents("store.predictions WHERE fold = 1"))


def test_a_network_is_fitted_with_the_graph_that_its_spec_names(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_by_model = {}

    def record_graphs(spec, config, features, labels, side_inputs, *arguments):
        graphs_by_model[spec.model] = {snapshot.graph for snapshot in side_inputs.snapshots or ()}
        return fit.fit_fold(spec, config, features, labels, side_inputs, *arguments)

    monkeypatch.setattr(train_module, "fit_fold", record_graphs)
    for model in ("ssm_gnn", "ssm_gnn_sector", "ssm_gnn_attention", "ssm"):
        train_night(desk, model=model)
    assert graphs_by_model == {
        "ssm_gnn": {"correlation"},
        "ssm_gnn_sector": {"sector"},
        "ssm_gnn_attention": set(),
        "ssm": set(),
    }


def test_only_the_graphs_that_the_requested_models_read_are_loaded(desk: Desk) -> None:
    night = build_night(desk, FRIDAY)
    data = load_training_data.fn(night, RECIPE, ("s4d", "ssm_gnn_sector", "ssm_gnn_attention"))
    assert set(data.snapshots) == {"sector"}
    assert set(load_training_data.fn(night, RECIPE).snapshots) >= {"correlation", "sector"}


def test_after_a_change_of_sectors_only_the_network_that_reads_sectors_is_fitted_again(desk: Desk) -> None:
    for model in ("ssm_gnn", "ssm_gnn_sector"):
        assert train_night(desk, model=model).fitted == 2
    night = build_night(desk, FRIDAY)
    members = tuple(replace(member, sector="Energy") for member in night.universe.members)
    night = replace(night, universe=replace(night.universe, members=members))
    build_graphs.fn(night, window_bars=20, min_correlation=0.05, top_k=2, every_bars=5)
    data = load_training_data.fn(night, RECIPE)
    fitted = [train_model.fn(night, data, model, 0, RECIPE).fitted for model in ("ssm_gnn", "ssm_gnn_sector")]
    assert fitted == [0, 2]


LEARNED_GRAPHS = (
    "store.graph_snapshots WHERE starts_with(graph, 'attention')",
    "store.graph_edges WHERE starts_with(graph, 'attention')",
)


def test_the_graph_that_a_network_learns_is_stored_with_its_forecasts(desk: Desk) -> None:
    train_night(desk, model="ssm_gnn_attention")
    train_night(desk, model="ssm_gnn_attention", seed=1)
    snapshots, edges = (desk.contents(table).to_pandas() for table in LEARNED_GRAPHS)
    assert set(snapshots["graph"]) == {"attention:ssm_gnn_attention", "attention:ssm_gnn_attention:1"}
    assert snapshots["directed"].all()
    loaded = load_snapshots(desk.night(FRIDAY), "attention:ssm_gnn_attention")
    assert [s.directed for s in loaded] == [True] * len(loaded) and len(loaded) > 0
    forecast_ts = [ts for (ts,) in desk.rows("SELECT DISTINCT ts FROM predictions ORDER BY 1")]
    first_index = forecast_ts.index(snapshots["as_of"].min().to_pydatetime())
    assert sorted(set(snapshots["as_of"])) == forecast_ts[first_index::BARS_BETWEEN_LEARNED_GRAPHS]
    assert first_index < BARS_BETWEEN_LEARNED_GRAPHS
    assert (snapshots["nodes"] == 4).all() and snapshots["window_start"].isna().all()
    series = snapshots[snapshots["graph"] == "attention:ssm_gnn_attention"].sort_values("as_of")
    # turnover needs one earlier snapshot, drift needs two, so the first ones are null
    assert series["turnover"].notna().tolist() == [False, *[True] * (len(series) - 1)]
    assert series["drift"].notna().sum() == len(series) - 2 and (series["turnover"][1:] >= 0).all()
    series_edges = edges[edges["graph"] == "attention:ssm_gnn_attention"]
    assert len(series_edges) == snapshots.loc[snapshots["graph"] == "attention:ssm_gnn_attention", "edges"].sum()
    assert (series_edges["src"] != series_edges["dst"]).all()
    assert series_edges["weight"].between(0, 1, inclusive="right").all()
    # the weights of the edges into one asset sum to 1, up to rounding
    weight_sums = series_edges.groupby(["as_of", "dst"])["weight"].sum()
    np.testing.assert_allclose(weight_sums, 1, atol=1e-5)
    parameters = json.loads(snapshots["parameters"][0])
    trial = parameters["trial_id"]
    assert desk.rows(f"SELECT model FROM trials WHERE trial_id = '{trial}'") == [("ssm_gnn_attention",)]


def test_learned_graphs_after_an_interruption_equal_uninterrupted_ones(desk: Desk, tmp_path: Path) -> None:
    """The interrupted night is run twice again, so that the last run also meets complete rows."""
    uninterrupted = desk.copy_to(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train_night(desk, model="ssm_gnn_attention", on_progress=interrupt_at_fold(1))
    for _ in range(2):
        train_night(desk, model="ssm_gnn_attention")
    train_night(uninterrupted, model="ssm_gnn_attention")
    for table in LEARNED_GRAPHS:
        assert desk.contents(table).num_rows > 0
        assert desk.contents(table).equals(uninterrupted.contents(table))


def test_a_later_night_adds_learned_graphs_and_changes_no_earlier_one(desk: Desk, tmp_path: Path) -> None:
    later_alone = desk.copy_to(tmp_path / "later_alone")
    train_night(desk, model="ssm_gnn_attention")
    desk.publish(FRIDAY)
    before = [desk.contents(table).to_pandas() for table in LEARNED_GRAPHS]
    train_night(desk, date(2024, 7, 12), model="ssm_gnn_attention")
    for table, old in zip(LEARNED_GRAPHS, before, strict=True):
        new = desk.contents(table).to_pandas()
        assert len(new) > len(old)
        pd.testing.assert_frame_equal(new[new["as_of"] <= old["as_of"].max()].reset_index(drop=True), old)
    train_night(later_alone, date(2024, 7, 12), model="ssm_gnn_attention")
    for table, old in zip(LEARNED_GRAPHS, before, strict=True):
        alone = later_alone.contents(table).to_pandas().drop(columns="run_id")
        alone = alone[alone["as_of"] <= old["as_of"].max()].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, old.drop(columns="run_id"), check_exact=True)


def test_a_pretrained_part_is_fitted_once_per_fold(desk: Desk) -> None:
    """Each fold has two model files: one of the pretrained part and one of the whole network.

    store.folds names only the file of the whole network. When only this file is lost, as after a night that stopped
    between the two fits, the pretrained part is not fitted again.
    """
    assert train_night(desk, model="ssm_gnn_pretrained").fitted == 2
    before = table_contents(desk)
    files = model_files(desk)
    whole_networks = {name for (name,) in desk.rows("SELECT artifact FROM store.folds")}
    pretrained = [path for path in files if path.name not in whole_networks]
    assert (len(whole_networks), len(pretrained)) == (2, 2)
    modified_at = [path.stat().st_mtime_ns for path in pretrained]
    for name in whole_networks:
        (desk.warehouse.artifacts / name).unlink()
    for table in TABLES:
        desk.execute(f"DELETE FROM {table}")
    assert train_night(desk, model="ssm_gnn_pretrained").fitted == 2
    assert tables_are_equal(table_contents(desk), before) and model_files(desk) == files
    assert [path.stat().st_mtime_ns for path in pretrained] == modified_at


def test_progress_is_reported_before_every_fold_and_at_the_end(desk: Desk) -> None:
    calls: list[tuple[int, int, str]] = []
    train_night(desk, on_progress=lambda *arguments: calls.append(arguments))
    assert calls == [(0, 2, "s4d, fold 1 of 2"), (1, 2, "s4d, fold 2 of 2"), (2, 2, "s4d")]


def test_a_history_too_short_for_a_fold_raises_with_the_bars_it_needs(desk: Desk) -> None:
    with pytest.raises(
        NoFoldsError, match=r"stocks has \d+ bars up to 2024-05-01; its first test window starts after 93"
    ):
        train_night(desk, date(2024, 5, 1))


def test_rules_and_unknown_models_are_not_trained(desk: Desk) -> None:
    with pytest.raises(UnknownModelError, match="'momentum' is a rule"):
        train_night(desk, model="momentum")
    with pytest.raises(UnknownModelError, match="unknown model 'oracle'"):
        contenders(desk.night(FRIDAY), ("oracle",), (0,), RECIPE)


def test_a_forecast_does_not_depend_on_prices_after_its_bar(trained: Desk) -> None:
    """It depends on the features up to its bar and on a fit that ended earlier; the fits are not repeated here."""
    before = trained.contents("store.predictions WHERE ts < '2024-06-20'")
    is_changed = "ts >= '2024-06-20' AND universe = 'stocks'"
    trained.execute(
        f"UPDATE store.bars SET open = open * 2, high = high * 2, low = low * 2, close = close * 2 WHERE {is_changed}"
    )
    for table in TABLES:
        trained.execute(f"DELETE FROM {table}")
    assert train_night(trained).fitted == 0
    after = trained.contents("store.predictions WHERE ts < '2024-06-20'")
    assert after.equals(before)
    later = trained.contents("store.predictions WHERE ts >= '2024-06-20'", "expected_return")
    assert np.isfinite(later["expected_return"].to_numpy()).all()


def test_a_restated_bar_is_forecast_again_even_after_a_night_that_was_never_published(trained: Desk) -> None:
    """A feature row counts as changed until a night that wrote it is published; the run "given up" never is.

    Its row of February lies before the bars that a forecast reads; it must not hide the changed row of 26 June.
    """
    overwrite_feature_row = (
        "UPDATE store.features SET run_id = 'given up', return_1 = return_1 + {} "
        "WHERE symbol = 'AAA' AND ts::DATE = '{}'"
    )
    query = "SELECT ts, symbol, horizon_bars, expected_return FROM predictions WHERE ts >= '2024-06-26' ORDER BY ALL"
    before = trained.rows(query)
    trained.execute(overwrite_feature_row.format(0, "2024-02-01"))
    trained.execute(overwrite_feature_row.format(0.05, "2024-06-26"))
    night = trained.night(FRIDAY)
    report = train_model.fn(night, load_training_data.fn(night, RECIPE), "s4d", 0, RECIPE)
    after = trained.rows(query)
    assert report.fitted == 0
    assert [keys for *keys, _ in after] == [keys for *keys, _ in before]
    returns = [(new, old) for (_, symbol, _, new), (*_, old) in zip(after, before, strict=True) if symbol == "AAA"]
    assert all(new != old for new, old in returns)
