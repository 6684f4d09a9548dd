"""Graphs of the warehouse's trades: of whole bars, received up to the clock, rebuilt when trades arrive late."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from models.graphs.catalogue import TRADE_GRAPHS, windowed_rules
from models.graphs.liquidity import TRADE_COLUMNS
from models.graphs.windowed import snapshots
from models.panel import TS_TYPE
from tasks.audit import audit_leaks
from tasks.graphs import build_graphs, write_features
from tasks.markets.event_rows import event_columns
from tasks.panels import bar_grid, load_snapshots, load_trade_bars
from tasks.train import contenders, load_training_data, train_model
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
EVENING = datetime(2024, 6, 27, 20, tzinfo=UTC)


def store_trades(
    desk, rows: list[tuple[str, datetime, float, float, str | None]], received: datetime | None = None
) -> None:
    """Stores trades (symbol, ts, price, size, side), received a second after the last of them by default."""
    symbol, ts, price, size, side = (list(column) for column in zip(*rows, strict=True))
    columns = {"symbol": symbol, "side": side, "price": price, "size": size}
    ids = [str(k) for k in range(len(rows))]
    table = event_columns("trade", len(rows), ts=pa.array(ts, TS_TYPE), event_id=pa.array(ids), **columns)
    stamps = {"fetched_at": received or max(ts) + timedelta(seconds=1), "run_id": "stream"}
    with desk.warehouse.write("trades") as con:
        append_events(con, table, source="recorded", venue="bybit", **stamps)


def random_trades(hours: int = 24) -> list[tuple[str, datetime, float, float, str]]:
    """Eight trades an hour of both symbols from Thursday evening on; the side of an hour is mostly common to both."""
    rng = np.random.default_rng(0)
    rows = []
    for hour in range(hours):
        side = rng.choice(["buy", "sell"])
        for k in range(8):
            ts = EVENING + timedelta(hours=hour, seconds=float(rng.integers(1, 3600)))
            other = side if rng.random() < 0.9 else "buy"
            rows.append(("AAA" if k % 2 else "BBB", ts, 100 + rng.normal(), 1 + 5 * rng.random(), str(other)))
    return rows


def test_a_bar_sums_the_trades_after_its_open_up_to_its_close(desk) -> None:
    second = timedelta(seconds=1)
    store_trades(
        desk,
        [
            ("AAA", EVENING, 10.0, 1.0, "buy"),  # the close of the bar before
            ("AAA", EVENING + second, 10.0, 2.0, "buy"),
            ("AAA", EVENING + 3600 * second, 12.0, 1.0, "sell"),
            ("BBB", EVENING + 3601 * second, 7.0, 3.0, "sell"),
        ],
    )
    bars = load_trade_bars(desk.night(FRIDAY, "perpetuals"))
    bar = int(np.searchsorted(bars.ts, np.datetime64(EVENING.replace(tzinfo=None))))
    assert bars.columns == TRADE_COLUMNS and bars.mask.sum() == 3
    close = EVENING.timestamp() + 3600
    np.testing.assert_array_equal(bars.values[bar, 0], [8.0, 32.0, 12.0, close])
    np.testing.assert_array_equal(bars.values[bar - 1, 0], [10.0, 10.0, 10.0, close - 3600])
    np.testing.assert_array_equal(bars.values[bar + 1, 1], [-21.0, 21.0, 7.0, close + 1])


def test_a_trade_at_the_first_open_belongs_to_no_bar(desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    begins = night.universe.history_start
    second = timedelta(seconds=1)
    store_trades(desk, [("AAA", begins, 10.0, 1.0, "buy"), ("AAA", begins + second, 10.0, 2.0, "buy")])
    bars = load_trade_bars(night)
    assert bars.mask.sum() == 1
    np.testing.assert_array_equal(bars.values[0, 0], [20.0, 20.0, 10.0, begins.timestamp() + 1])


def test_a_trade_without_a_side_adds_to_the_value_but_not_to_the_signed_flow(desk) -> None:
    store_trades(desk, [("AAA", EVENING + timedelta(seconds=1), 10.0, 2.0, None)])
    bars = load_trade_bars(desk.night(FRIDAY, "perpetuals"))
    np.testing.assert_array_equal(bars.values[bars.mask][:, :3], [[0.0, 20.0, 10.0]])


def test_trade_graphs_are_stored_as_built_and_only_where_there_are_trades(desk) -> None:
    store_trades(desk, random_trades())
    night = desk.night(FRIDAY, "perpetuals")
    build_graphs.fn(night, **GRAPH)
    trades = load_trade_bars(night)
    assert len(load_snapshots(night, "correlation")) > 50
    for graph, rule in windowed_rules(tuple(TRADE_GRAPHS), *list(GRAPH.values())[1:]).items():
        stored = load_snapshots(night, graph)
        assert [str(s.as_of)[:13] for s in stored] == [
            "2024-06-28T00",
            "2024-06-28T06",
            "2024-06-28T12",
            "2024-06-28T18",
        ]
        for a, b in zip(stored, snapshots(graph, trades, rule), strict=True):
            assert (a.as_of, a.window_start, a.directed) == (b.as_of, b.window_start, b.directed)
            for x, y in ((a.src, b.src), (a.dst, b.dst), (a.weight, b.weight)):
                np.testing.assert_array_equal(x, y)
    assert {row[0] for row in desk.rows("SELECT DISTINCT graph FROM graph_edges")} == {*TRADE_GRAPHS, "correlation"}


def test_building_again_changes_nothing_and_without_trades_no_trade_graph_is_stored(desk) -> None:
    night = desk.night(FRIDAY, "perpetuals")
    build_graphs.fn(night, **GRAPH)
    assert desk.rows("SELECT DISTINCT graph FROM graph_snapshots") == [("correlation",)]
    store_trades(desk, random_trades())
    assert build_graphs.fn(night, **GRAPH).built == 4 * len(TRADE_GRAPHS)
    before = [desk.contents(f"store.{name}") for name in ("graph_snapshots", "graph_edges")]
    assert build_graphs.fn(night, **GRAPH).built == 0
    assert [desk.contents(f"store.{name}") for name in ("graph_snapshots", "graph_edges")] == before


def test_trades_received_after_the_clock_are_read_by_the_next_night(desk) -> None:
    store_trades(desk, random_trades())
    build_graphs.fn(desk.night(FRIDAY, "perpetuals"), **GRAPH)
    friday = load_snapshots(desk.night(FRIDAY, "perpetuals"), "order_flow")
    late = [("AAA", datetime(2024, 6, 28, 8, k, tzinfo=UTC), 99.0, 400.0, "sell") for k in range(3)]
    store_trades(desk, late, received=datetime(2024, 6, 29, 3, tzinfo=UTC))
    assert build_graphs.fn(desk.night(FRIDAY, "perpetuals"), **GRAPH).built == 0
    build_graphs.fn(desk.night(SATURDAY, "perpetuals"), **GRAPH)
    saturday = load_snapshots(desk.night(SATURDAY, "perpetuals"), "order_flow")
    is_same = [a.weight.tolist() == b.weight.tolist() for a, b in zip(friday, saturday, strict=False)]
    assert is_same == [True, True, False, False]


def run_night(desk, as_of: date) -> list[list[float]]:
    """Weights of the order-flow graph of a night that has passed its audit and is published."""
    night = desk.night(as_of, "perpetuals")
    write_features.fn(night)
    build_graphs.fn(night, **GRAPH)
    train_model.fn(night, load_training_data.fn(night, RECIPE, ("tgn",)), "tgn", 0, RECIPE)
    audit_leaks.fn(night, contenders(night, ("tgn",), (0,), RECIPE), GRAPH, 4, RECIPE.folds["test_bars"], 4)
    desk.publish(as_of, "perpetuals")
    return [s.weight.tolist() for s in load_snapshots(night, "order_flow")]


def test_the_audit_passes_when_trades_begin_late_or_arrive_late(desk) -> None:
    store_trades(desk, random_trades())  # they begin after most of the possible cuts
    friday = run_night(desk, FRIDAY)
    late = [("AAA", datetime(2024, 6, 28, 8, k, tzinfo=UTC), 99.0, 20_000.0, "sell") for k in range(3)]
    store_trades(desk, late, received=datetime(2024, 6, 29, 3, tzinfo=UTC))
    saturday = run_night(desk, SATURDAY)
    assert saturday[:2] == friday[:2] and saturday[2] != friday[2] and len(saturday) > len(friday)


@pytest.mark.parametrize("side", ["buy", "sell"])
def test_a_sum_of_trades_does_not_depend_on_their_order(desk, tmp_path, side: str) -> None:
    rows = [(symbol, ts, price, size, side) for symbol, ts, price, size, _ in random_trades(4)]
    other = desk.copy_to(tmp_path / "other")
    store_trades(desk, rows)
    store_trades(other, rows[::-1])
    night = desk.night(FRIDAY, "perpetuals")
    np.testing.assert_array_equal(
        load_trade_bars(night).values, load_trade_bars(other.night(FRIDAY, "perpetuals")).values
    )
    assert len(bar_grid(night)[0]) == len(load_trade_bars(night))
