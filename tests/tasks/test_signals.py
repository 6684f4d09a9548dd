"""Signals of a night: the last decision of the backtest, never changed after publication (HYB-26, TRAP-14).

A night is the run for one as-of date; here its clock is the midnight (UTC) after FRIDAY. Desk is a test warehouse with
recorded bars, see tests/desk.py. Ids: .github/sources.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from models.scoring.portfolio import Limits
from models.scoring.signals import STOP_ATR_MULTIPLE
from tasks.backtest import run_backtests
from tasks.errors import NoForecastsError, SourceMismatchError
from tasks.forecasts import Contender, load_forecasts
from tasks.graphs import write_features
from tasks.night import Night
from tasks.portfolio_inputs import forecast_weights, load_portfolio_inputs
from tasks.signals import SignalReport, write_next_session_signals
from tests.desk import Desk
from warehouse.errors import PublishedNightError

FRIDAY = date(2024, 6, 28)
LIMITS = Limits(max_position=0.3, max_correlated_exposure=1.0, min_confidence=0.35, correlation_sessions=20)
NET = Contender("net", "network", ("t0",))  # one trial: a network fitted with one seed
OTHER = Contender("other", "network", ("t1", "t2"))
HOLD = Contender("buy_and_hold", "rule")


@pytest.fixture(scope="module")
def scored_file(
    open_desk: Callable, store_forecasts: Callable, desk_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A warehouse file with the features of the night of FRIDAY, and a backtest of two networks and buy-and-hold."""
    desk = open_desk(shutil.copy(desk_file, tmp_path_factory.mktemp("scored")))
    for trial in ("t0", "t1", "t2"):
        store_forecasts(desk, trial, start=date(2024, 4, 1))
    return run_backtest(replace(desk.night(FRIDAY), tape=Path("tape"))).warehouse.path


@pytest.fixture
def desk(open_desk: Callable, scored_file: Path, tmp_path: Path) -> Desk:
    """A test warehouse: a copy of ``scored_file``."""
    return open_desk(shutil.copy(scored_file, tmp_path))


@pytest.fixture
def night(desk: Desk) -> Night:
    """The recorded night of FRIDAY in ``desk``; no test reads its tape."""
    return replace(desk.night(FRIDAY), tape=Path("tape"))


def run_backtest(night: Night, models: Sequence[Contender] = (NET, OTHER, HOLD), class_horizon: int = 5) -> Night:
    """Writes features and backtests of the night, and returns the night."""
    write_features.fn(night)
    run_backtests.fn(night, list(models), LIMITS, class_horizon)
    return night


def write_signals(
    night: Night,
    models: Sequence[Contender] = (NET, OTHER, HOLD),
    horizons: tuple[int, ...] = (1, 5, 20),
    class_horizon: int = 5,
) -> SignalReport:
    return write_next_session_signals.fn(night, list(models), LIMITS, horizons, class_horizon)


def test_every_network_has_a_signal_of_every_symbol_for_the_next_session(desk: Desk, night: Night) -> None:
    """HYB-22: the session after FRIDAY is Monday."""
    report = write_signals(night)
    assert (report.signals, report.for_session) == (8, date(2024, 7, 1))
    rows = desk.rows("SELECT model, symbol, night, as_of::DATE, for_session, run_id FROM store.signals ORDER BY ALL")
    expected = (FRIDAY, FRIDAY, date(2024, 7, 1), night.run_id)
    assert rows == [(model, symbol, *expected) for model in ("net", "other") for symbol in ("AAA", "BBB", "CCC", "DDD")]


def test_weights_are_the_last_decision_of_the_backtest(desk: Desk, night: Night) -> None:
    write_signals(night)
    inputs = load_portfolio_inputs(night)
    for contender in (NET, OTHER):
        forecast = load_forecasts(night, contender, 5, inputs.ts)
        expected = forecast_weights(inputs, forecast, LIMITS, 0)[-1]
        stored = desk.rows(f"SELECT weight FROM store.signals WHERE model = '{contender.model}' ORDER BY symbol")
        assert [weight for (weight,) in stored] == expected.tolist()
        assert np.abs(expected).sum() > 0


def test_labels_confidence_and_expectations_come_from_the_mean_over_the_trials(desk: Desk, night: Night) -> None:
    """S4-33: label, confidence and expected return."""
    write_signals(night)
    rows = desk.rows(
        "SELECT s.label_3, s.label_5, s.confidence, s.expected_return, s.expected_volatility, "
        "p.sell, p.hold, p.buy, p.r, p.v FROM store.signals s "
        "JOIN (SELECT symbol, ts, avg(p_strong_sell + p_sell) AS sell, avg(p_hold) AS hold, "
        "avg(p_buy + p_strong_buy) AS buy, avg(expected_return) AS r, avg(expected_volatility) AS v FROM predictions "
        "WHERE trial_id IN ('t1', 't2') AND horizon_bars = 5 GROUP BY ALL) AS p "
        "ON p.symbol = s.symbol AND p.ts = s.as_of WHERE s.model = 'other'"
    )
    assert len(rows) == 4
    for label_3, label_5, confidence, returns, volatility, sell, hold, buy, mean_return, mean_volatility in rows:
        assert confidence == pytest.approx({"SELL": sell, "HOLD": hold, "BUY": buy}[label_3])
        assert label_5 == label_3  # ``store_forecasts`` makes each plain class more probable than its strong class
        assert returns == pytest.approx({1: mean_return, 5: mean_return, 20: mean_return})
        assert volatility == pytest.approx(mean_volatility)


def test_sides_have_the_sign_of_the_weights_and_stops_are_two_average_true_ranges_away(
    desk: Desk, night: Night
) -> None:
    write_signals(night)
    rows = desk.rows(
        "SELECT s.side, s.weight, s.stop_price, s.close, b.close, f.atr_14 FROM store.signals s "
        "JOIN bars b ON b.symbol = s.symbol AND b.ts = s.as_of AND b.universe = s.universe "
        "JOIN features f ON f.symbol = s.symbol AND f.ts = s.as_of AND f.universe = s.universe"
    )
    assert {side for side, *_ in rows} >= {"LONG", "SHORT"}
    for side, weight, stop, signal_close, close, atr_14 in rows:
        direction = {"LONG": 1, "FLAT": 0, "SHORT": -1}[side]
        assert np.sign(weight) == direction
        assert signal_close == close
        expected_stop = close * (1 - direction * STOP_ATR_MULTIPLE * atr_14)  # atr_14 is a fraction of the close
        assert stop == (None if direction == 0 else pytest.approx(expected_stop))


def test_running_again_changes_no_row(desk: Desk, night: Night) -> None:
    write_signals(night)
    before = [desk.contents(f"store.{name}") for name in ("signals", "model_registry")]
    write_signals(night)
    desk.publish(FRIDAY)
    write_signals(night)
    assert [desk.contents(f"store.{name}") for name in ("signals", "model_registry")] == before


def test_published_signals_are_never_altered(desk: Desk, night: Night) -> None:
    write_signals(night)
    desk.publish(FRIDAY)
    before = desk.contents("store.signals")
    desk.execute("UPDATE store.predictions SET expected_return = expected_return + 1e-9 WHERE trial_id = 't0'")
    with pytest.raises(PublishedNightError, match="recorded night 2024-06-28 of stocks is published"):
        write_signals(night)
    with pytest.raises(PublishedNightError, match="8 signals that are not the 4 computed now"):
        write_signals(night, models=(OTHER, HOLD))
    assert desk.contents("store.signals") == before


def test_a_second_run_replaces_the_signals_of_an_unpublished_night(desk: Desk, night: Night) -> None:
    write_signals(night)
    write_signals(night, models=(OTHER, HOLD))
    assert desk.rows("SELECT DISTINCT model FROM store.signals") == [("other",)]
    assert desk.rows("SELECT role, model FROM store.model_registry") == [("champion", "other")]


def test_champion_and_challenger_are_the_best_networks_of_the_leaderboard(desk: Desk, night: Night) -> None:
    report = write_signals(night)
    ranked = desk.rows("SELECT model, sharpe FROM store.leaderboard WHERE kind = 'network' ORDER BY rank")
    registered = desk.rows("SELECT model, sharpe FROM store.model_registry ORDER BY role DESC")
    assert registered == ranked
    best_model, _ = ranked[0]
    assert report.champion == best_model
    ((reason, trial_ids),) = desk.rows("SELECT reason, trial_ids FROM store.model_registry WHERE role = 'champion'")
    assert reason.startswith("first of 2 networks by Sharpe net of costs over 62 sessions: Sharpe ")
    assert "buy_and_hold Sharpe" in reason
    assert trial_ids == list({"net": NET, "other": OTHER}[report.champion].trial_ids)


@pytest.mark.parametrize(("source", "tape"), [("live", Path("tape")), ("recorded", None)])
def test_a_live_night_with_a_tape_and_a_recorded_night_without_one_are_refused(
    desk: Desk, night: Night, source: str, tape: Path | None
) -> None:
    with pytest.raises(SourceMismatchError, match=f"is {source} and its tape is {tape}"):
        write_signals(replace(night, source=source, tape=tape))
    assert desk.contents("store.signals").num_rows == 0


def test_a_night_without_a_network_raises(desk: Desk, night: Night) -> None:
    with pytest.raises(NoForecastsError, match="no network on the leaderboard of stocks, night 2024-06-28"):
        write_signals(night, models=(HOLD,))


def test_a_night_whose_session_has_not_closed_raises(desk: Desk, night: Night) -> None:
    before_the_close = replace(night, clock=datetime(2024, 6, 28, 19, 59, tzinfo=UTC))
    with pytest.raises(NoForecastsError, match="session 2024-06-28 has not closed by 2024-06-28 19:59"):
        write_signals(before_the_close)


def test_a_symbol_without_a_bar_of_the_session_has_no_signal(desk: Desk, night: Night) -> None:
    desk.execute("DELETE FROM store.bars WHERE symbol = 'BBB' AND ts::DATE = '2024-06-28'")
    desk.execute("DELETE FROM store.predictions WHERE symbol = 'BBB' AND ts::DATE = '2024-06-28'")
    write_signals(run_backtest(night, models=(NET, HOLD)), models=(NET, HOLD))
    assert desk.rows("SELECT symbol FROM store.signals ORDER BY 1") == [("AAA",), ("CCC",), ("DDD",)]


def test_a_perpetual_without_the_last_hour_has_a_signal_from_the_hour_before(
    desk: Desk, store_forecasts: Callable
) -> None:
    store_forecasts(desk, "t0", start=date(2024, 6, 11), universe="perpetuals", end=date(2024, 6, 21), horizons=(1, 24))
    last_hour_of_bbb = "ts >= '2024-06-20 23:00:00+00' AND symbol = 'BBB' AND universe = 'perpetuals'"
    desk.execute(f"DELETE FROM store.bars WHERE {last_hour_of_bbb}")
    desk.execute(f"DELETE FROM store.predictions WHERE {last_hour_of_bbb}")
    night = replace(desk.night(date(2024, 6, 20), "perpetuals"), tape=Path("tape"))
    run_backtest(night, models=(NET, HOLD), class_horizon=24)
    report = write_signals(night, models=(NET, HOLD), horizons=(1, 24), class_horizon=24)
    assert report.for_session == date(2024, 6, 21)
    assert desk.rows("SELECT symbol, hour(as_of) FROM store.signals ORDER BY 1") == [("AAA", 23), ("BBB", 22)]
    stored = desk.rows("SELECT symbol, weight FROM store.signals WHERE weight <> 0 ORDER BY 1")
    decided = desk.rows(
        "SELECT symbol, weight FROM positions JOIN backtests USING (backtest_id) WHERE model = 'net' "
        "AND ts = '2024-06-20 23:00:00+00' ORDER BY 1"
    )
    assert stored == decided


def test_signals_do_not_depend_on_data_after_the_night(desk: Desk, night: Night, tmp_path: Path) -> None:
    shorter = desk.copy_to(tmp_path / "shorter")  # the warehouse without rows after the night
    for table in ("bars", "predictions", "corporate_actions"):
        shorter.execute(f"DELETE FROM store.{table} WHERE ts > '2024-06-29'")
    for table in ("features", "equity_curves", "positions", "leaderboard", "metrics", "backtests"):
        shorter.execute(f"DELETE FROM store.{table}")
    write_signals(night)
    write_signals(run_backtest(replace(night, warehouse=shorter.warehouse)))
    assert shorter.contents("store.signals") == desk.contents("store.signals")
