"""Trade graphs of three bars by hand and of six minutes of recorded trades; no snapshot depends on later trades."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.graphs.catalogue import TRADE_GRAPHS, windowed_rules
from models.graphs.liquidity import (
    LAST_S,
    PRICE,
    SIGNED_VALUE,
    TRADE_COLUMNS,
    VALUE,
    TradeRule,
    flow_between,
    illiquidity,
    liquidity,
    proximity,
)
from models.graphs.snapshot import GraphError
from models.graphs.windowed import build_snapshots
from models.panel import Panel

NO_TRADE = (np.nan,) * 4
THREE_BARS = np.array(
    [  # TRADE_COLUMNS of the assets A, B and C, one line per bar
        [(10, 10, 10, 0.5), NO_TRADE, NO_TRADE],
        [(9, 31, 11, 2.0), (-15, 15, 5, 1.7), NO_TRADE],
        [NO_TRADE, (6, 6, 6, 2.5), NO_TRADE],
    ]
)
RULE = TradeRule("order_flow", window_bars=3, min_weight=0.0, top_k=3, every_bars=1)


def make_trade_panel(values: np.ndarray) -> Panel:
    """Bars of one second with these TRADE_COLUMNS (t, n, 4)."""
    ts = np.datetime64("2024-08-08", "us") + np.arange(len(values)) * np.timedelta64(1, "s")
    symbols = tuple("ABCDEFG"[: values.shape[1]])
    return Panel(ts, symbols, TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))


@pytest.fixture(scope="module")
def recorded_trades(shared_data: Path) -> Panel:
    """Trades of two coins at three venues each on 8 August 2024, in bars of five seconds."""
    trades = pq.read_table(shared_data / "events/trades_2024-08-08.parquet").to_pandas()
    trades["value"] = trades["price"] * trades["size"]
    trades["signed"] = np.where(trades["side"] == "buy", 1, -1) * trades["value"]
    trades["bar"] = (trades["ts_ms"] - 1) // 5000
    groups = trades.sort_values("ts_ms", kind="stable").groupby(["bar", trades["symbol"] + " " + trades["venue"]])
    columns = [groups["signed"].sum(), groups["value"].sum(), groups["price"].last(), groups["ts_ms"].last() / 1000]
    bar_numbers = np.arange(trades["bar"].min(), trades["bar"].max() + 1)
    tables = [column.unstack().reindex(bar_numbers) for column in columns]
    values = np.stack([table.to_numpy() for table in tables], axis=-1)
    ts = (bar_numbers * 5_000_000).astype("datetime64[us]")
    return Panel(ts, tuple(tables[0].columns), TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))


RULES = windowed_rules(tuple(TRADE_GRAPHS), window_bars=24, min_correlation=0.25, top_k=3, every_bars=6)


def test_flow_between_by_hand() -> None:
    """In one bar, B is sold for 15 and A bought for 9: 9 moves from B to A. In another bar, A is sold for 6, B bought
    for 2 and C for 4: 2 moves from A to B and 4 from A to C. So 15 moves in all."""
    assert flow_between(THREE_BARS).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    window = np.full((2, 3, 4), np.nan)
    window[:, :, SIGNED_VALUE] = [[9, -15, 0], [-6, 2, 4]]
    np.testing.assert_allclose(flow_between(window) * 15, [[0, 2, 4], [9, 0, 0], [0, 0, 0]], atol=2e-5)
    window[:, :, SIGNED_VALUE] = [[3, 1, 0], [0, 2, 5]]  # nothing is sold
    np.testing.assert_array_equal(flow_between(window), np.zeros((3, 3)))


def test_flow_runs_from_the_sold_asset_to_the_bought_asset() -> None:
    """The window is the last three of four bars."""
    trades = make_trade_panel(np.concatenate([THREE_BARS[:1], THREE_BARS]))
    (graph,) = build_snapshots("flow_between", trades, replace(RULE, link="flow_between"), [3])
    assert graph.directed
    assert (graph.src.tolist(), graph.dst.tolist(), graph.weight.tolist()) == ([1], [0], [1.0])


def test_illiquidity_by_hand() -> None:
    """A trades at 10, then at 11 with a value of 31; B trades at 5, then at 6 with a value of 6; C never trades."""
    nan = np.nan
    expected = [[nan] * 3, [np.log(11 / 10) / 31, nan, nan], [nan, np.log(6 / 5) / 6, nan]]
    np.testing.assert_allclose(illiquidity(THREE_BARS), expected)
    unchanged_price = THREE_BARS.copy()
    unchanged_price[1, 0, PRICE] = 10
    assert np.isnan(illiquidity(unchanged_price)[1, 0])
    zero_value = THREE_BARS.copy()
    zero_value[1, 0, VALUE] = 0
    assert np.isnan(illiquidity(zero_value)[1, 0])


def test_illiquidity_counts_from_the_last_trade_before_bars_without_trades() -> None:
    window = np.full((4, 1, 4), np.nan)
    window[[0, 3], 0, PRICE] = (100.0, 110.0)
    window[[0, 3], 0, VALUE] = (1.0, 5.0)
    np.testing.assert_allclose(illiquidity(window)[3, 0], np.log(1.1) / 5)


def test_assets_whose_liquidity_falls_together_are_linked() -> None:
    """The price changes of assets 0 and 1 share a random size per unit of value; those of asset 2 have a fixed size."""
    rng = np.random.default_rng(0)
    n_bars = 60
    shared_change = np.exp(np.cumsum(rng.normal(size=n_bars)) * 0.5)
    values = np.ones((n_bars, 3, 4))
    for asset, change in ((0, shared_change), (1, shared_change), (2, np.ones(n_bars))):
        noise = np.exp(0.2 * rng.normal(size=n_bars))
        values[:, asset, PRICE] = 100 * np.exp(np.cumsum(1e-3 * change * noise * (-1) ** np.arange(n_bars)))
    weight = liquidity(values)
    assert weight[0, 1] > 0.5
    assert max(abs(weight[0, 2]), abs(weight[1, 2])) < 0.3


def test_proximity_by_hand() -> None:
    """TGN-07: 1 / (1 + Δt). The last trades of A and B are 0.5 s apart, and 0.3 s apart in the first two bars."""
    weight = proximity(THREE_BARS)
    assert weight[0, 1] == weight[1, 0] == pytest.approx(1 / 1.5, abs=1e-6)
    assert weight[0, 0] == 1.0
    assert np.isnan(weight[2]).all()
    assert proximity(THREE_BARS[:2])[0, 1] == pytest.approx(1 / 1.3, abs=1e-6)


def test_recorded_flow_links_a_coin_with_itself_at_another_venue(recorded_trades: Panel) -> None:
    """The strongest link of bitcoin's spot market is to one of its perpetuals, not to ether."""
    rule = TradeRule("order_flow", window_bars=50, min_weight=0.05, top_k=3, every_bars=1)
    (graph,) = build_snapshots("order_flow", recorded_trades, rule, [len(recorded_trades) - 1])
    spot = recorded_trades.symbols.index("BTCUSDT binance_spot")
    edges = np.flatnonzero((graph.src == spot) | (graph.dst == spot))
    strongest_edge = edges[graph.weight[edges].argmax()]
    for node in (graph.src[strongest_edge], graph.dst[strongest_edge]):
        assert recorded_trades.symbols[node].startswith("BTC")


@pytest.mark.parametrize("graph", TRADE_GRAPHS)
def test_a_snapshot_depends_on_its_own_bar_and_on_no_later_trade(recorded_trades: Panel, graph: str) -> None:
    whole = build_snapshots(graph, recorded_trades, RULES[graph])
    for n_bars in (31, 50):
        truncated = build_snapshots(graph, recorded_trades.slice_bars(0, n_bars), RULES[graph])
        assert [s.as_of for s in truncated] == [s.as_of for s in whole if s.as_of < recorded_trades.ts[n_bars]]
        for a, b in zip(truncated, whole, strict=False):
            for actual, expected in ((a.src, b.src), (a.dst, b.dst), (a.weight, b.weight)):
                np.testing.assert_array_equal(actual, expected)
    last_snapshot = whole[-1]
    last_bar = int(np.searchsorted(recorded_trades.ts, last_snapshot.as_of))
    values = recorded_trades.values.copy()
    factor_by_asset = np.array([3.0, -2.0, 0.1, 5.0, -1.0, 0.4])
    values[last_bar, :, SIGNED_VALUE] *= factor_by_asset
    values[last_bar, :, VALUE] *= factor_by_asset**2
    values[last_bar, :, PRICE] *= np.array([1.1, 1.0, 0.8, 1.3, 1.0, 1.2])
    values[last_bar, :, LAST_S] += np.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    (changed_snapshot,) = build_snapshots(graph, replace(recorded_trades, values=values), RULES[graph], [last_bar])
    assert not np.array_equal(changed_snapshot.weight, last_snapshot.weight)


def test_windows_without_a_trade_have_no_snapshot(recorded_trades: Panel) -> None:
    """100 bars without a trade come before 40 recorded bars: the first window with a trade ends at bar 102."""
    quiet = np.full((100, 6, 4), np.nan)
    values = np.concatenate([quiet, recorded_trades.values[:40]])
    ts = recorded_trades.ts[0] + np.arange(140) * np.timedelta64(5, "s")
    trades = Panel(ts, recorded_trades.symbols, TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))
    snapshots = build_snapshots("order_flow", trades, RULES["order_flow"])
    assert [s.as_of for s in snapshots] == list(ts[[102, 108, 114, 120, 126, 132, 138]])
    assert snapshots[-1].directed is False
    assert len(snapshots[-1].src)


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


def test_a_panel_without_the_columns_of_trades_is_refused(recorded_trades: Panel) -> None:
    with pytest.raises(GraphError, match="order_flow needs the columns signed_value, value, price, last_s, got side"):
        build_snapshots("order_flow", replace(recorded_trades, columns=("side", *TRADE_COLUMNS[1:])), RULE)
