"""Events in a night: which events a forecast reads, from when on, and that no forecast reads a later event.

A night is the run for one as-of date; its clock is the midnight (UTC) after it. The bars of perpetuals are hourly. A
Desk is a test warehouse with recorded bars, see tests/desk.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS
from models.graphs.market_events import FEATURE_COLUMN
from tasks.audit import AuditReport, audit_leaks
from tasks.errors import LeakFoundError
from tasks.graphs import build_graphs, write_features
from tasks.markets.event_rows import event_rows
from tasks.night import Night
from tasks.panels import LARGE_TRADE_VALUE, first_unseen_bar, load_bar_events
from tasks.train import Recipe, TrialReport, contenders, load_training_data, train_model
from tests.desk import Desk
from warehouse.events import append_events

FRIDAY = date(2024, 6, 28)
SATURDAY = date(2024, 6, 29)
GRAPH = {"graphs": ("correlation",), "window_bars": 24, "min_correlation": 0.05, "top_k": 1, "every_bars": 12}
TEST_BARS = 300
RECIPE = Recipe(
    horizons=(1, 4),
    class_horizon=4,
    folds={"warmup_bars": 241, "train_bars": 60, "test_bars": TEST_BARS, "embargo_bars": 4},
    train={"epochs": 1, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)
ONE_SECOND = timedelta(seconds=1)
THURSDAY_NOON = datetime(2024, 6, 27, 12, 30, tzinfo=UTC)  # inside the bar that opens at 12:00
# AAA's settlements from 10 June 8:00 to the end of FRIDAY: 2 on 10 June, 3 on each of 18 days, and the last midnight
N_SETTLEMENTS = 2 + 3 * 18 + 1


def build_night(desk: Desk, as_of: date) -> Night:
    """Writes features and graphs of the night of perpetuals, and returns the night."""
    night = desk.night(as_of, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    return night


def train_night(desk: Desk, as_of: date = FRIDAY, model: str = "tgn", **options) -> TrialReport:
    night = build_night(desk, as_of)
    return train_model.fn(night, load_training_data.fn(night, RECIPE, (model,)), model, 0, RECIPE, **options)


def publish_night(desk: Desk, as_of: date) -> None:
    """Marks the night as published, and all stored settlements of funding as read by it."""
    desk.publish(as_of, "perpetuals")
    run_id = desk.night(as_of, "perpetuals").run_id
    desk.execute("UPDATE store.funding_rates SET run_id = $run_id", run_id=run_id)


def audit_night(desk: Desk, as_of: date, models: tuple[str, ...] = ("tgn",)) -> AuditReport:
    night = desk.night(as_of, "perpetuals")
    networks = contenders(night, models, (0,), RECIPE)
    return audit_leaks.fn(night, networks, GRAPH, RECIPE.class_horizon, TEST_BARS, dates=4)


def store_event(desk: Desk, kind: str, ts: datetime, received: datetime | None = None, **values: object) -> None:
    """Stores one event of BBB, which counts as received one second after ``ts`` by default."""
    ts_us = int(ts.timestamp() * 1e6)
    rows = event_rows([{"kind": kind, "symbol": "BBB", "ts": ts_us, "event_id": str(ts_us), **values}])
    stamps = {"fetched_at": received or ts + ONE_SECOND, "run_id": "stream"}
    with desk.warehouse.write("events") as con:
        append_events(con, rows, source="recorded", venue="bybit", **stamps)


def store_liquidation(desk: Desk, ts: datetime, received: datetime | None = None) -> None:
    """Stores one liquidation of BBB."""
    store_event(desk, "liquidation", ts, received, price=50.0, size=900.0, side="sell")


@pytest.fixture(scope="module")
def trained_folder(open_desk: Callable, desk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published night of FRIDAY, whose network tgn has read funding and a liquidation."""
    folder = tmp_path_factory.mktemp("trained")
    desk = open_desk(shutil.copy(desk_file, folder))
    store_liquidation(desk, datetime(2024, 6, 24, 3, 20, tzinfo=UTC))
    train_night(desk)
    publish_night(desk, FRIDAY)
    return folder


@pytest.fixture
def trained(open_desk: Callable, trained_folder: Path, tmp_path: Path) -> Desk:
    """A test warehouse: a copy of ``trained_folder``."""
    shutil.copytree(trained_folder, tmp_path / "trained")
    return open_desk(tmp_path / "trained" / "warehouse.duckdb")


def test_a_bar_reads_the_settlements_and_events_up_to_its_close(desk: Desk) -> None:
    store_liquidation(desk, THURSDAY_NOON)
    store_event(desk, "trade", THURSDAY_NOON, price=50.0, size=LARGE_TRADE_VALUE / 50, side="buy")
    events = load_bar_events(desk.night(FRIDAY, "perpetuals"))
    assert events is not None
    hours = events.open_times.astype("datetime64[h]").astype(str).tolist()
    starts, stops = events.event_ranges.T
    n_events = dict(zip(hours, stops - starts, strict=True))
    assert n_events["2024-06-27T12"] == 2
    assert (
        n_events["2024-06-27T07"] == 1 and n_events["2024-06-27T08"] == 0
    )  # the settlement at 8:00 is at a bar's close
    noon_bar = hours.index("2024-06-27T12")
    assert {EVENT_KINDS[k] for k in events.events.kind[starts[noon_bar] : stops[noon_bar]]} == {"trade", "liquidation"}
    is_funding = events.events.kind == EVENT_KINDS.index("funding")
    assert is_funding.sum() == N_SETTLEMENTS
    rates = events.events.features[is_funding, FEATURE_COLUMN["rate"]]
    np.testing.assert_allclose(rates, 0.1 * np.arange(N_SETTLEMENTS), atol=1e-6)  # the k-th rate, k · 1e-5, in bps


def test_hourly_bars_read_no_books_no_small_trades_and_no_event_received_after_the_clock(desk: Desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    before = load_bar_events(night)
    store_event(desk, "book", THURSDAY_NOON, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    store_event(desk, "trade", THURSDAY_NOON, price=50.0, size=LARGE_TRADE_VALUE / 50 - 1, side="buy")
    store_liquidation(desk, THURSDAY_NOON, night.clock + timedelta(microseconds=1))
    after = load_bar_events(night)
    assert before is not None and after is not None
    assert len(before.events) == len(after.events) == N_SETTLEMENTS


def test_one_second_bars_read_books_and_small_trades_too(desk: Desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    first_open = THURSDAY_NOON + timedelta(days=1)
    one_second_bars = replace(night.universe, interval="1s", history_start=first_open)
    night = replace(night, universe=one_second_bars)
    store_event(desk, "book", first_open + 2 * ONE_SECOND, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    store_event(desk, "trade", first_open + 1.5 * ONE_SECOND, price=50.0, size=0.001, side="buy")
    events = load_bar_events(night)
    assert events is not None
    grid_events = events.for_bars(events.open_times)
    assert [EVENT_KINDS[kind] for kind in grid_events.events.kind[:2]] == ["trade", "book"]
    assert grid_events.event_ranges[:3].tolist() == [[0, 0], [0, 2], [2, 2]]  # the book's ts is the close of bar 1
    publish_night(desk, FRIDAY)
    assert first_unseen_bar(night, events) == len(events.open_times)
    store_event(desk, "book", first_open + 5 * ONE_SECOND, night.clock, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    later = replace(night, clock=night.clock + ONE_SECOND)
    assert first_unseen_bar(later, events) == len(events.open_times)
    store_event(desk, "book", first_open + 7 * ONE_SECOND, later.clock, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    assert first_unseen_bar(later, events) == 6  # bar 6 closes 7 seconds after the first open


def test_the_events_of_a_bar_do_not_depend_on_later_bars(desk: Desk) -> None:
    store_liquidation(desk, THURSDAY_NOON)
    night = desk.night(FRIDAY, "perpetuals")
    all_events = load_bar_events(night)
    assert all_events is not None
    for last_open in all_events.open_times[[400, 635, 636]]:
        events = load_bar_events(night, last_open)
        n_bars = np.searchsorted(all_events.open_times, last_open) + 1
        expected = all_events.for_bars(all_events.open_times[:n_bars])
        assert events is not None and len(events.open_times) == len(expected.open_times)
        for name in ("src", "dst", "t", "kind", "features"):
            np.testing.assert_array_equal(getattr(events.events, name), getattr(expected.events, name))


def test_stocks_have_no_events_and_only_networks_that_read_events_load_them(desk: Desk) -> None:
    assert load_bar_events(desk.night(FRIDAY)) is None
    night = build_night(desk, FRIDAY)
    assert load_training_data.fn(night, RECIPE, ("ssm_gnn",)).events is None
    assert load_training_data.fn(night, RECIPE, ("ssm_gnn", "jodie")).events is not None


def test_the_audit_of_a_network_that_reads_events_passes(trained: Desk) -> None:
    report = audit_night(trained, FRIDAY)
    assert report.cuts == 4
    ((n_predictions,),) = trained.rows("SELECT count(*) FROM predictions")
    assert n_predictions > TEST_BARS * len(RECIPE.horizons)


def test_without_the_event_in_its_training_bars_a_fold_is_fitted_again(trained: Desk) -> None:
    before = trained.rows("SELECT fold_key FROM store.folds ORDER BY fold")
    trained.execute("DELETE FROM store.events")
    trained.execute("DELETE FROM store.nights")
    assert train_night(trained).fitted == 1  # only the second fold has the liquidation in its training bars
    after = trained.rows("SELECT fold_key FROM store.folds ORDER BY fold")
    assert [new == old for new, old in zip(after, before, strict=True)] == [True, False]


SLOW_MODELS = [pytest.param(model, marks=pytest.mark.slow) for model in ("tgn_links", "tgn_pairs")]


@pytest.mark.parametrize("model", ["tgn_pretrained", *SLOW_MODELS])
def test_networks_with_a_link_or_pair_objective_train_and_pass_the_audit(desk: Desk, model: str) -> None:
    store_liquidation(desk, datetime(2024, 6, 24, 3, 20, tzinfo=UTC))
    assert train_night(desk, model=model).fitted == 2
    publish_night(desk, FRIDAY)
    assert audit_night(desk, FRIDAY, (model,)).cuts == 4


def test_a_forecast_that_read_an_event_after_its_bar_fails_the_audit(trained: Desk) -> None:
    """The stored forecasts read every settlement an hour too early: the settlements are moved afterwards."""
    trained.execute("UPDATE store.funding_rates SET ts = ts + INTERVAL 1 HOUR")
    with pytest.raises(LeakFoundError, match="predictions of tgn"):
        audit_night(trained, FRIDAY)


def test_the_next_night_forecasts_only_its_new_bars(trained: Desk) -> None:
    store_liquidation(trained, datetime(2024, 6, 29, 4, 10, tzinfo=UTC))
    before = trained.contents("store.predictions")
    assert train_night(trained, SATURDAY).fitted == 0
    friday_run_id = trained.night(FRIDAY, "perpetuals").run_id
    assert trained.contents(f"store.predictions WHERE run_id = '{friday_run_id}'").equals(before)
    assert audit_night(trained, SATURDAY).cuts == 4


def test_an_event_received_late_renews_the_forecasts_from_its_bar_on(trained: Desk) -> None:
    store_liquidation(trained, THURSDAY_NOON, datetime(2024, 6, 29, 8, tzinfo=UTC))
    before = trained.contents("store.predictions WHERE ts < '2024-06-27 12:00'")
    assert train_night(trained, SATURDAY).fitted == 0
    renewed = trained.contents("store.predictions WHERE ts >= '2024-06-27 12:00'").to_pandas()
    assert trained.contents("store.predictions WHERE ts < '2024-06-27 12:00'").equals(before)
    assert set(renewed["run_id"]) == {trained.night(SATURDAY, "perpetuals").run_id}
    assert audit_night(trained, SATURDAY).cuts == 4


def test_rows_after_an_interruption_of_a_night_with_late_events_equal_uninterrupted_ones(
    trained: Desk, tmp_path: Path
) -> None:
    def interrupt_before_second_fold(done: int, total: int, label: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    store_liquidation(trained, THURSDAY_NOON, datetime(2024, 6, 29, 8, tzinfo=UTC))
    interrupted = trained.copy_to(tmp_path / "interrupted")
    shutil.copytree(trained.warehouse.artifacts, interrupted.warehouse.artifacts, dirs_exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        train_night(interrupted, SATURDAY, on_progress=interrupt_before_second_fold)
    train_night(interrupted, SATURDAY)
    train_night(trained, SATURDAY)
    for table in ("store.trials", "store.folds", "store.predictions"):
        assert interrupted.contents(table).equals(trained.contents(table))
