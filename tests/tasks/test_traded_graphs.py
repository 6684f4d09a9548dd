"""Graphs of the warehouse's trades: of whole bars, received up to the clock, rebuilt when trades arrive late.

A night is the run for one as-of date; its clock is the midnight (UTC) after it. Bars are hourly. A Desk is a test
warehouse with recorded bars, see tests/desk.py.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.graphs.catalogue import TRADE_GRAPHS, windowed_rules
from models.graphs.liquidity import TRADE_COLUMNS
from models.graphs.windowed import build_snapshots
from models.panel import TS_TYPE
from tasks.audit import audit_leaks
from tasks.graphs import build_graphs, write_features
from tasks.markets.event_rows import event_columns
from tasks.panels import bar_grid, load_snapshots, load_trade_bars
from tasks.train import contenders, load_training_data, train_model
from tests.desk import Desk
from tests.market_place import RECIPE
from warehouse.events import append_events

FRIDAY = date(2024, 6, 28)
SATURDAY = date(2024, 6, 29)
GRAPH = {
    "graphs": (*TRADE_GRAPHS, "correlation"),
    "window_bars": 12,
    "min_correlation": 0.1,
    "top_k": 2,
    "every_bars": 6,
}
WINDOWS = {name: value for name, value in GRAPH.items() if name != "graphs"}
EVENING = datetime(2024, 6, 27, 20, tzinfo=UTC)
ONE_SECOND = timedelta(seconds=1)
ONE_HOUR = timedelta(hours=1)
Trade = tuple[str, datetime, float, float, str | None]  # symbol, ts, price, size, side


def store_trades(desk: Desk, trades: list[Trade], received: datetime | None = None) -> None:
    """Stores trades, which count as received a second after the last trade by default."""
    symbol, ts, price, size, side = (list(column) for column in zip(*trades, strict=True))
    columns = {"symbol": symbol, "side": side, "price": price, "size": size}
    ids = [str(k) for k in range(len(trades))]
    table = event_columns("trade", len(trades), ts=pa.array(ts, TS_TYPE), event_id=pa.array(ids), **columns)
    stamps = {"fetched_at": received or max(ts) + timedelta(seconds=1), "run_id": "stream"}
    with desk.warehouse.write("trades") as con:
        append_events(con, table, source="recorded", venue="bybit", **stamps)


def random_trades(n_hours: int = 24) -> list[Trade]:
    """Four trades an hour of each symbol from EVENING on; 90 % of an hour's trades have one common random side."""
    rng = np.random.default_rng(0)
    trades: list[Trade] = []
    for hour in range(n_hours):
        common_side = rng.choice(["buy", "sell"])
        for k in range(8):
            ts = EVENING + timedelta(hours=hour, seconds=float(rng.integers(1, 3600)))
            side = common_side if rng.random() < 0.9 else "buy"
            trades.append(("AAA" if k % 2 else "BBB", ts, 100 + rng.normal(), 1 + 5 * rng.random(), str(side)))
    return trades


def late_trades(size: float) -> list[Trade]:
    """Three sells of AAA on Friday morning, to be received after Friday's clock."""
    return [("AAA", datetime(2024, 6, 28, 8, minute, tzinfo=UTC), 99.0, size, "sell") for minute in range(3)]


def test_a_bar_sums_the_trades_after_its_open_up_to_its_close(desk: Desk) -> None:
    store_trades(
        desk,
        [
            ("AAA", EVENING, 10.0, 1.0, "buy"),  # at the close of the bar before
            ("AAA", EVENING + ONE_SECOND, 10.0, 2.0, "buy"),
            ("AAA", EVENING + ONE_HOUR, 12.0, 1.0, "sell"),  # at the close of the bar
            ("BBB", EVENING + ONE_HOUR + ONE_SECOND, 7.0, 3.0, "sell"),
        ],
    )
    bars = load_trade_bars(desk.night(FRIDAY, "perpetuals"))
    bar_index = int(np.searchsorted(bars.ts, np.datetime64(EVENING.replace(tzinfo=None))))
    assert bars.columns == TRADE_COLUMNS and bars.mask.sum() == 3
    # the columns: signed value, value, last price, time of the last trade in seconds
    aaa = bars.symbols.index("AAA")
    bbb = bars.symbols.index("BBB")
    close_s = (EVENING + ONE_HOUR).timestamp()
    np.testing.assert_array_equal(bars.values[bar_index, aaa], [10 * 2 - 12 * 1, 10 * 2 + 12 * 1, 12.0, close_s])
    np.testing.assert_array_equal(bars.values[bar_index - 1, aaa], [10.0, 10.0, 10.0, EVENING.timestamp()])
    np.testing.assert_array_equal(bars.values[bar_index + 1, bbb], [-21.0, 21.0, 7.0, close_s + 1])


def test_a_trade_at_the_first_open_belongs_to_no_bar(desk: Desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    first_open = night.universe.history_start
    store_trades(desk, [("AAA", first_open, 10.0, 1.0, "buy"), ("AAA", first_open + ONE_SECOND, 10.0, 2.0, "buy")])
    bars = load_trade_bars(night)
    assert bars.mask.sum() == 1
    np.testing.assert_array_equal(bars.values[0, 0], [20.0, 20.0, 10.0, first_open.timestamp() + 1])


def test_a_trade_without_a_side_adds_to_the_value_but_not_to_the_signed_flow(desk: Desk) -> None:
    store_trades(desk, [("AAA", EVENING + ONE_SECOND, 10.0, 2.0, None)])
    bars = load_trade_bars(desk.night(FRIDAY, "perpetuals"))
    np.testing.assert_array_equal(bars.values[bars.mask][:, :3], [[0.0, 20.0, 10.0]])


def test_trade_graphs_are_stored_as_built_and_only_where_there_are_trades(desk: Desk) -> None:
    store_trades(desk, random_trades())
    night = desk.night(FRIDAY, "perpetuals")
    build_graphs.fn(night, **GRAPH)
    trade_bars = load_trade_bars(night)
    assert len(load_snapshots(night, "correlation")) > 50
    for graph, rule in windowed_rules(tuple(TRADE_GRAPHS), **WINDOWS).items():
        stored = load_snapshots(night, graph)
        expected_as_of = np.arange("2024-06-28T00", "2024-06-29T00", 6, dtype="datetime64[h]")
        assert [s.as_of for s in stored] == expected_as_of.tolist()
        for actual, expected in zip(stored, build_snapshots(graph, trade_bars, rule), strict=True):
            assert (actual.as_of, actual.window_start) == (expected.as_of, expected.window_start)
            assert actual.directed == expected.directed
            np.testing.assert_array_equal(actual.src, expected.src)
            np.testing.assert_array_equal(actual.dst, expected.dst)
            np.testing.assert_array_equal(actual.weight, expected.weight)
    assert {graph for (graph,) in desk.rows("SELECT DISTINCT graph FROM graph_edges")} == {*TRADE_GRAPHS, "correlation"}


def test_no_trade_graph_is_stored_without_trades_and_a_second_build_changes_no_row(desk: Desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    build_graphs.fn(night, **GRAPH)
    assert desk.rows("SELECT DISTINCT graph FROM graph_snapshots") == [("correlation",)]
    store_trades(desk, random_trades())
    assert build_graphs.fn(night, **GRAPH).built == 4 * len(TRADE_GRAPHS)
    before = [desk.contents(table) for table in ("store.graph_snapshots", "store.graph_edges")]
    assert build_graphs.fn(night, **GRAPH).built == 0
    assert [desk.contents(table) for table in ("store.graph_snapshots", "store.graph_edges")] == before


def test_trades_received_after_the_clock_are_read_by_the_next_night(desk: Desk) -> None:
    store_trades(desk, random_trades())
    build_graphs.fn(desk.night(FRIDAY, "perpetuals"), **GRAPH)
    friday_snapshots = load_snapshots(desk.night(FRIDAY, "perpetuals"), "order_flow")
    store_trades(desk, late_trades(size=400.0), received=datetime(2024, 6, 29, 3, tzinfo=UTC))
    assert build_graphs.fn(desk.night(FRIDAY, "perpetuals"), **GRAPH).built == 0
    build_graphs.fn(desk.night(SATURDAY, "perpetuals"), **GRAPH)
    saturday_snapshots = load_snapshots(desk.night(SATURDAY, "perpetuals"), "order_flow")
    is_same = [
        a.weight.tolist() == b.weight.tolist() for a, b in zip(friday_snapshots, saturday_snapshots, strict=False)
    ]
    assert is_same == [True, True, False, False]  # at 0, 6, 12 and 18 o'clock: the late trades are of 8 o'clock


def run_night(desk: Desk, as_of: date) -> list[list[float]]:
    """Runs a night up to its audit and publishes it; returns the edge weights of each order-flow snapshot."""
    night = desk.night(as_of, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    train_model.fn(night, load_training_data.fn(night, RECIPE, ("tgn",)), "tgn", 0, RECIPE)
    audit_leaks.fn(
        night,
        contenders(night, ("tgn",), (0,), RECIPE),
        GRAPH,
        RECIPE.class_horizon,
        RECIPE.folds["test_bars"],
        dates=4,
    )
    desk.publish(as_of, "perpetuals")
    return [s.weight.tolist() for s in load_snapshots(night, "order_flow")]


def test_the_audit_passes_when_trades_begin_late_or_arrive_late(desk: Desk) -> None:
    store_trades(desk, random_trades())  # they begin after most of the possible cuts
    friday_weights = run_night(desk, FRIDAY)
    store_trades(desk, late_trades(size=20_000.0), received=datetime(2024, 6, 29, 3, tzinfo=UTC))
    saturday_weights = run_night(desk, SATURDAY)
    assert saturday_weights[:2] == friday_weights[:2] and saturday_weights[2] != friday_weights[2]
    assert len(saturday_weights) > len(friday_weights)


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_a_sum_of_trades_does_not_depend_on_their_order(desk: Desk, tmp_path: Path, side: str) -> None:
    trades = [(symbol, ts, price, size, side) for symbol, ts, price, size, _ in random_trades(n_hours=4)]
    reversed_desk = desk.copy_to(tmp_path / "reversed")
    store_trades(desk, trades)
    store_trades(reversed_desk, trades[::-1])
    night = desk.night(FRIDAY, "perpetuals")
    np.testing.assert_array_equal(
        load_trade_bars(night).values, load_trade_bars(reversed_desk.night(FRIDAY, "perpetuals")).values
    )
    assert len(bar_grid(night).open_times) == len(load_trade_bars(night))
