"""The views against numbers computed by hand.

The fixtures ``add_bars``, ``add_actions`` and ``add_night`` (the run for one as-of date) are in conftest.py. Bars and
actions are by default of symbol AAA, universe us_stocks, source recorded, interval 1d.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from warehouse.connect import Warehouse
from warehouse.migrate import WAREHOUSE_FOLDER

VIEWS = {file.stem for file in (WAREHOUSE_FOLDER / "views").glob("*.sql")} - {"bars_as_of"}  # a table macro
DOCUMENTED_VIEWS = {  # the views in the table of the README
    *("bars", "corporate_actions", "funding_rates", "universes", "universe_members", "features", "graph_snapshots"),
    *("graph_edges", "trials", "folds", "predictions", "backtests", "equity_curves", "positions", "metrics"),
    *("leaderboard", "signals", "signals_next_day", "checks", "quarantine", "leak_audit", "nights", "model_registry"),
    *("step_runs", "events", "trades", "stream_forecasts", "signals_now"),
}
# UTC opens of one week of sessions
MON = "2024-06-24T13:30"
TUE = "2024-06-25T13:30"
WED = "2024-06-26T13:30"
THU = "2024-06-27T13:30"
FRI = "2024-06-28T13:30"


def select(warehouse: Warehouse, sql: str, **parameters: object) -> list[tuple]:
    """All rows of a statement."""
    with warehouse.read() as con:
        return con.execute(sql, parameters).fetchall()


def bar_values(warehouse: Warehouse, expression: str, where: str = "true") -> list:
    """The values of one SQL expression on the view ``bars``, ordered by source, symbol and ts."""
    rows = select(warehouse, f"SELECT {expression} FROM bars WHERE {where} ORDER BY source, symbol, ts")
    return [value for (value,) in rows]


def test_every_view_file_creates_the_view_of_its_name_and_no_documented_view_is_missing(warehouse: Warehouse) -> None:
    assert {name for (name,) in select(warehouse, "SELECT view_name FROM duckdb_views() WHERE NOT internal")} == VIEWS
    assert VIEWS >= DOCUMENTED_VIEWS
    assert select(warehouse, "FROM bars_as_of(now())") == []


@pytest.mark.parametrize("view", sorted(VIEWS - {"universes", "universe_members"}))
def test_every_row_has_its_source_its_universe_and_the_night_that_wrote_it(warehouse: Warehouse, view: str) -> None:
    """TRAP-14: simulated rows can always be distinguished from recorded and live ones."""
    with warehouse.read() as con:
        columns = {name for name, *_ in con.execute(f"FROM {view} LIMIT 0").description}
    # an event belongs to a venue, whatever universes its symbol is in
    assert {"source", "venue" if view in ("events", "trades") else "universe", "run_id"} <= columns


def test_total_return_without_dividends_is_the_change_of_the_close(
    warehouse: Warehouse, add_bars: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, TUE: 110.0, WED: 99.0})
    assert bar_values(warehouse, "total_return") == [None, pytest.approx(0.10), pytest.approx(-0.10)]
    assert bar_values(warehouse, "close_adjusted") == [100.0, 110.0, 99.0]


def test_a_dividend_counts_on_its_ex_date(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, TUE: 100.0, WED: 98.0, THU: 98.0})
    add_actions({WED: 2.0})
    assert bar_values(warehouse, "total_return") == [None, 0.0, 0.0, 0.0]
    factor = 98 / (98 + 2)  # close / (close + dividend) on the ex-date
    assert bar_values(warehouse, "close_adjusted") == pytest.approx([100 * factor, 100 * factor, 98, 98])
    assert bar_values(warehouse, "close_adjusted") == [98.0, 98.0, 98.0, 98.0]


def test_a_dividend_on_a_missing_bar_counts_on_the_next_one(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, WED: 101.0, THU: 102.01})  # no bar on Tuesday
    add_actions({TUE: 4.0})
    assert bar_values(warehouse, "total_return") == [None, pytest.approx(0.05), pytest.approx(0.01)]
    assert bar_values(warehouse, "close_adjusted") == [pytest.approx(101 / 1.05), 101.0, 102.01]


def test_a_dividend_with_an_ex_date_at_midnight_counts_on_that_session(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, TUE: 100.0, WED: 100.0})
    add_actions({"2024-06-25T00:00": 1.0})
    assert bar_values(warehouse, "total_return") == [None, pytest.approx(0.01), 0.0]


def test_two_dividends_before_one_bar_add_up(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, THU: 100.0})
    add_actions({TUE: 1.0, WED: 2.0})
    assert bar_values(warehouse, "total_return") == [None, pytest.approx(0.03)]


def test_a_dividend_before_the_first_bar_or_after_the_last_changes_nothing(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({TUE: 100.0, WED: 101.0})
    add_actions({MON: 5.0, FRI: 5.0})
    assert bar_values(warehouse, "total_return") == [None, pytest.approx(0.01)]
    assert bar_values(warehouse, "close_adjusted") == [100.0, 101.0]


def test_a_split_changes_nothing_because_closes_are_received_adjusted_for_it(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 25.0, TUE: 25.5})
    add_actions({TUE: 4.0}, kind="split")
    assert bar_values(warehouse, "total_return") == [None, pytest.approx(0.02)]


def test_adjusted_closes_move_by_the_total_return(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 50.0, TUE: 49.0, WED: 51.5, THU: 50.25, FRI: 50.75})
    add_actions({TUE: 1.25, THU: 0.75})
    _, *returns = bar_values(warehouse, "total_return")  # the first bar has none
    adjusted = bar_values(warehouse, "close_adjusted")
    assert [after / before - 1 for before, after in itertools.pairwise(adjusted)] == pytest.approx(returns)
    first_return, *_ = returns
    assert first_return == pytest.approx((49 + 1.25) / 50 - 1)
    *_, last_adjusted = adjusted
    assert last_adjusted == 50.75  # equal to the last close


def test_returns_do_not_mix_sources_universes_symbols_or_intervals(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, TUE: 101.0})
    add_bars({MON: 10.0, TUE: 11.0}, symbol="BBB")
    add_bars({MON: 200.0, TUE: 210.0}, source="simulated")
    add_bars({MON: 100.0, TUE: 100.0}, universe="demo_stocks")
    add_bars({TUE: 100.5, "2024-06-25T14:30": 101.0}, interval="1h")
    add_bars({MON: 50.0, TUE: 50.0}, symbol="CCC")
    add_bars({"2024-06-24T19:30": 50.0, TUE: 50.0}, symbol="CCC", interval="1h")
    add_actions({TUE: 10.0}, source="simulated")
    add_actions({TUE: 1.0}, symbol="CCC")
    daily = "universe = 'us_stocks' AND interval = '1d'"
    assert bar_values(warehouse, "total_return", daily) == pytest.approx([None, 0.01, None, 0.1, None, 0.02, None, 0.1])
    assert bar_values(warehouse, "total_return", "universe = 'demo_stocks'") == [None, 0.0]
    hourly = bar_values(warehouse, "total_return", "interval = '1h'")
    assert hourly == [None, pytest.approx(101 / 100.5 - 1), None, pytest.approx(0.02)]


def test_a_filter_on_the_view_does_not_change_its_returns(
    warehouse: Warehouse, add_bars: Callable[..., None], add_actions: Callable[..., None]
) -> None:
    add_bars({MON: 100.0, TUE: 101.0, WED: 103.02})
    add_actions({TUE: 1.0})
    all_values = bar_values(warehouse, "(ts, total_return, close_adjusted)")
    for where in (
        "symbol = 'AAA'",
        f"ts >= '{TUE}:00+00'",
        f"ts < '{WED}:00+00'",
        "source = 'recorded'",
    ):
        assert set(bar_values(warehouse, "(ts, total_return, close_adjusted)", where)) <= set(all_values)


def test_bars_as_of_returns_the_version_received_by_an_instant(
    warehouse: Warehouse, add_bars: Callable[..., None]
) -> None:
    raw = {"table": "raw.bars", "provider": "yahoo"}
    add_bars({MON: 100.0, TUE: 101.0}, fetched_at="2024-06-26 00:00:00+00", run_id="first", **raw)
    add_bars({TUE: 100.9, WED: 102.0}, fetched_at="2024-06-27 00:00:00+00", run_id="second", **raw)

    def closes_as_of(instant: str) -> list[tuple]:
        return select(warehouse, "SELECT close, run_id FROM bars_as_of($t) ORDER BY ts", t=instant)

    assert closes_as_of("2024-06-25 23:59:59+00") == []
    assert closes_as_of("2024-06-26 00:00:00+00") == [(100.0, "first"), (101.0, "first")]
    assert closes_as_of("2024-06-27 00:00:00+00") == [(100.0, "first"), (100.9, "second"), (102.0, "second")]


def test_bars_as_of_does_not_mix_sources(warehouse: Warehouse, add_bars: Callable[..., None]) -> None:
    raw = {"table": "raw.bars", "provider": "yahoo"}
    add_bars({MON: 100.0}, fetched_at="2024-06-26 00:00:00+00", **raw)
    add_bars({MON: 7.0}, fetched_at="2024-06-27 00:00:00+00", source="simulated", **raw)
    closes = select(warehouse, "SELECT source, close FROM bars_as_of('2024-06-28') ORDER BY source")
    assert closes == [("recorded", 100.0), ("simulated", 7.0)]


def test_next_day_signals_are_the_signals_of_the_champion_of_the_latest_published_night(
    warehouse: Warehouse, add_night: Callable[..., None]
) -> None:
    add_night(date(2024, 6, 27))
    add_night(date(2024, 6, 28))
    add_night(date(2024, 7, 1), published=False)
    signals = select(warehouse, "SELECT night, model, symbol, side, expected_return[5] FROM signals_next_day")
    assert signals == [(date(2024, 6, 28), "winner", "AAA", "LONG", 0.01)]


def test_next_day_signals_come_per_source_and_universe(warehouse: Warehouse, add_night: Callable[..., None]) -> None:
    add_night(date(2024, 6, 28))
    add_night(date(2024, 6, 27))
    add_night(date(2024, 6, 27), universe="crypto")
    add_night(date(2024, 6, 26), universe="crypto")
    add_night(date(2024, 6, 26), source="simulated")
    signals = select(warehouse, "SELECT source, universe, night FROM signals_next_day ORDER BY night")
    assert signals == [
        ("simulated", "us_stocks", date(2024, 6, 26)),
        ("recorded", "crypto", date(2024, 6, 27)),
        ("recorded", "us_stocks", date(2024, 6, 28)),
    ]


@pytest.mark.parametrize("view", ["signals", "model_registry", "signals_next_day"])
def test_an_unfinished_night_is_visible_in_nights_only(
    warehouse: Warehouse, add_night: Callable[..., None], view: str
) -> None:
    add_night(date(2024, 6, 28), published=False)
    assert select(warehouse, f"FROM {view}") == []
    assert select(warehouse, "SELECT night, published_at FROM nights") == [(date(2024, 6, 28), None)]
    with warehouse.write("finish") as con:
        con.execute("UPDATE store.nights SET published_at = clock")
    assert select(warehouse, f"FROM {view}") != []


@pytest.mark.parametrize("view", ["metrics", "leaderboard"])
def test_figures_of_an_unfinished_night_stay_hidden_until_it_is_published(
    warehouse: Warehouse, add_night: Callable[..., None], view: str
) -> None:
    night = date(2024, 6, 28)
    add_night(night, published=False)
    run_id = f"recorded-us_stocks-{night}"
    with warehouse.write("score") as con:
        con.execute(
            "INSERT INTO store.metrics BY NAME SELECT 'recorded' AS source, 'us_stocks' AS universe, $n AS night,"
            " 'b' AS backtest_id, 'sharpe' AS metric, 1 AS value, $r AS run_id",
            {"n": night, "r": run_id},
        )
        con.execute(
            "INSERT INTO store.leaderboard BY NAME SELECT 'recorded' AS source, 'us_stocks' AS universe, $n AS night,"
            " 'm' AS model, 1 AS rank, 'model' AS kind, 'b' AS backtest_id, 1 AS sessions, $n AS first_session,"
            " $n AS last_session, 'next_open' AS fill, $r AS run_id",
            {"n": night, "r": run_id},
        )
    assert select(warehouse, f"FROM {view}") == []
    with warehouse.write("finish") as con:
        con.execute("UPDATE store.nights SET published_at = clock")
    assert len(select(warehouse, f"FROM {view}")) == 1


def test_recorded_total_returns_agree_with_yahoos_own_adjustment(warehouse: Warehouse, shared_data: Path) -> None:
    """Yahoo adjusts by 1 − dividend / previous close; the view reinvests the dividend at the close of the ex-date.

    The two returns differ only in second order of dividend / price.
    """
    with warehouse.write("load") as con:
        con.execute(CREATE_TAPE, {"tape": str(shared_data / "tape" / "yahoo" / "bars_1d.parquet")})
        con.execute(INSERT_BARS)
        con.execute(INSERT_DIVIDENDS)
        n_compared, n_dividends, max_difference = con.execute(COMPARE_RETURNS).fetchone()
    assert n_compared > 5000  # three symbols over about ten years of sessions
    assert n_dividends > 50
    assert 0 < max_difference < 0.001  # the square of a dividend of 3 % of the price


CREATE_TAPE = """
CREATE TEMP TABLE tape AS
SELECT
    symbol,
    CAST(date AS TIMESTAMPTZ) AS ts,
    close,
    lag(close) OVER earlier AS close_before,
    adj_close / lag(adj_close) OVER earlier AS growth,
    close_before - close / growth AS dividend
FROM read_parquet($tape)
WHERE symbol IN ('KO', 'MSFT', 'XOM')
WINDOW earlier AS (PARTITION BY symbol ORDER BY date)
"""
INSERT_BARS = """
INSERT INTO store.bars BY NAME
SELECT
    'recorded' AS source, 'us_stocks' AS universe, symbol, '1d' AS interval, ts, close AS open, close AS high,
    close AS low, close, 1 AS volume, ts AS fetched_at, 'r' AS run_id
FROM tape
"""
INSERT_DIVIDENDS = """
INSERT INTO store.corporate_actions BY NAME
SELECT
    'recorded' AS source, 'us_stocks' AS universe, symbol, ts, 'dividend' AS kind, dividend AS value, ts AS fetched_at,
    'r' AS run_id
FROM tape
WHERE dividend > 0.001 * close
"""
COMPARE_RETURNS = """
SELECT
    count(*),
    count(*) FILTER (dividend > 0.001 * close),
    max(abs(total_return - (growth - 1)))
FROM bars
JOIN tape USING (symbol, ts, close)
WHERE total_return IS NOT NULL
"""
