"""Backtests and leaderboard in a real warehouse: the same rows on every run, causal, with costs (TRAP-03, TRAP-10).

A night is the run for one as-of date. A Desk is a test warehouse with recorded bars of the stocks AAA to DDD and the
perpetuals AAA and BBB, see tests/desk.py. "net" is a network with the stored forecasts of one trial. Ids:
.github/sources.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.scoring.portfolio import Limits
from models.sessions import bar_opens
from tasks.backtest import BacktestReport, run_backtests
from tasks.errors import NoForecastsError
from tasks.forecasts import Contender
from tests.desk import Desk

FRIDAY = date(2024, 6, 28)
MONDAY = date(2024, 7, 1)
LIMITS = Limits(max_position=0.5, max_correlated_exposure=1.0, min_confidence=0.35, correlation_sessions=20)
NET = Contender("net", "network", ("t0",))
RULES = [Contender(name, "rule") for name in ("buy_and_hold", "equal_weight", "momentum")]
STOCK_COSTS = 6e-4  # commission of 1 bps and slippage of 5 bps of the traded value, see tests/universes.py
TABLES = ("store.backtests", "store.equity_curves", "store.positions", "store.metrics", "store.leaderboard")


def run_backtest(
    desk: Desk,
    as_of: date = FRIDAY,
    models: Sequence[Contender] = (NET, *RULES),
    universe: str = "stocks",
    limits: Limits = LIMITS,
    class_horizon: int = 5,
) -> BacktestReport:
    return run_backtests.fn(desk.night(as_of, universe), list(models), limits, class_horizon)


def table_contents(desk: Desk) -> dict[str, pa.Table]:
    """All rows of each of TABLES."""
    return {table: desk.contents(table) for table in TABLES}


def first_value(desk: Desk, query: str) -> Any:
    """The value in the first column of the first result row."""
    return desk.rows(query)[0][0]


def equity_curve(desk: Desk, model: str) -> dict[date, float]:
    """The stored equity of a model by session."""
    rows = desk.rows(
        f"SELECT session, equity FROM equity_curves JOIN backtests USING (backtest_id) WHERE model = '{model}'"
    )
    return dict(sorted(rows))


def test_every_model_is_scored_over_the_window_that_all_networks_forecast(
    desk: Desk, store_forecasts: Callable
) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    store_forecasts(desk, "late", start=date(2024, 4, 15))
    report = run_backtest(desk, models=(NET, Contender("other", "network", ("late",)), *RULES))
    sessions = bar_opens("XNYS", "1d", date(2024, 4, 15), date(2024, 6, 29))
    assert (report.models, report.sessions) == (5, len(sessions) - 1)
    assert (report.first_session, report.last_session) == (date(2024, 4, 16), FRIDAY)
    for model in ("net", "other", "buy_and_hold", "equal_weight", "momentum"):
        curve = equity_curve(desk, model)
        assert (min(curve), max(curve), len(curve)) == (date(2024, 4, 15), FRIDAY, len(sessions))
        assert curve[date(2024, 4, 15)] == 1.0


def test_buy_and_hold_buys_the_benchmark_at_the_next_open_and_pays_costs(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    run_backtest(desk)
    bought_at = first_value(desk, "SELECT open FROM bars WHERE symbol = 'IDX' AND ts::DATE = '2024-04-02'")
    last_close = first_value(desk, "SELECT close FROM bars WHERE symbol = 'IDX' AND ts::DATE = '2024-06-28'")
    assert equity_curve(desk, "buy_and_hold")[FRIDAY] == pytest.approx(last_close / bought_at - STOCK_COSTS)
    turnover = first_value(
        desk, "SELECT sum(turnover) FROM equity_curves JOIN backtests USING (backtest_id) WHERE model = 'buy_and_hold'"
    )
    assert turnover == 1.0


def test_a_portfolio_earns_dividends(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 3, 20), direction={"AAA": 1})
    run_backtest(desk, limits=replace(LIMITS, max_position=1.0))
    bought_at = first_value(desk, "SELECT open FROM bars WHERE symbol = 'AAA' AND ts::DATE = '2024-03-21'")
    first_close = first_value(desk, "SELECT close FROM bars WHERE symbol = 'AAA' AND ts::DATE = '2024-03-21'")
    growth = first_value(
        desk,
        "SELECT product(1 + total_return) FROM bars WHERE symbol = 'AAA' AND ts::DATE > '2024-03-21' "
        "AND ts::DATE <= '2024-04-05'",
    )
    curve = equity_curve(desk, "net")
    expected = first_close / bought_at * growth - STOCK_COSTS
    # 1e-4: the cost also grows with the position, and keeping the weight trades a little; the dividend adds over 1 %
    assert curve[date(2024, 4, 5)] == pytest.approx(expected, abs=1e-4)


def test_a_network_trades_its_forecasts_in_the_following_session(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1), direction={"AAA": 1, "BBB": -1, "CCC": 0, "DDD": 0})
    run_backtest(desk)
    positions = desk.rows(
        "SELECT DISTINCT symbol, weight FROM positions JOIN backtests USING (backtest_id) WHERE model = 'net'"
    )
    assert sorted(positions) == [("AAA", 0.5), ("BBB", -0.5)]
    first_session, second_session = desk.rows(
        "SELECT session, gross_exposure FROM equity_curves JOIN backtests USING (backtest_id) WHERE model = 'net' "
        "ORDER BY session LIMIT 2"
    )
    assert first_session == (date(2024, 4, 1), 0.0)
    _, gross_exposure = second_session
    assert gross_exposure == pytest.approx(1.0, abs=0.02)  # filled at the open; the weights drift until the close


def test_a_drawdown_closes_all_positions_for_the_cooldown(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1), direction={"AAA": 1})
    run_backtest(desk, limits=replace(LIMITS, drawdown_trigger=0.02, cooldown_sessions=5))
    sessions = desk.rows(
        "SELECT drawdown, coalesce(weight, 0) FROM equity_curves JOIN backtests USING (backtest_id) "
        "LEFT JOIN positions USING (backtest_id, ts) WHERE model = 'net' ORDER BY ts"
    )
    n_invested = next(k for k, (drawdown, _) in enumerate(sessions) if drawdown <= -0.02)
    weights = [weight for _, weight in sessions[: n_invested + 5 + 1]]  # up to the first session after the cooldown
    assert weights == [0.5] * n_invested + [0.0] * 5 + [0.5]


def test_the_forecasts_of_a_models_trials_are_averaged(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1), direction={"AAA": 1}, confidence=0.9)
    store_forecasts(desk, "t1", start=date(2024, 4, 1), direction={"AAA": -1}, confidence=0.5)
    run_backtest(desk, models=(Contender("net", "network", ("t0", "t1")), *RULES))
    positions = desk.rows(
        "SELECT DISTINCT symbol, weight FROM positions JOIN backtests USING (backtest_id) WHERE model = 'net'"
    )
    assert positions == [("AAA", 0.5)]


def test_running_again_changes_no_row(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    run_backtest(desk)
    before = table_contents(desk)
    run_backtest(desk)
    assert table_contents(desk) == before
    assert all(table.num_rows for table in before.values())


def test_the_next_night_adds_its_session_and_leaves_earlier_rows_unchanged(
    desk: Desk, store_forecasts: Callable
) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    run_backtest(desk)
    curves = desk.contents("store.equity_curves")
    positions = desk.contents("store.positions")
    run_backtest(desk, MONDAY)
    assert desk.contents("store.equity_curves WHERE session <= '2024-06-28'") == curves
    assert desk.contents("store.positions WHERE ts < '2024-06-29'") == positions
    added = desk.rows(
        "SELECT session, count(*), min(run_id) FROM equity_curves WHERE session > '2024-06-28' GROUP BY 1"
    )
    assert added == [(MONDAY, 4, desk.night(MONDAY).run_id)]
    assert desk.contents("store.backtests").num_rows == 4
    assert desk.rows("SELECT DISTINCT night FROM store.leaderboard ORDER BY 1") == [(FRIDAY,), (MONDAY,)]


def test_several_nights_write_the_same_rows_as_one_night(desk: Desk, store_forecasts: Callable, tmp_path: Path) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    one_night = desk.copy_to(tmp_path / "one_night")
    for day in (24, 26, 28):
        run_backtest(desk, date(2024, 6, day))
    run_backtest(one_night)
    for table in ("store.equity_curves", "store.positions", "store.backtests"):
        assert desk.contents(table, "* EXCLUDE (run_id)") == one_night.contents(table, "* EXCLUDE (run_id)")


def test_an_earlier_night_run_again_leaves_later_rows_unchanged(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    run_backtest(desk, date(2024, 6, 20))
    run_backtest(desk)
    before = table_contents(desk)
    run_backtest(desk, date(2024, 6, 20))
    assert table_contents(desk) == before


def test_a_restated_bar_changes_the_curve_from_there_on(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    run_backtest(desk, models=(NET, RULES[0]))
    before = desk.contents("store.equity_curves WHERE session < '2024-06-03'")
    desk.execute("UPDATE store.bars SET close = close * 1.01, high = high * 1.02 WHERE ts::DATE = '2024-06-03'")
    run_backtest(desk, MONDAY, models=(NET, RULES[0]))
    assert desk.contents("store.equity_curves WHERE session < '2024-06-03'") == before
    changed = desk.rows("SELECT DISTINCT run_id FROM equity_curves WHERE session >= '2024-06-03'")
    assert changed == [(desk.night(MONDAY).run_id,)]
    n_rows = 2 * len(bar_opens("XNYS", "1d", date(2024, 4, 1), date(2024, 7, 2)))
    assert desk.rows("SELECT count(*), count(DISTINCT (backtest_id, ts)) FROM equity_curves") == [(n_rows, n_rows)]


def test_bars_after_the_night_change_nothing(desk: Desk, store_forecasts: Callable, tmp_path: Path) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    shorter = desk.copy_to(tmp_path / "shorter")  # the warehouse without rows after the night
    for table in ("bars", "predictions", "corporate_actions"):
        shorter.execute(f"DELETE FROM store.{table} WHERE ts > '2024-06-29'")
    run_backtest(desk)
    run_backtest(shorter)
    assert table_contents(desk) == table_contents(shorter)


def test_other_costs_limits_or_trials_make_another_backtest(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    store_forecasts(desk, "t1", start=date(2024, 4, 1))
    run_backtest(desk)
    run_backtest(desk, limits=replace(LIMITS, max_position=0.4))
    run_backtest(desk, models=(Contender("net", "network", ("t1",)), *RULES))
    night = desk.night(FRIDAY)
    costly = replace(night, universe=replace(night.universe, commission_bps=20))
    run_backtests.fn(costly, [NET, *RULES], LIMITS, 5)
    ids = desk.rows("SELECT model, count(DISTINCT backtest_id) FROM backtests GROUP BY 1 ORDER BY 1")
    assert ids == [("buy_and_hold", 2), ("equal_weight", 2), ("momentum", 2), ("net", 4)]


def test_higher_costs_lower_the_equity_of_every_model_that_trades(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    night = desk.night(FRIDAY)
    models = [NET, *RULES[:2]]
    run_backtests.fn(night, models, LIMITS, 5)
    run_backtests.fn(replace(night, universe=replace(night.universe, slippage_bps=25)), models, LIMITS, 5)
    equities = desk.rows(
        "SELECT model, arg_min(equity, slippage_bps), arg_max(equity, slippage_bps) FROM equity_curves "
        "JOIN backtests USING (backtest_id) WHERE session = '2024-06-28' GROUP BY model"
    )
    assert len(equities) == 3
    assert all(equity_at_high_costs < equity_at_low_costs for _, equity_at_low_costs, equity_at_high_costs in equities)


def test_the_leaderboard_ranks_by_sharpe_and_compares_with_buy_and_hold(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    store_forecasts(desk, "unsure", start=date(2024, 4, 1), confidence=0.34)
    report = run_backtest(desk, models=(NET, Contender("flat", "network", ("unsure",)), *RULES))
    rows = sorted(desk.contents("store.leaderboard").to_pylist(), key=lambda row: row["rank"])
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    sharpes = [row["sharpe"] for row in rows[:3]]
    assert sharpes == sorted(sharpes, reverse=True)
    assert report.leader == rows[0]["model"]
    # a portfolio without a position has no Sharpe and comes last; momentum has too few bars for a position yet
    assert [(row["model"], row["sharpe"]) for row in rows[3:]] == [("flat", None), ("momentum", None)]
    benchmark_return = next(row["annual_return"] for row in rows if row["model"] == "buy_and_hold")
    assert all(row["excess_annual_return"] == pytest.approx(row["annual_return"] - benchmark_return) for row in rows)
    assert all(row["funding_coverage"] is None for row in rows)
    assert {row["model"] for row in rows if row["kind"] == "rule"} == {"buy_and_hold", "equal_weight", "momentum"}


def test_the_metrics_table_has_the_values_of_the_leaderboard(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    run_backtest(desk)
    for name in ("sharpe", "max_drawdown", "annual_turnover", "annual_cost", "excess_annual_return"):
        n_equal = desk.rows(
            f"SELECT count(*) FROM store.leaderboard l JOIN store.metrics m USING (night, universe, backtest_id) "
            f"WHERE m.metric = '{name}' AND m.value IS NOT DISTINCT FROM l.{name}"
        )
        assert n_equal == [(4,)]


def test_missing_funding_is_reported_as_coverage_and_warned_about(
    desk: Desk, store_forecasts: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    # the desk has AAA's funding from 10 June on, and no funding of BBB
    store_forecasts(desk, "t0", start=date(2024, 6, 8), universe="perpetuals", end=date(2024, 6, 21), horizons=(24,))
    with caplog.at_level("WARNING"):
        run_backtest(desk, date(2024, 6, 20), universe="perpetuals", class_horizon=24)
    rows = dict(desk.rows("SELECT model, funding_coverage FROM store.leaderboard"))
    # the first decision is at the end of 8 June, so 12 days with 3 settlements each are due: 9 to 20 June
    n_due = 12 * 3
    n_stored = n_due - 3  # the settlements of 9 June at 8:00, 16:00 and 24:00 are missing
    assert rows["buy_and_hold"] == pytest.approx(n_stored / n_due)  # it holds AAA alone
    assert rows["net"] == pytest.approx(n_stored / (2 * n_due))
    assert "perpetuals is scored with 46% of its funding settlements" in caplog.text


def test_perpetuals_decide_at_the_end_of_the_utc_day_and_longs_pay_funding(
    desk: Desk, store_forecasts: Callable
) -> None:
    store_forecasts(
        desk,
        "t0",
        start=date(2024, 6, 11),
        universe="perpetuals",
        end=date(2024, 6, 21),
        direction={"AAA": 1},
        horizons=(24,),
    )
    run_backtest(desk, date(2024, 6, 20), models=(NET, *RULES[:1]), universe="perpetuals", class_horizon=24)
    decided = desk.rows(
        "SELECT DISTINCT hour(ts), symbol, weight FROM positions JOIN backtests USING (backtest_id) WHERE model = 'net'"
    )
    assert decided == [(23, "AAA", 0.5)]
    rows = desk.rows(
        "SELECT session, funding, hour(ts) FROM equity_curves JOIN backtests USING (backtest_id) WHERE model = 'net' "
        "ORDER BY session"
    )
    assert [session for session, _, _ in rows] == [date(2024, 6, day) for day in range(11, 21)]
    assert {hour for _, _, hour in rows} == {23}
    funding = {session: paid for session, paid, _ in rows}
    assert funding[date(2024, 6, 11)] == 0.0  # the position is decided at the end of this day
    # 12 June settles at 8:00, 16:00 and 24:00: rates 6, 7 and 8 (in 1e-5). The weight drifts from a half: 5 %
    assert funding[date(2024, 6, 12)] == pytest.approx(-0.5 * (6 + 7 + 8) * 1e-5, rel=0.05)


def test_a_model_without_predictions_raises_and_writes_no_leaderboard(desk: Desk, store_forecasts: Callable) -> None:
    store_forecasts(desk, "t0", start=date(2024, 4, 1))
    with pytest.raises(NoForecastsError, match=r"other .1 trials. has no recorded predictions 5 bars ahead for stocks"):
        run_backtest(desk, models=(NET, Contender("other", "network", ("nothing",))))
    assert desk.contents("store.leaderboard").num_rows == 0


def test_without_networks_rules_are_scored_after_a_correlation_window(desk: Desk) -> None:
    report = run_backtest(desk, models=RULES)
    opens = bar_opens("XNYS", "1d", date(2024, 1, 2), date(2024, 6, 29))
    assert report.sessions == len(opens) - 1 - LIMITS.correlation_sessions
