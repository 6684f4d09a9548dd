"""Events in a night: what a forecast reads of them, when, and that nothing of it came too late."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS
from models.graphs.market_events import COLUMN
from tasks.audit import audit_leaks
from tasks.errors import LeakFoundError
from tasks.graphs import build_graphs, write_features
from tasks.ledger import write_night
from tasks.markets.event_rows import event_rows
from tasks.panels import LARGE_VALUE, first_unseen_bar, load_bar_events
from tasks.train import Recipe, TrialReport, contenders, load_training_data, train_model
from warehouse.events import append_events

FRIDAY, SATURDAY = date(2024, 6, 28), date(2024, 6, 29)
GRAPH = {"graphs": ("correlation",), "window_bars": 24, "min_correlation": 0.05, "top_k": 1, "every_bars": 12}
TEST_BARS = 300
RECIPE = Recipe(
    horizons=(1, 4),
    class_horizon=4,
    folds={"warmup_bars": 241, "train_bars": 60, "test_bars": TEST_BARS, "embargo_bars": 4},
    train={"epochs": 1, "chunk_bars": 16, "burn_in_bars": 4, "context_bars": 8},
)
THURSDAY_NOON = datetime(2024, 6, 27, 12, 30, tzinfo=UTC)


def prepared(desk, as_of: date):
    night = desk.night(as_of, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    return night


def train(desk, as_of: date = FRIDAY, model: str = "tgn", **options) -> TrialReport:
    night = prepared(desk, as_of)
    return train_model.fn(night, load_training_data.fn(night, RECIPE, (model,)), model, 0, RECIPE, **options)


def publish(desk, as_of: date) -> None:
    """The night as its last step leaves it; the settlements of the desk are its own."""
    night = desk.night(as_of, "perpetuals")
    write_night(night, state="published", settings="{}", settings_hash="", published_at=night.clock)
    desk.execute("UPDATE store.funding_rates SET run_id = $run_id", run_id=night.run_id)


def audit(desk, as_of: date, models: tuple[str, ...] = ("tgn",)):
    night = desk.night(as_of, "perpetuals")
    return audit_leaks.fn(night, contenders(night, models, (0,), RECIPE), GRAPH, 4, TEST_BARS, 4)


def happened(desk, kind: str, at: datetime, received: datetime | None = None, **measures: object) -> None:
    """Stores one event of BBB, received a second after it by default."""
    ts = int(at.timestamp() * 1e6)
    rows = event_rows([{"kind": kind, "symbol": "BBB", "ts": ts, "event_id": str(ts), **measures}])
    stamps = {"fetched_at": received or at + timedelta(seconds=1), "run_id": "stream"}
    with desk.warehouse.write("events") as con:
        append_events(con, rows, source="recorded", venue="bybit", **stamps)


def liquidated(desk, at: datetime, received: datetime | None = None) -> None:
    happened(desk, "liquidation", at, received, price=50.0, size=900.0, side="sell")


@pytest.fixture(scope="module")
def trained_folder(open_desk: Callable, desk_file: Path, tmp_path_factory) -> Path:
    """A folder with a night of perpetuals whose network read funding and a liquidation, published."""
    folder = tmp_path_factory.mktemp("trained")
    desk = open_desk(shutil.copy(desk_file, folder))
    liquidated(desk, datetime(2024, 6, 24, 3, 20, tzinfo=UTC))
    train(desk)
    publish(desk, FRIDAY)
    return folder


@pytest.fixture
def trained(open_desk: Callable, trained_folder: Path, tmp_path: Path):
    shutil.copytree(trained_folder, tmp_path / "trained")
    return open_desk(tmp_path / "trained" / "warehouse.duckdb")


def test_a_bar_has_the_settlements_and_events_up_to_its_close(desk) -> None:
    liquidated(desk, THURSDAY_NOON)
    happened(desk, "trade", THURSDAY_NOON, price=50.0, size=LARGE_VALUE / 50, side="buy")
    events = load_bar_events(desk.night(FRIDAY, "perpetuals"))
    assert events is not None
    counts = dict(zip(events.opens.astype("datetime64[h]").astype(str), np.diff(events.spans)[:, 0], strict=True))
    assert counts["2024-06-27T12"] == 2
    assert counts["2024-06-27T07"] == 1 and counts["2024-06-27T08"] == 0  # settled at 08:00, as a bar closes
    first = events.spans[list(counts).index("2024-06-27T12"), 0]
    assert {EVENT_KINDS[k] for k in events.events.kind[first : first + 2]} == {"trade", "liquidation"}
    settled = events.events.kind == EVENT_KINDS.index("funding")
    assert settled.sum() == 2 + 3 * 18 + 1  # from 10 June, 8:00, to midnight, the close of the last bar
    np.testing.assert_allclose(events.events.features[settled, COLUMN["rate"]], np.arange(57) * 0.1, atol=1e-6)


def test_books_small_trades_and_what_came_after_the_clock_are_left_out(desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    before = load_bar_events(night)
    happened(desk, "book", THURSDAY_NOON, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    happened(desk, "trade", THURSDAY_NOON, price=50.0, size=LARGE_VALUE / 50 - 1, side="buy")
    liquidated(desk, THURSDAY_NOON, night.clock + timedelta(microseconds=1))
    after = load_bar_events(night)
    assert before is not None and after is not None
    assert len(before.events) == len(after.events) == 57


def test_bars_of_a_second_have_the_books_and_the_small_trades_too(desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    noon = THURSDAY_NOON + timedelta(days=1)
    seconds = replace(night, universe=replace(night.universe, interval="1s", history_start=noon))
    happened(desk, "book", noon + timedelta(seconds=2), bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    happened(desk, "trade", noon + timedelta(seconds=1.5), price=50.0, size=0.001, side="buy")
    events = load_bar_events(seconds)
    assert events is not None
    own = events.of_bars(events.opens)
    assert [EVENT_KINDS[kind] for kind in own.events.kind[:2]] == ["trade", "book"]
    assert own.spans[:3].tolist() == [[0, 0], [0, 2], [2, 2]]  # the book came at the very close
    publish(desk, FRIDAY)
    assert first_unseen_bar(seconds, events) == len(events.opens)
    happened(desk, "book", noon + timedelta(seconds=5), night.clock, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    later = replace(seconds, clock=night.clock + timedelta(seconds=1))
    assert first_unseen_bar(later, events) == len(events.opens)
    happened(desk, "book", noon + timedelta(seconds=7), later.clock, bid=1.0, ask=1.1, bid_size=5.0, ask_size=5.0)
    assert first_unseen_bar(later, events) == 6  # it closes seven seconds after noon


def test_cut_at_a_bar_they_are_the_same_without_later_ones(desk) -> None:
    liquidated(desk, THURSDAY_NOON)
    night = desk.night(FRIDAY, "perpetuals")
    whole = load_bar_events(night)
    assert whole is not None
    for last in whole.opens[[400, 635, 636]]:
        cut, part = load_bar_events(night, last), whole.of_bars(whole.opens[: np.searchsorted(whole.opens, last) + 1])
        assert cut is not None and len(cut.opens) == len(part.opens)
        for name in ("src", "dst", "t", "kind", "features"):
            np.testing.assert_array_equal(getattr(cut.events, name), getattr(part.events, name))


def test_stocks_have_none_and_only_networks_that_read_events_load_them(desk) -> None:
    assert load_bar_events(desk.night(FRIDAY)) is None
    night = prepared(desk, FRIDAY)
    assert load_training_data.fn(night, RECIPE, ("ssm_gnn",)).events is None
    assert load_training_data.fn(night, RECIPE, ("ssm_gnn", "jodie")).events is not None


def test_a_night_s_network_reads_them_and_its_audit_is_green(trained) -> None:
    report = audit(trained, FRIDAY)
    assert report.cuts == 4
    assert trained.rows("SELECT count(*) FROM predictions")[0][0] > 300 * 2
    before = trained.rows("SELECT fold_key FROM store.folds ORDER BY fold")
    trained.execute("DELETE FROM store.events")
    trained.execute("DELETE FROM store.nights")
    assert train(trained).fitted == 1  # the liquidation lay in the second fold's training bars alone
    after = trained.rows("SELECT fold_key FROM store.folds ORDER BY fold")
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


SLOW = [pytest.param(model, marks=pytest.mark.slow) for model in ("tgn_links", "tgn_pairs")]


@pytest.mark.parametrize("model", ["tgn_pretrained", *SLOW])
def test_a_night_learns_links_and_pairs_beside_or_before_its_forecasts(desk, model: str) -> None:
    liquidated(desk, datetime(2024, 6, 24, 3, 20, tzinfo=UTC))
    assert train(desk, model=model).fitted == 2
    publish(desk, FRIDAY)
    assert audit(desk, FRIDAY, (model,)).cuts == 4


def test_a_forecast_that_read_what_came_after_its_bar_is_found(trained) -> None:
    """Every settlement moved an hour ahead after the forecasts: they read each an hour too early."""
    trained.execute("UPDATE store.funding_rates SET ts = ts + INTERVAL 1 HOUR")
    with pytest.raises(LeakFoundError, match="predictions of tgn"):
        audit(trained, FRIDAY)


def test_the_next_night_forecasts_its_new_bars_alone_and_steps(trained) -> None:
    liquidated(trained, datetime(2024, 6, 29, 4, 10, tzinfo=UTC))
    before = trained.contents("store.predictions")
    assert train(trained, SATURDAY).fitted == 0
    friday = trained.night(FRIDAY, "perpetuals").run_id
    assert trained.contents(f"store.predictions WHERE run_id = '{friday}'").equals(before)
    assert audit(trained, SATURDAY).cuts == 4


def test_an_event_that_comes_late_makes_the_forecasts_from_its_bar_on_due_again(trained) -> None:
    liquidated(trained, THURSDAY_NOON, datetime(2024, 6, 29, 8, tzinfo=UTC))
    before = trained.contents("store.predictions WHERE ts < '2024-06-27 12:00'")
    assert train(trained, SATURDAY).fitted == 0
    again = trained.contents("store.predictions WHERE ts >= '2024-06-27 12:00'").to_pandas()
    assert trained.contents("store.predictions WHERE ts < '2024-06-27 12:00'").equals(before)
    assert set(again["run_id"]) == {trained.night(SATURDAY, "perpetuals").run_id}
    assert audit(trained, SATURDAY).cuts == 4


def test_killed_and_run_again_a_night_with_late_events_ends_as_undisturbed(trained, tmp_path: Path) -> None:
    def kill(done: int, total: int, label: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    liquidated(trained, THURSDAY_NOON, datetime(2024, 6, 29, 8, tzinfo=UTC))
    other = trained.another(tmp_path / "other")
    shutil.copytree(trained.warehouse.artifacts, other.warehouse.artifacts, dirs_exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        train(other, SATURDAY, on_progress=kill)
    train(other, SATURDAY)
    train(trained, SATURDAY)
    for table in ("store.trials", "store.folds", "store.predictions"):
        assert other.contents(table).equals(trained.contents(table))
