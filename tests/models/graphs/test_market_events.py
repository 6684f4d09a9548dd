"""Events of a market, against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS, Events, concatenate
from models.graphs.market_events import (
    COLUMN,
    FEATURES,
    HOUR,
    MINUTE,
    SECOND,
    bar_events,
    book_events,
    edge_events,
    funding_events,
    liquidation_events,
    market_nodes,
    open_interest_events,
    trade_events,
    with_clocks,
)
from models.graphs.snapshot import GraphError, Snapshot

SYMBOLS = ("BTC", "ETH")


def rows(t: list[int], symbol: list[str], **columns: list[float]) -> dict[str, np.ndarray]:
    return {"t": np.array(t), "symbol": np.array(symbol)} | {k: np.array(v, dtype=float) for k, v in columns.items()}


def trades(t: list[int], symbol: list[str], price: list[float], side: list[float], size: float = 2.0) -> Events:
    return trade_events(SYMBOLS, rows(t, symbol, price=price, size=[size] * len(t), side=side))


def said(events: Events, name: str) -> list[float]:
    return events.features[:, COLUMN[name]].tolist()


def named(events: Events) -> list[tuple[str, str]]:
    return [(events.nodes[u], events.nodes[v]) for u, v in zip(events.src, events.dst, strict=True)]


def test_a_trade_says_size_side_value_and_how_it_moved_its_own_price() -> None:
    made = trades([10, 20, 30], ["BTC", "ETH", "BTC"], [100.0, 50.0, 99.0], [1.0, 1.0, -1.0])
    assert named(made) == [("trade:BTC", "asset:BTC"), ("trade:ETH", "asset:ETH"), ("trade:BTC", "asset:BTC")]
    assert {EVENT_KINDS[k] for k in made.kind} == {"trade"}
    move = 100 * np.log(0.99)
    assert said(made, "return") == pytest.approx([0, 0, move])
    assert said(made, "impact") == pytest.approx([0, 0, -move])
    assert said(made, "log_size") == pytest.approx([np.log(3)] * 3)
    assert said(made, "log_value") == pytest.approx(np.log1p([200.0, 100.0, 198.0]).tolist())


def test_a_book_speaks_from_its_heavier_side() -> None:
    made = book_events(
        SYMBOLS, rows([1, 2], ["ETH", "ETH"], bid=[99.0, 99.0], ask=[101.0, 100.0], bid_size=[3, 1], ask_size=[1, 3])
    )
    assert named(made) == [("book:ETH:bid", "asset:ETH"), ("book:ETH:ask", "asset:ETH")]
    assert said(made, "imbalance") == pytest.approx([0.5, -0.5])
    assert said(made, "spread") == pytest.approx([1e4 * 2 / 99, 1e4 / 99], rel=1e-4)
    assert said(made, "log_depth") == pytest.approx([np.log(5)] * 2)


def test_a_bar_speaks_at_its_close_and_its_volume_is_ranked_among_those_before() -> None:
    volume = [10.0, 20.0, 5.0, 15.0]
    made = bar_events(
        SYMBOLS,
        rows([1, 2, 3, 4], ["BTC"] * 4, open=[1.0] * 4, high=[2.0] * 4, low=[1.0] * 4, close=[2.0] * 4, volume=volume),
    )
    assert named(made)[0] == ("external:market", "asset:BTC")
    assert said(made, "volume_rank") == pytest.approx([0.5, 1.0, 0.0, 2 / 3])
    assert said(made, "range") == pytest.approx([100 * np.log(2)] * 4)


def test_a_ticker_says_the_rate_to_come_and_counts_down_to_it_a_settlement_its_own() -> None:
    given = rows([0, 4 * HOUR], ["BTC", "BTC"], rate=[2e-4, 3e-4]) | {"next_t": np.array([4 * HOUR, 4 * HOUR])}
    made = funding_events(SYMBOLS, given)
    assert named(made) == [("funding:BTC", "asset:BTC")] * 2
    assert said(made, "predicted_rate") == pytest.approx([2.0, 0.0])
    assert said(made, "rate") == pytest.approx([0.0, 3.0])
    assert said(made, "countdown") == [0.5, 0.0]
    assert said(funding_events(SYMBOLS, rows([0], ["BTC"], rate=[2e-4])), "rate") == pytest.approx([2.0])


def test_open_interest_says_by_how_much_it_changed() -> None:
    made = open_interest_events(SYMBOLS, rows([1, 2, 3], ["BTC", "ETH", "BTC"], open_interest=[100.0, 7.0, 110.0]))
    assert said(made, "open_interest_change") == pytest.approx([0, 0, 100 * np.log(1.1)], rel=1e-5)
    assert named(made)[1] == ("external:open_interest", "asset:ETH")


def test_a_liquidation_says_what_a_trade_says_from_a_node_of_its_own() -> None:
    given = rows([5, 6], ["BTC", "BTC"], price=[100.0, 99.0], size=[1.0, 3.0], side=[-1.0, -1.0])
    made, trade = liquidation_events(SYMBOLS, given), trade_events(SYMBOLS, given)
    assert named(made) == [("liquidation:BTC", "asset:BTC")] * 2
    assert np.array_equal(made.features, trade.features)


def test_an_edge_is_known_when_its_last_bar_closes_and_goes_both_ways() -> None:
    as_of = np.datetime64(HOUR, "us")
    edges = (np.array([0]), np.array([1]), np.array([0.7]))
    snapshot = Snapshot("correlation", as_of, np.datetime64("NaT", "us"), *edges, ("ETH", "BTC"))
    made = edge_events(SYMBOLS, [snapshot], HOUR, "correlation")
    assert named(made) == [("asset:ETH", "asset:BTC"), ("asset:BTC", "asset:ETH")]
    assert made.t.tolist() == [2 * HOUR, 2 * HOUR]
    assert said(made, "weight") == pytest.approx([0.7, 0.7])
    assert len(edge_events(SYMBOLS, [], HOUR, "correlation")) == 0


def test_clocks_count_from_the_assets_own_past_only() -> None:
    t = [0, 10 * SECOND, 10 * SECOND, 30 * SECOND, MINUTE + 10 * SECOND]
    made = trades(t, ["BTC", "BTC", "BTC", "ETH", "BTC"], [100.0] * 5, [1.0] * 5)
    clocked = with_clocks(made, large_value=1e9)
    since = np.expm1(said(clocked, "log_since_trade"))
    assert since == pytest.approx([0, 10, 10, 30, 60], rel=1e-5)  # ETH has none before it: since the first of all
    assert np.expm1(said(clocked, "log_trade_rate")) == pytest.approx([0, 1, 1, 0, 2], rel=1e-5)
    assert np.expm1(said(clocked, "log_since_large_trade")) == pytest.approx([0, 10, 10, 30, 70], rel=1e-5)


def test_clocks_of_simultaneous_events_do_not_depend_on_their_order() -> None:
    one, other = trades([0, 9, 9], ["BTC"] * 3, [100.0] * 3, [1.0] * 3), trades([0], ["ETH"], [9.0], [1.0], size=5.0)
    forth, back = with_clocks(concatenate([one, other])), with_clocks(concatenate([other, one]))
    assert sorted(map(tuple, forth.features.tolist())) == sorted(map(tuple, back.features.tolist()))


def test_later_trades_change_no_clock_before_them() -> None:
    draw = np.random.default_rng(0)
    t = np.sort(draw.integers(0, 5 * MINUTE, 200)).tolist()
    made = trades(t, draw.choice(SYMBOLS, 200).tolist(), draw.uniform(90, 110, 200).tolist(), [1.0] * 200)
    assert np.array_equal(with_clocks(made)[:120].features, with_clocks(made[:120]).features)


def test_every_feature_has_a_name_and_every_type_a_node() -> None:
    assert len(set(FEATURES)) == len(FEATURES) == len(COLUMN)
    nodes = market_nodes(SYMBOLS)
    assert nodes[:2] == ("asset:BTC", "asset:ETH")
    assert len(nodes) == 6 * 2 + 2


def test_rows_of_another_symbol_are_refused_by_name() -> None:
    with pytest.raises(GraphError, match="rows of DOGE"):
        trades([1], ["DOGE"], [1.0], [1.0])


def test_no_rows_make_no_events() -> None:
    assert len(with_clocks(trades([], [], [], []))) == 0
