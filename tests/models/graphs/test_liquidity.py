"""Graphs of trades: three bars by hand, six minutes of recorded trades, and no dependence on later bars."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.graphs.catalogue import TRADE_GRAPHS, windowed_rules
from models.graphs.liquidity import TRADE_COLUMNS, VALUE, TradeRule, flow_between, illiquidity, liquidity, proximity
from models.graphs.snapshot import GraphError
from models.graphs.windowed import snapshots
from models.panel import Panel

NO_TRADE = (np.nan,) * 4
THREE_BARS = np.array(
    [  # signed value, value, last price and its time, of A, B and C
        [(10, 10, 10, 0.5), NO_TRADE, NO_TRADE],
        [(9, 31, 11, 2.0), (-15, 15, 5, 1.7), NO_TRADE],
        [NO_TRADE, (6, 6, 6, 2.5), NO_TRADE],
    ]
)
RULE = TradeRule("order_flow", window_bars=3, min_weight=0.0, top_k=3, every_bars=1)


def trade_panel(values: np.ndarray) -> Panel:
    """Bars of one second with these TRADE_COLUMNS (t, n, 4)."""
    ts = np.datetime64("2024-08-08", "us") + np.arange(len(values)) * np.timedelta64(1, "s")
    symbols = tuple("ABCDEFG"[: values.shape[1]])
    return Panel(ts, symbols, TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> Panel:
    """Trades of two coins at three venues each on 8 August 2024, by bars of five seconds."""
    rows = pq.read_table(shared_data / "events/trades_2024-08-08.parquet").to_pandas()
    rows["value"] = rows["price"] * rows["size"]
    rows["signed"] = np.where(rows["side"] == "buy", 1, -1) * rows["value"]
    rows["bar"] = (rows["ts_ms"] - 1) // 5000
    groups = rows.sort_values("ts_ms", kind="stable").groupby(["bar", rows["symbol"] + " " + rows["venue"]])
    columns = [groups["signed"].sum(), groups["value"].sum(), groups["price"].last(), groups["ts_ms"].last() / 1000]
    grid = np.arange(rows["bar"].min(), rows["bar"].max() + 1)
    tables = [column.unstack().reindex(grid) for column in columns]
    values = np.stack([table.to_numpy() for table in tables], axis=-1)
    ts = (grid * 5_000_000).astype("datetime64[us]")
    return Panel(ts, tuple(tables[0].columns), TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))


RULES = windowed_rules(tuple(TRADE_GRAPHS), window_bars=24, min_correlation=0.25, top_k=3, every_bars=6)


def test_flow_between_by_hand() -> None:
    """B is sold for 15 and A bought for 9 in a bar; in a second one A is sold for 6, B bought for 2 and C for 4."""
    assert flow_between(THREE_BARS).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    window = np.full((2, 3, 4), np.nan)
    window[:, :, 0] = [[9, -15, 0], [-6, 2, 4]]
    np.testing.assert_allclose(flow_between(window) * 15, [[0, 2, 4], [9, 0, 0], [0, 0, 0]], atol=2e-5)
    window[:, :, 0] = [[3, 1, 0], [0, 2, 5]]
    np.testing.assert_array_equal(flow_between(window), np.zeros((3, 3)))


def test_flow_runs_from_the_asset_sold_to_the_one_bought() -> None:
    """The window is the last three of four bars."""
    trades = trade_panel(np.concatenate([THREE_BARS[:1], THREE_BARS]))
    (graph,) = snapshots("flow_between", trades, replace(RULE, link="flow_between"), [3])
    assert graph.directed and (graph.src.tolist(), graph.dst.tolist(), graph.weight.tolist()) == ([1], [0], [1.0])


def test_illiquidity_by_hand() -> None:
    """A has no price change in its first bar; then it changes by log(11/10) over 31 traded."""
    nan = np.nan
    expected = [[nan] * 3, [np.log(11 / 10) / 31, nan, nan], [nan, np.log(6 / 5) / 6, nan]]
    np.testing.assert_allclose(illiquidity(THREE_BARS), expected)
    unchanged_price = THREE_BARS.copy()
    unchanged_price[1, 0, 2] = 10
    assert np.isnan(illiquidity(unchanged_price)[1, 0])
    zero_value = THREE_BARS.copy()
    zero_value[1, 0, VALUE] = 0
    assert np.isnan(illiquidity(zero_value)[1, 0])


def test_illiquidity_counts_from_the_last_trade_before_bars_without_trades() -> None:
    window = np.full((4, 1, 4), np.nan)
    window[[0, 3], 0, 2] = (100.0, 110.0)
    window[[0, 3], 0, 1] = (1.0, 5.0)
    np.testing.assert_allclose(illiquidity(window)[3, 0], np.log(1.1) / 5)


def test_assets_whose_liquidity_falls_together_are_linked() -> None:
    rng = np.random.default_rng(0)
    bars = 60
    shared_change = np.exp(np.cumsum(rng.normal(size=bars)) * 0.5)
    values = np.ones((bars, 3, 4))
    for symbol, change in ((0, shared_change), (1, shared_change), (2, np.ones(bars))):
        noise = np.exp(0.2 * rng.normal(size=bars))
        values[:, symbol, 2] = 100 * np.exp(np.cumsum(1e-3 * change * noise * (-1) ** np.arange(bars)))
    weight = liquidity(values)
    assert weight[0, 1] > 0.5 and max(abs(weight[0, 2]), abs(weight[1, 2])) < 0.3


def test_proximity_by_hand() -> None:
    """TGN-07: 1 / (1 + Δt): A's last trade is half a second before B's, C has none."""
    weight = proximity(THREE_BARS)
    assert weight[0, 1] == weight[1, 0] == pytest.approx(1 / 1.5, abs=1e-6) and weight[0, 0] == 1.0
    assert np.isnan(weight[2]).all()
    assert proximity(THREE_BARS[:2])[0, 1] == pytest.approx(1 / 1.3, abs=1e-6)


def test_recorded_flow_links_a_coin_with_itself_at_another_venue(recorded: Panel) -> None:
    """The strongest link of bitcoin's spot market is to one of its perpetuals, not to ether."""
    rule = TradeRule("order_flow", window_bars=50, min_weight=0.05, top_k=3, every_bars=1)
    (graph,) = snapshots("order_flow", recorded, rule, [len(recorded) - 1])
    spot = recorded.symbols.index("BTCUSDT binance_spot")
    has_spot = (graph.src == spot) | (graph.dst == spot)
    strongest = np.flatnonzero(has_spot)[graph.weight[has_spot].argmax()]
    assert all(recorded.symbols[end[strongest]].startswith("BTC") for end in (graph.src, graph.dst))


@pytest.mark.parametrize("graph", TRADE_GRAPHS)
def test_a_snapshot_depends_on_its_own_bar_and_on_no_later_trade(recorded: Panel, graph: str) -> None:
    whole = snapshots(graph, recorded, RULES[graph])
    for cut in (31, 50):
        truncated = snapshots(graph, recorded.rows(0, cut), RULES[graph])
        assert [s.as_of for s in truncated] == [s.as_of for s in whole if s.as_of < recorded.ts[cut]]
        for a, b in zip(truncated, whole, strict=False):
            for actual, expected in ((a.src, b.src), (a.dst, b.dst), (a.weight, b.weight)):
                np.testing.assert_array_equal(actual, expected)
    last = whole[-1]
    last_bar = int(np.searchsorted(recorded.ts, last.as_of))
    values = recorded.values.copy()
    values[last_bar] *= np.array([[3.0], [-2.0], [0.1], [5.0], [-1.0], [0.4]]) ** [1, 2, 0.0, 0.0]
    values[last_bar, :, 2] *= np.array([1.1, 1.0, 0.8, 1.3, 1.0, 1.2])
    values[last_bar, :, 3] += np.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    (changed,) = snapshots(graph, replace(recorded, values=values), RULES[graph], [last_bar])
    assert not np.array_equal(changed.weight, last.weight)


def test_windows_without_a_trade_have_no_snapshot(recorded: Panel) -> None:
    quiet = np.full((100, 6, 4), np.nan)
    values = np.concatenate([quiet, recorded.values[:40]])
    ts = recorded.ts[0] + np.arange(140) * np.timedelta64(5, "s")
    trades = Panel(ts, recorded.symbols, TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))
    graphs = snapshots("order_flow", trades, RULES["order_flow"])
    assert [s.as_of for s in graphs] == list(ts[[102, 108, 114, 120, 126, 132, 138]])
    assert graphs[-1].directed is False and len(graphs[-1].src)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link": "friendship"}, "link is 'friendship'; choose one of: order_flow"),
        ({"window_bars": 2}, "window_bars is 2"),
        ({"every_bars": 0}, "every_bars is 0"),
        ({"min_weight": -1.0}, "min_weight is -1"),
        ({"top_k": 0}, "top_k 0"),
    ],
)
def test_an_invalid_rule_is_refused_naming_the_field(change: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(RULE, **change)


def test_a_panel_without_the_columns_of_trades_is_refused(recorded: Panel) -> None:
    with pytest.raises(GraphError, match="order_flow is made of signed_value, value, price, last_s, not of side"):
        snapshots("order_flow", replace(recorded, columns=("side", *TRADE_COLUMNS[1:])), RULE)
