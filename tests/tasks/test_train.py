"""Training in a real warehouse: every fold once, only what is new after that, and the same tables however it ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.training import fit
from models.training.artifact import file_hash, read_header
from models.training.errors import EmptyFoldError
from models.zoo import UnknownModelError
from tasks import train as train_module
from tasks.errors import NoFoldsError
from tasks.graphs import build_graphs, write_features
from tasks.ledger import write_night
from tasks.panels import load_snapshots
from tasks.train import Recipe, TrialReport, contenders, load_training_data, train_model, trial_id

FRIDAY, MONDAY = date(2024, 6, 28), date(2024, 7, 1)
TABLES = ("store.trials", "store.folds", "store.predictions")
RECIPE = Recipe(
    horizons=(1, 5),
    class_horizon=5,
    folds={"warmup_bars": 61, "train_bars": 30, "test_bars": 20, "embargo_bars": 2},
    train={"epochs": 2, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)


def prepared(desk, as_of: date):
    night = desk.night(as_of)
    write_features.fn(night)
    build_graphs.fn(night, window_bars=20, min_correlation=0.05, top_k=2, every_bars=5)
    return night


def train(
    desk, as_of: date = FRIDAY, model: str = "s4d", seed: int = 0, recipe: Recipe = RECIPE, **options
) -> TrialReport:
    night = prepared(desk, as_of)
    return train_model.fn(night, load_training_data.fn(night, recipe), model, seed, recipe, **options)


def tables(desk, where: str = "true") -> dict:
    return {table: desk.contents(f"{table} WHERE {where}") for table in TABLES}


def same(one: dict, other: dict) -> bool:
    return all(one[table].equals(other[table]) for table in TABLES)


@pytest.fixture(scope="module")
def trained_folder(open_desk: Callable, desk_file: Path, tmp_path_factory) -> Path:
    """A folder with the warehouse of 28 June, one trained network, and that night published."""
    folder = tmp_path_factory.mktemp("trained")
    desk = open_desk(shutil.copy(desk_file, folder))
    train(desk)
    night = desk.night(FRIDAY)
    write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)
    return folder


@pytest.fixture
def trained(open_desk: Callable, trained_folder: Path, tmp_path: Path):
    shutil.copytree(trained_folder, tmp_path / "trained")
    return open_desk(tmp_path / "trained" / "warehouse.duckdb")


def artifacts(desk) -> list[Path]:
    return sorted(desk.warehouse.artifacts.glob("*.safetensors"))


def test_the_first_night_fits_every_fold_and_forecasts_every_test_bar(desk) -> None:
    report = train(desk)
    assert report == TrialReport(
        "s4d", 0, report.trial_id, folds=2, fitted=2, skipped=0, predictions=report.predictions
    )
    forecast = desk.rows(
        "SELECT fold, min(ts)::DATE, max(ts)::DATE, count(*) FROM store.predictions GROUP BY 1 ORDER BY 1"
    )
    windows = desk.rows("SELECT fold, test_start::DATE, test_end::DATE FROM store.folds ORDER BY 1")
    assert [row[1] for row in forecast] == [row[1] for row in windows]
    assert forecast[0][2] < windows[0][2] == windows[1][1]
    assert forecast[1][2] == FRIDAY
    assert sum(row[3] for row in forecast) == report.predictions
    assert (
        desk.rows("SELECT count(*) FROM store.predictions GROUP BY symbol, ts, horizon_bars HAVING count(*) > 1") == []
    )


def test_predictions_are_of_every_symbol_that_has_a_trailing_volatility(trained) -> None:
    expected = trained.rows(
        "SELECT symbol, ts, h FROM features, (SELECT unnest([1, 5])) AS t(h) WHERE volatility_60 > 0 "
        "AND ts >= (SELECT min(test_start) FROM folds) AND universe = 'stocks' ORDER BY ALL"
    )
    assert trained.rows("SELECT symbol, ts, horizon_bars FROM predictions ORDER BY ALL") == expected
    assert len({symbol for symbol, _, _ in expected}) == 4
    odd = "abs(p_strong_sell + p_sell + p_hold + p_buy + p_strong_buy - 1) > 1e-9 OR expected_volatility <= 0"
    assert trained.rows(f"SELECT * FROM predictions WHERE {odd} OR NOT isfinite(expected_return)") == []


def test_rows_say_how_the_fold_was_fitted(trained) -> None:
    (trial,) = trained.contents("store.trials").to_pylist()
    assert (trial["model"], trial["seed"], trial["horizons_bars"]) == ("s4d", 0, [1, 5])
    assert json.loads(trial["spec"])["fit"]["epochs"] == 2
    assert trial["trial_id"] == trial_id(trained.night(FRIDAY), "s4d", 0, RECIPE)
    for row in trained.contents("store.folds").to_pylist():
        path = trained.warehouse.artifacts / row["artifact"]
        header = read_header(path)
        assert row["artifact_sha256"] == file_hash(path)
        assert trial["parameters"] == header.outcome.parameters
        for name in ("epochs", "validation_loss", "train_rows", "validation_rows", "data_hash", "code_version"):
            assert row[name] == getattr(header.outcome, name)
        assert row["last_label_end"] < row["test_start"]
        assert row["purge_bars"] == 6 and row["embargo_bars"] == 2
    assert len(artifacts(trained)) == 2


def test_training_again_fits_nothing_and_changes_no_row(trained) -> None:
    before, files = tables(trained), [(p.name, p.stat().st_mtime_ns) for p in artifacts(trained)]
    report = train(trained)
    assert (report.folds, report.fitted, report.predictions) == (2, 0, 0)
    assert same(tables(trained), before)
    assert [(p.name, p.stat().st_mtime_ns) for p in artifacts(trained)] == files


def test_the_next_night_forecasts_its_new_bars_and_touches_nothing_else(trained) -> None:
    before = tables(trained)
    report = train(trained, MONDAY)
    assert (report.fitted, report.predictions) == (0, 4 * 2)
    assert same(tables(trained, f"run_id <> '{trained.night(MONDAY).run_id}'"), before)
    assert trained.rows("SELECT DISTINCT ts::DATE FROM predictions ORDER BY 1 DESC LIMIT 1") == [(MONDAY,)]


def test_two_nights_give_the_numbers_of_the_later_one_alone(trained, desk) -> None:
    """The truncation test of the issue, for predictions: to the bit, but for the bars that were one step each."""
    train(trained, MONDAY)
    train(desk, MONDAY)
    columns = "* EXCLUDE (run_id)"
    for table in set(TABLES) - {"store.predictions"}:
        assert trained.contents(table, columns).equals(desk.contents(table, columns))
    one, other = (d.contents("store.predictions", columns).to_pandas() for d in (trained, desk))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=0, atol=1e-7)
    whole = one["ts"] < one["ts"].max()
    pd.testing.assert_frame_equal(one[whole], other[whole], check_exact=True)


def test_the_next_night_steps_from_the_state_that_this_one_left(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(trained.warehouse.artifacts.glob("*.state"))) == 1
    monkeypatch.setattr(fit, "_segment", pytest.fail)
    train(trained, MONDAY)
    assert len(list(trained.warehouse.artifacts.glob("*.state"))) == 2  # tonight's, and the one it began with


@pytest.mark.parametrize("fold", [0, 1])
def test_killed_at_any_fold_and_run_again_it_ends_as_undisturbed(desk, trained, fold: int) -> None:
    def kill(done: int, total: int, label: str) -> None:
        if done == fold:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(desk, on_progress=kill)
    assert len(desk.rows("SELECT fold FROM store.folds")) == fold
    train(desk)
    assert same(tables(desk), tables(trained))
    assert [p.name for p in artifacts(desk)] == [p.name for p in artifacts(trained)]


def test_a_fit_that_fails_stops_the_others_and_writes_nothing_of_its_own(desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments):
        if arguments[5].index == 0:
            raise OSError("no space left")
        return fit(*arguments)

    fit, patient = train_module.fit_fold, replace(RECIPE, train={**RECIPE.train, "epochs": 400, "patience": 400})
    monkeypatch.setattr(train_module, "fit_fold", failing)
    with pytest.raises(OSError, match="no space left"):
        train(desk, recipe=patient, workers=2)
    assert all(rows.num_rows == 0 for rows in tables(desk).values())
    assert not list(desk.warehouse.artifacts.glob("*.safetensors"))


def test_a_lost_or_damaged_model_file_is_made_again_and_no_row_changes(trained) -> None:
    before, (lost, damaged) = tables(trained), artifacts(trained)
    hashes = [file_hash(lost), file_hash(damaged)]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:500])
    report = train(trained)
    assert (report.fitted, report.predictions) == (2, 0)
    assert [file_hash(lost), file_hash(damaged)] == hashes
    assert same(tables(trained), before)


def test_a_model_file_without_its_row_is_not_fitted_again(trained) -> None:
    before = tables(trained)
    for table in TABLES:
        trained.execute(f"DELETE FROM {table}")
    assert train(trained).fitted == 0
    assert same(tables(trained), before)


def test_a_restated_bar_fits_the_folds_that_learned_from_it_again(trained) -> None:
    """The bar is in the training rows of the second fold only, and in the window of the first."""
    keys = dict(trained.rows("SELECT fold, fold_key FROM store.folds"))
    trained.execute("UPDATE store.bars SET volume = volume * 3 WHERE symbol = 'AAA' AND ts::DATE = '2024-05-17'")
    report = train(trained)
    assert report.fitted == 1
    changed = dict(trained.rows("SELECT fold, fold_key FROM store.folds"))
    assert changed[0] == keys[0] and changed[1] != keys[1]
    assert (
        trained.rows("SELECT count(*) FROM store.predictions GROUP BY symbol, ts, horizon_bars HAVING count(*) > 1")
        == []
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_folds_side_by_side_come_out_as_one_after_another(desk, trained, workers: int) -> None:
    train(desk, workers=workers)
    assert same(tables(desk), tables(trained))


def test_seeds_and_models_are_trials_of_their_own(trained) -> None:
    night = trained.night(FRIDAY)
    train(trained, seed=1)
    train(trained, model="ssm_gnn")
    entered = contenders(night, ("s4d", "ssm_gnn", "momentum"), (0, 1), RECIPE)
    assert [(c.model, c.kind, len(c.trial_ids)) for c in entered] == [
        ("s4d", "network", 2),
        ("ssm_gnn", "network", 2),
        ("momentum", "rule", 0),
    ]
    stored = {row[0] for row in trained.rows("SELECT trial_id FROM store.trials")}
    assert stored == {*entered[0].trial_ids, entered[1].trial_ids[0]}
    one, other = (f"(FROM store.predictions WHERE trial_id = '{trial}')" for trial in entered[0].trial_ids)
    both = f"{one} AS a JOIN {other} AS b USING (symbol, ts, horizon_bars)"
    assert trained.rows(f"SELECT DISTINCT a.expected_return = b.expected_return FROM {both}") == [(False,)]


def test_a_trial_is_named_by_market_model_seed_and_recipe(desk) -> None:
    night = desk.night(FRIDAY)
    longer = replace(RECIPE, train={**RECIPE.train, "epochs": 3})
    names = {
        trial_id(night, "s4d", 0, RECIPE),
        trial_id(night, "s4d", 1, RECIPE),
        trial_id(night, "lstm", 0, RECIPE),
        trial_id(night, "s4d", 0, longer),
        trial_id(replace(night, source="simulated"), "s4d", 0, RECIPE),
        trial_id(desk.night(FRIDAY, "perpetuals"), "s4d", 0, RECIPE),
    }
    assert len(names) == 6
    assert trial_id(desk.night(MONDAY), "s4d", 0, RECIPE) in names


def test_a_fold_with_nothing_to_learn_is_left_out_and_the_rest_goes_on(
    desk, trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty_first(*arguments):
        if arguments[5].index == 0:
            raise EmptyFoldError("fold 0: nothing")
        return fit(*arguments)

    fit = train_module.fit_fold
    monkeypatch.setattr(train_module, "fit_fold", empty_first)
    report = train(desk)
    assert (report.fitted, report.skipped) == (1, 1)
    assert desk.contents("store.predictions").equals(trained.contents("store.predictions WHERE fold = 1"))


def test_a_network_learns_from_the_graph_it_names(desk, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def seen(spec, *arguments):
        given[spec.model] = {snapshot.graph for snapshot in arguments[3].snapshots or ()}
        return fit(spec, *arguments)

    fit = train_module.fit_fold
    monkeypatch.setattr(train_module, "fit_fold", seen)
    for model in ("ssm_gnn", "ssm_gnn_sector", "ssm_gnn_attention", "ssm"):
        train(desk, model=model)
    assert given == {"ssm_gnn": {"correlation"}, "ssm_gnn_sector": {"sector"}, "ssm_gnn_attention": set(), "ssm": set()}


def test_only_the_graphs_of_the_night_s_models_are_loaded(desk) -> None:
    night = prepared(desk, FRIDAY)
    data = load_training_data.fn(night, RECIPE, ("s4d", "ssm_gnn_sector", "ssm_gnn_attention"))
    assert set(data.snapshots) == {"sector"}
    assert set(load_training_data.fn(night, RECIPE).snapshots) >= {"correlation", "sector"}


def test_other_sectors_fit_the_folds_of_the_network_that_reads_them_again_and_no_others(desk) -> None:
    for model in ("ssm_gnn", "ssm_gnn_sector"):
        assert train(desk, model=model).fitted == 2
    night = prepared(desk, FRIDAY)
    members = tuple(replace(member, sector="Energy") for member in night.universe.members)
    night = replace(night, universe=replace(night.universe, members=members))
    build_graphs.fn(night, window_bars=20, min_correlation=0.05, top_k=2, every_bars=5)
    data = load_training_data.fn(night, RECIPE)
    fitted = [train_model.fn(night, data, model, 0, RECIPE).fitted for model in ("ssm_gnn", "ssm_gnn_sector")]
    assert fitted == [0, 2]


DRAWN = (
    "store.graph_snapshots WHERE starts_with(graph, 'attention')",
    "store.graph_edges WHERE starts_with(graph, 'attention')",
)


def test_the_graph_that_a_network_draws_is_stored_with_its_forecasts(desk) -> None:
    train(desk, model="ssm_gnn_attention")
    train(desk, model="ssm_gnn_attention", seed=1)
    snapshots, edges = (desk.contents(table).to_pandas() for table in DRAWN)
    assert set(snapshots["graph"]) == {"attention:ssm_gnn_attention", "attention:ssm_gnn_attention:1"}
    assert snapshots["directed"].all()
    again = load_snapshots(desk.night(FRIDAY), "attention:ssm_gnn_attention")
    assert [s.directed for s in again] == [True] * len(again) and len(again) > 0
    forecast = [ts for (ts,) in desk.rows("SELECT DISTINCT ts FROM predictions ORDER BY 1")]
    first = forecast.index(snapshots["as_of"].min().to_pydatetime())
    assert sorted(set(snapshots["as_of"])) == forecast[first::5] and first < 5
    assert (snapshots["nodes"] == 4).all() and snapshots["window_start"].isna().all()
    drawn = snapshots[snapshots["graph"] == "attention:ssm_gnn_attention"].sort_values("as_of")
    assert drawn["turnover"].notna().tolist() == [False, *[True] * (len(drawn) - 1)]
    assert drawn["drift"].notna().sum() == len(drawn) - 2 and (drawn["turnover"][1:] >= 0).all()
    own = edges[edges["graph"] == "attention:ssm_gnn_attention"]
    assert len(own) == snapshots.loc[snapshots["graph"] == "attention:ssm_gnn_attention", "edges"].sum()
    assert (own["src"] != own["dst"]).all() and own["weight"].between(0, 1, inclusive="right").all()
    # what one asset hears of all others sums to 1, but for the rounding
    heard = own.groupby(["as_of", "dst"])["weight"].sum()
    np.testing.assert_allclose(heard, 1, atol=1e-5)
    said = json.loads(snapshots["parameters"][0])
    assert desk.rows(f"SELECT model FROM trials WHERE trial_id = '{said['trial_id']}'") == [("ssm_gnn_attention",)]


def test_drawn_graphs_are_written_once_and_the_same_after_a_kill(desk, open_desk, tmp_path: Path) -> None:
    def kill(done: int, total: int, label: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    other = desk.another(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        train(desk, model="ssm_gnn_attention", on_progress=kill)
    for _ in range(2):
        train(desk, model="ssm_gnn_attention")
    train(other, model="ssm_gnn_attention")
    for table in DRAWN:
        assert desk.contents(table).num_rows > 0
        assert desk.contents(table).equals(other.contents(table))


def test_a_later_night_adds_its_graphs_and_leaves_the_others(desk, tmp_path: Path) -> None:
    later_alone = desk.another(tmp_path / "other")
    train(desk, model="ssm_gnn_attention")
    night = desk.night(FRIDAY)
    write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)
    before = [desk.contents(table).to_pandas() for table in DRAWN]
    train(desk, date(2024, 7, 12), model="ssm_gnn_attention")
    for table, old in zip(DRAWN, before, strict=True):
        new = desk.contents(table).to_pandas()
        assert len(new) > len(old)
        pd.testing.assert_frame_equal(new[new["as_of"] <= old["as_of"].max()].reset_index(drop=True), old)
    train(later_alone, date(2024, 7, 12), model="ssm_gnn_attention")
    for table, old in zip(DRAWN, before, strict=True):
        alone = later_alone.contents(table).to_pandas().drop(columns="run_id")
        alone = alone[alone["as_of"] <= old["as_of"].max()].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, old.drop(columns="run_id"), check_exact=True)


def test_a_half_that_is_fitted_first_is_fitted_once_a_fold(desk) -> None:
    """Its model files are no folds of the trial, and a night that was killed between the halves keeps the first."""
    assert train(desk, model="ssm_gnn_pretrained").fitted == 2
    before, files = tables(desk), artifacts(desk)
    both = {row[0] for row in desk.rows("SELECT artifact FROM store.folds")}
    first = [path for path in files if path.name not in both]
    assert (len(both), len(first)) == (2, 2)
    written = [path.stat().st_mtime_ns for path in first]
    for name in both:
        (desk.warehouse.artifacts / name).unlink()
    for table in TABLES:
        desk.execute(f"DELETE FROM {table}")
    assert train(desk, model="ssm_gnn_pretrained").fitted == 2
    assert same(tables(desk), before) and artifacts(desk) == files
    assert [path.stat().st_mtime_ns for path in first] == written


def test_progress_counts_the_folds(desk) -> None:
    seen: list[tuple[int, int, str]] = []
    train(desk, on_progress=lambda *said: seen.append(said))
    assert seen == [(0, 2, "s4d, fold 1 of 2"), (1, 2, "s4d, fold 2 of 2"), (2, 2, "s4d")]


def test_a_history_too_short_for_a_fold_says_what_it_needs(desk) -> None:
    with pytest.raises(
        NoFoldsError, match=r"stocks has \d+ bars up to 2024-05-01; its first test window starts after 93"
    ):
        train(desk, date(2024, 5, 1))


def test_rules_and_unknown_models_are_not_trained(desk) -> None:
    with pytest.raises(UnknownModelError, match="'momentum' is a rule"):
        train(desk, model="momentum")
    with pytest.raises(UnknownModelError, match="unknown model 'oracle'"):
        contenders(desk.night(FRIDAY), ("oracle",), (0,), RECIPE)


def test_forecasts_use_nothing_after_their_bar(trained) -> None:
    """Perturbing the bars after a forecast does not move it: only features up to the bar and a fit before it."""
    before = trained.contents("store.predictions WHERE ts < '2024-06-20'")
    late = "ts >= '2024-06-20' AND universe = 'stocks'"
    trained.execute(
        f"UPDATE store.bars SET open = open * 2, high = high * 2, low = low * 2, close = close * 2 WHERE {late}"
    )
    for table in TABLES:
        trained.execute(f"DELETE FROM {table}")
    assert train(trained).fitted == 0
    after = trained.contents("store.predictions WHERE ts < '2024-06-20'")
    assert after.equals(before)
    moved = trained.contents("store.predictions WHERE ts >= '2024-06-20'", "expected_return")
    assert np.isfinite(moved["expected_return"].to_numpy()).all()


def test_a_restated_bar_is_forecast_again_even_after_a_night_that_was_given_up(trained) -> None:
    """Rows of a night that was never published stay unpublished for ever; they must not hide what changes later."""
    mark = (
        "UPDATE store.features SET run_id = 'given up', return_1 = return_1 + {} "
        "WHERE symbol = 'AAA' AND ts::DATE = '{}'"
    )
    since = "SELECT ts, symbol, horizon_bars, expected_return FROM predictions WHERE ts >= '2024-06-26' ORDER BY ALL"
    before = trained.rows(since)
    trained.execute(mark.format(0, "2024-02-01"))
    trained.execute(mark.format(0.05, "2024-06-26"))
    night = trained.night(FRIDAY)
    report = train_model.fn(night, load_training_data.fn(night, RECIPE), "s4d", 0, RECIPE)
    after = trained.rows(since)
    assert report.fitted == 0
    assert len(after) == len(before)
    assert all(new != old for new, old in zip(after, before, strict=True) if old[1] == "AAA")
