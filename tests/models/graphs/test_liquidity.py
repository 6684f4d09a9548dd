"""Links from trades: a handful by hand, six minutes of recorded ones, and nothing from the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.graphs.liquidity import (
    BUY,
    SECOND_US,
    SELL,
    TradeRule,
    Trades,
    flow_between,
    flow_between_snapshot,
    illiquidity,
    liquidity_snapshot,
    order_flow_snapshot,
    proximity,
    proximity_snapshot,
    signed_flow,
)
from models.graphs.snapshot import GraphError, Snapshot

SECONDS = TradeRule(bucket_us=SECOND_US, buckets=3, min_weight=0.0, top_k=3)


def trades(*rows: tuple[float, int, float, float, int], n: int = 3) -> Trades:
    """(seconds, symbol, price, size, side) a row."""
    t, symbol, price, size, side = (np.array(column) for column in zip(*rows, strict=True))
    return Trades((t * SECOND_US).astype(np.int64), symbol, price * 1.0, size * 1.0, side, tuple("ABCDEF"[:n]))


FEW = trades(
    (0.5, 0, 10, 1, BUY), (1.5, 0, 10, 2, BUY), (1.7, 1, 5, 3, SELL), (2.0, 0, 11, 1, SELL), (2.5, 1, 6, 1, BUY)
)


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> Trades:
    """Trades of two coins at three venues each on 8 August 2024."""
    rows = (
        pq.read_table(shared_data / "events/trades_2024-08-08.parquet").to_pandas().sort_values("ts_ms", kind="stable")
    )
    name = rows["symbol"] + " " + rows["venue"]
    nodes = tuple(sorted(set(name)))
    return Trades(
        rows["ts_ms"].to_numpy() * 1000,
        np.searchsorted(nodes, name),
        rows["price"].to_numpy(),
        rows["size"].to_numpy(),
        np.where(rows["side"] == "buy", BUY, SELL),
        nodes,
    )


def test_signed_flow_by_hand() -> None:
    """Buckets end with as_of: (−1, 0], (0, 1], (1, 2] for 2 s; a trade at a bucket's end belongs to it."""
    flow = signed_flow(FEW, 2 * SECOND_US, SECONDS)
    np.testing.assert_array_equal(flow, [[0, 0, 0], [10, 0, 0], [9, -15, 0]])
    np.testing.assert_array_equal(signed_flow(FEW, 3 * SECOND_US, SECONDS), [[10, 0, 0], [9, -15, 0], [0, 6, 0]])


def test_flow_between_by_hand() -> None:
    """Of the 15 that left B, 9 are found again in A; of the 6 sold of A, B bought 2 and C 4."""
    share = flow_between(np.array([[9.0, -15.0, 0.0], [-6.0, 2.0, 4.0]]))
    np.testing.assert_allclose(share * 15, [[0, 2, 4], [9, 0, 0], [0, 0, 0]], atol=2e-5)
    np.testing.assert_array_equal(flow_between(np.array([[3.0, 1.0], [0.0, 2.0]])), np.zeros((2, 2)))


def test_flow_runs_from_the_asset_sold_to_the_one_bought() -> None:
    found = flow_between_snapshot(FEW, 2 * SECOND_US, SECONDS)
    assert found.directed and (found.src.tolist(), found.dst.tolist(), found.weight.tolist()) == ([1], [0], [1.0])


def test_illiquidity_by_hand() -> None:
    """Of A: unknown before its first trade and its first change, then log(11/10) over 31 traded."""
    found = illiquidity(FEW, 2 * SECOND_US, SECONDS)
    expected = [[np.nan] * 3, [np.nan] * 3, [np.log(11 / 10) / 31, np.nan, np.nan]]
    np.testing.assert_allclose(found, expected)


def test_assets_that_dry_up_together_are_linked() -> None:
    rng = np.random.default_rng(0)
    k = 60
    thin = np.exp(np.cumsum(rng.normal(size=k)) * 0.5)
    rows = []
    for b in range(k):
        for symbol, change in ((0, thin[b]), (1, thin[b]), (2, 1.0)):
            noise = np.exp(0.2 * rng.normal())
            rows.append((b + 0.1 * (symbol + 1), symbol, 100 * np.exp(1e-3 * change * noise * (-1) ** b), 1.0, BUY))
    rule = TradeRule(SECOND_US, k - 1, min_weight=0.3, top_k=3)
    found = liquidity_snapshot(trades(*rows), k * SECOND_US, rule)
    assert (0, 1) in set(zip(found.src.tolist(), found.dst.tolist(), strict=True))
    assert found.weight.max() > 0.5


def test_proximity_by_hand() -> None:
    """TGN-07: 1 / (1 + Δt): A's last event is 1 s before B's, C has none."""
    assert proximity(np.array([0.0, 1.0, 3.0])).tolist() == [1.0, 0.5, 0.25]
    t, symbol = np.array([0, 1, 2]) * SECOND_US, np.array([1, 0, 1])
    found = proximity_snapshot(t, symbol, 2 * SECOND_US, ("A", "B", "C"), top_k=2)
    assert (found.src.tolist(), found.dst.tolist(), found.weight.tolist()) == ([0], [1], [0.5])
    early = proximity_snapshot(t, symbol, SECOND_US, ("A", "B", "C"), top_k=2)
    assert early.weight.tolist() == [0.5] and len(proximity_snapshot(t, symbol, -1, ("A", "B"), 1).src) == 0


@pytest.mark.parametrize("unknown", [-1, 3])
def test_an_event_of_a_symbol_that_is_no_node_is_named(unknown: int) -> None:
    t, symbol = np.array([0, 1, 2]) * SECOND_US, np.array([1, unknown, 1])
    with pytest.raises(GraphError, match=f"event 1 at 1000000 µs has symbol {unknown}, outside 0 … 2"):
        proximity_snapshot(t, symbol, 2 * SECOND_US, ("A", "B", "C"), top_k=2)


RULE = TradeRule(bucket_us=5 * SECOND_US, buckets=50, min_weight=0.05, top_k=3)
BUILD: dict[str, Callable[[Trades, int], Snapshot]] = {
    "order_flow": lambda trades, as_of: order_flow_snapshot(trades, as_of, RULE),
    "flow_between": lambda trades, as_of: flow_between_snapshot(trades, as_of, RULE),
    "liquidity": lambda trades, as_of: liquidity_snapshot(
        trades, as_of, replace(RULE, bucket_us=25 * SECOND_US, buckets=9)
    ),
    "proximity": lambda trades, as_of: proximity_snapshot(trades.t, trades.symbol, as_of, trades.nodes, 3),
}


def test_recorded_flow_links_a_coin_with_itself_elsewhere(recorded: Trades) -> None:
    """The strongest link of bitcoin's spot market is to its perpetual, not to ether."""
    found = order_flow_snapshot(recorded, int(recorded.t[-1]), RULE)
    spot = recorded.nodes.index("BTCUSDT binance_spot")
    at = (found.src == spot) | (found.dst == spot)
    best = np.flatnonzero(at)[found.weight[at].argmax()]
    assert {recorded.nodes[found.src[best]], recorded.nodes[found.dst[best]]} == {
        "BTCUSDT binance_spot",
        "BTCUSDT binance_usdm",
    }


@pytest.mark.parametrize("graph", BUILD)
def test_trades_after_as_of_change_nothing_and_the_last_ones_count(recorded: Trades, graph: str) -> None:
    for as_of in (int(recorded.t[30_000]), int(recorded.t[50_000])):
        upto = int(np.searchsorted(recorded.t, as_of, side="right"))
        whole, cut = BUILD[graph](recorded, as_of), BUILD[graph](_first(recorded, upto), as_of)
        assert whole.as_of == np.datetime64(as_of, "us") and not whole.window_start > whole.as_of
        for a, b in ((whole.src, cut.src), (whole.dst, cut.dst), (whole.weight, cut.weight)):
            np.testing.assert_array_equal(a, b)
        assert len(whole.src)
    before = BUILD[graph](_first(recorded, upto - 2000), as_of)
    assert not np.array_equal(before.weight, whole.weight)


def _first(trades: Trades, stop: int) -> Trades:
    columns = (trades.t, trades.symbol, trades.price, trades.size, trades.side)
    return Trades(*(column[:stop] for column in columns), trades.nodes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1.0, 0, 10, 1, BUY), "trade 5 at 1000000 µs of symbol 0 is before the one it follows"),
        ((3.0, 3, 10, 1, BUY), "symbol outside 0 … 2"),
        ((3.0, 0, 0, 1, BUY), "no positive price and size"),
        ((3.0, 0, 10, np.nan, BUY), "no positive price and size"),
        ((3.0, 0, 10, 1, 0), "a side other than 1"),
    ],
)
def test_a_trade_that_is_none_is_named(row: tuple, message: str) -> None:
    columns = (FEW.t, FEW.symbol, FEW.price, FEW.size, FEW.side)
    t, *rest = row
    added = [np.append(column, value) for column, value in zip(columns, (int(t * SECOND_US), *rest), strict=True)]
    with pytest.raises(GraphError, match=message):
        Trades(*added, FEW.nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bucket_us": 0}, "bucket_us is 0"),
        ({"buckets": 2}, "buckets 2"),
        ({"min_weight": -1.0}, "min_weight is -1"),
        ({"top_k": 0}, "top_k 0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(change: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        replace(SECONDS, **change)
