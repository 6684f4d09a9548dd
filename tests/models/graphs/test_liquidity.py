"""Links from trades: a handful of bars by hand, six minutes of recorded trades, and nothing from the future."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.graphs.catalogue import TRADED, windowed_rules
from models.graphs.liquidity import TRADE_COLUMNS, VALUE, TradeRule, flow_between, illiquidity, liquidity, proximity
from models.graphs.snapshot import GraphError
from models.graphs.windowed import snapshots
from models.panel import Panel

NONE = (np.nan,) * 4
FEW = np.array(
    [  # signed value, value, last price, its time of A, B and C
        [(10, 10, 10, 0.5), NONE, NONE],
        [(9, 31, 11, 2.0), (-15, 15, 5, 1.7), NONE],
        [NONE, (6, 6, 6, 2.5), NONE],
    ]
)
RULE = TradeRule("order_flow", window_bars=3, min_weight=0.0, top_k=3, every_bars=1)


def panel(values: np.ndarray) -> Panel:
    """Bars of a second with these trades (t, n, 4)."""
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
    by = rows.sort_values("ts_ms", kind="stable").groupby(["bar", rows["symbol"] + " " + rows["venue"]])
    said = [by["signed"].sum(), by["value"].sum(), by["price"].last(), by["ts_ms"].last() / 1000]
    grid = np.arange(rows["bar"].min(), rows["bar"].max() + 1)
    tables = [column.unstack().reindex(grid) for column in said]
    values = np.stack([table.to_numpy() for table in tables], axis=-1)
    ts = (grid * 5_000_000).astype("datetime64[us]")
    return Panel(ts, tuple(tables[0].columns), TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))


RULES = windowed_rules(tuple(TRADED), window_bars=24, min_correlation=0.25, top_k=3, every_bars=6)


def test_flow_between_by_hand() -> None:
    """Of the 15 that left B in the second bar, 9 are found again in A; of the 6 sold of A, B bought 2 and C 4."""
    assert flow_between(FEW).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    more = np.full((2, 3, 4), np.nan)
    more[:, :, 0] = [[9, -15, 0], [-6, 2, 4]]
    np.testing.assert_allclose(flow_between(more) * 15, [[0, 2, 4], [9, 0, 0], [0, 0, 0]], atol=2e-5)
    more[:, :, 0] = [[3, 1, 0], [0, 2, 5]]
    np.testing.assert_array_equal(flow_between(more), np.zeros((3, 3)))


def test_flow_runs_from_the_asset_sold_to_the_one_bought() -> None:
    """The window of three bars that ends at the fourth: the first is any."""
    trades = panel(np.concatenate([FEW[:1], FEW]))
    (found,) = snapshots("flow_between", trades, replace(RULE, link="flow_between"), [3])
    assert found.directed and (found.src.tolist(), found.dst.tolist(), found.weight.tolist()) == ([1], [0], [1.0])


def test_illiquidity_by_hand() -> None:
    """Of A: unknown before its first trade and its first change, then log(11/10) over 31 traded."""
    nan = np.nan
    expected = [[nan] * 3, [np.log(11 / 10) / 31, nan, nan], [nan, np.log(6 / 5) / 6, nan]]
    np.testing.assert_allclose(illiquidity(FEW), expected)
    flat = FEW.copy()
    flat[1, 0, 2] = 10
    assert np.isnan(illiquidity(flat)[1, 0])
    dust = FEW.copy()
    dust[1, 0, VALUE] = 0
    assert np.isnan(illiquidity(dust)[1, 0])


def test_the_price_before_a_pause_counts() -> None:
    prices = np.full((4, 1, 4), np.nan)
    prices[[0, 3], 0, 2], prices[[0, 3], 0, 1] = (100.0, 110.0), (1.0, 5.0)
    np.testing.assert_allclose(illiquidity(prices)[3, 0], np.log(1.1) / 5)


def test_assets_that_dry_up_together_are_linked() -> None:
    rng = np.random.default_rng(0)
    k = 60
    thin = np.exp(np.cumsum(rng.normal(size=k)) * 0.5)
    values = np.ones((k, 3, 4))
    for symbol, change in ((0, thin), (1, thin), (2, np.ones(k))):
        noise = np.exp(0.2 * rng.normal(size=k))
        values[:, symbol, 2] = 100 * np.exp(np.cumsum(1e-3 * change * noise * (-1) ** np.arange(k)))
    found = liquidity(values)
    assert found[0, 1] > 0.5 and max(abs(found[0, 2]), abs(found[1, 2])) < 0.3


def test_proximity_by_hand() -> None:
    """TGN-07: 1 / (1 + Δt): A's last trade is half a second before B's, C has none."""
    found = proximity(FEW)
    assert found[0, 1] == found[1, 0] == pytest.approx(1 / 1.5, abs=1e-6) and found[0, 0] == 1.0
    assert np.isnan(found[2]).all()
    assert proximity(FEW[:2])[0, 1] == pytest.approx(1 / 1.3, abs=1e-6)


def test_recorded_flow_links_a_coin_with_itself_elsewhere(recorded: Panel) -> None:
    """The strongest link of bitcoin's spot market is to one of its perpetuals, not to ether."""
    rule = TradeRule("order_flow", window_bars=50, min_weight=0.05, top_k=3, every_bars=1)
    (found,) = snapshots("order_flow", recorded, rule, [len(recorded) - 1])
    spot = recorded.symbols.index("BTCUSDT binance_spot")
    at = (found.src == spot) | (found.dst == spot)
    best = np.flatnonzero(at)[found.weight[at].argmax()]
    assert all(recorded.symbols[end[best]].startswith("BTC") for end in (found.src, found.dst))


@pytest.mark.parametrize("graph", TRADED)
def test_later_trades_never_change_a_snapshot_and_its_own_bars_do(recorded: Panel, graph: str) -> None:
    whole = snapshots(graph, recorded, RULES[graph])
    for cut in (31, 50):
        again = snapshots(graph, recorded.rows(0, cut), RULES[graph])
        assert [s.as_of for s in again] == [s.as_of for s in whole if s.as_of < recorded.ts[cut]]
        for a, b in zip(again, whole, strict=False):
            for left, right in ((a.src, b.src), (a.dst, b.dst), (a.weight, b.weight)):
                np.testing.assert_array_equal(left, right)
    last = whole[-1]
    at = int(np.searchsorted(recorded.ts, last.as_of))
    moved = recorded.values.copy()
    moved[at] *= np.array([[3.0], [-2.0], [0.1], [5.0], [-1.0], [0.4]]) ** [1, 2, 0.0, 0.0]
    moved[at, :, 2] *= np.array([1.1, 1.0, 0.8, 1.3, 1.0, 1.2])
    moved[at, :, 3] += np.array([0.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    (changed,) = snapshots(graph, replace(recorded, values=moved), RULES[graph], [at])
    assert not np.array_equal(changed.weight, last.weight)


def test_windows_without_a_trade_have_no_snapshot(recorded: Panel) -> None:
    quiet = np.full((100, 6, 4), np.nan)
    values = np.concatenate([quiet, recorded.values[:40]])
    ts = recorded.ts[0] + np.arange(140) * np.timedelta64(5, "s")
    early = Panel(ts, recorded.symbols, TRADE_COLUMNS, values, np.isfinite(values).any(axis=2))
    found = snapshots("order_flow", early, RULES["order_flow"])
    assert [s.as_of for s in found] == list(ts[[102, 108, 114, 120, 126, 132, 138]])
    assert found[-1].directed is False and len(found[-1].src)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link": "friendship"}, "link is 'friendship'; those there are: order_flow"),
        ({"window_bars": 2}, "window_bars is 2"),
        ({"every_bars": 0}, "every_bars is 0"),
        ({"min_weight": -1.0}, "min_weight is -1"),
        ({"top_k": 0}, "top_k 0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(change: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(RULE, **change)


def test_bars_are_no_trades(recorded: Panel) -> None:
    with pytest.raises(GraphError, match="order_flow is made of signed_value, value, price, last_s, not of side"):
        snapshots("order_flow", replace(recorded, columns=("side", *TRADE_COLUMNS[1:])), RULE)
