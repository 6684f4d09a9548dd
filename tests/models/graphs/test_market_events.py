"""The builders of market events, compared with numbers by hand (TGN-16, TGN-27; ids: .github/sources.md)."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS, Events, concatenate
from models.graphs.market_events import (
    EXTERNAL_NODES,
    FEATURE_COLUMN,
    FEATURES,
    HOUR_US,
    MINUTE_US,
    NODE_TYPES,
    SECOND_US,
    book_events,
    funding_events,
    liquidation_events,
    market_nodes,
    open_interest_events,
    trade_events,
    with_clock_features,
)
from models.graphs.snapshot import GraphError

SYMBOLS = ("BTC", "ETH")


def make_columns(t: list[int], symbol: list[str], **values: list[float]) -> dict[str, np.ndarray]:
    """A table of events for a builder: its columns by name."""
    return {"t": np.array(t), "symbol": np.array(symbol)} | {k: np.array(v, dtype=float) for k, v in values.items()}


def make_trades(t: list[int], symbol: list[str], price: list[float], side: list[float], size: float = 2.0) -> Events:
    """Trades at the times ``t`` in microseconds, each of ``size``."""
    return trade_events(SYMBOLS, make_columns(t, symbol, price=price, size=[size] * len(t), side=side))


def feature_values(events: Events, name: str) -> list[float]:
    """The values of a feature by its name."""
    return events.features[:, FEATURE_COLUMN[name]].tolist()


def node_names(events: Events) -> list[tuple[str, str]]:
    """The names of src and dst of each event."""
    return [(events.nodes[u], events.nodes[v]) for u, v in zip(events.src, events.dst, strict=True)]


def test_a_trade_has_its_size_side_value_and_price_impact() -> None:
    """Three trades of size 2; the third is a sale of BTC at 1% below the first."""
    events = make_trades([10, 20, 30], ["BTC", "ETH", "BTC"], [100.0, 50.0, 99.0], [1.0, 1.0, -1.0])
    assert node_names(events) == [("trade:BTC", "asset:BTC"), ("trade:ETH", "asset:ETH"), ("trade:BTC", "asset:BTC")]
    assert {EVENT_KINDS[k] for k in events.kind} == {"trade"}
    log_return = 100 * np.log(0.99)
    assert feature_values(events, "return") == pytest.approx([0, 0, log_return])
    assert feature_values(events, "side") == [1, 1, -1]
    assert feature_values(events, "impact") == pytest.approx([0, 0, -log_return])
    assert feature_values(events, "log_size") == pytest.approx([np.log(3)] * 3)
    assert feature_values(events, "log_value") == pytest.approx(np.log1p([200.0, 100.0, 198.0]).tolist())


def test_a_book_event_comes_from_the_deeper_side() -> None:
    events = book_events(
        SYMBOLS,
        make_columns([1, 2], ["ETH", "ETH"], bid=[99.0, 99.0], ask=[101.0, 100.0], bid_size=[3, 1], ask_size=[1, 3]),
    )
    assert node_names(events) == [("book:ETH:bid", "asset:ETH"), ("book:ETH:ask", "asset:ETH")]
    assert feature_values(events, "imbalance") == pytest.approx([0.5, -0.5])
    assert feature_values(events, "spread") == pytest.approx([1e4 * 2 / 99, 1e4 / 99], rel=1e-4)
    assert feature_values(events, "log_depth") == pytest.approx([np.log(5)] * 2)


def test_a_ticker_has_the_predicted_rate_and_a_countdown_and_a_settlement_the_settled_rate() -> None:
    columns = make_columns([0, 4 * HOUR_US], ["BTC", "BTC"], rate=[2e-4, 3e-4]) | {
        "next_t": np.array([4 * HOUR_US, 4 * HOUR_US])
    }
    events = funding_events(SYMBOLS, columns)
    assert node_names(events) == [("funding:BTC", "asset:BTC")] * 2
    assert feature_values(events, "predicted_rate") == pytest.approx([2.0, 0.0])
    assert feature_values(events, "rate") == pytest.approx([0.0, 3.0])
    assert feature_values(events, "countdown") == [0.5, 0.0]
    assert feature_values(funding_events(SYMBOLS, make_columns([0], ["BTC"], rate=[2e-4])), "rate") == pytest.approx(
        [2.0]
    )


def test_open_interest_has_its_change_since_the_last_event_of_the_same_asset() -> None:
    events = open_interest_events(
        SYMBOLS, make_columns([1, 2, 3], ["BTC", "ETH", "BTC"], open_interest=[100.0, 7.0, 110.0])
    )
    assert feature_values(events, "open_interest_change") == pytest.approx([0, 0, 100 * np.log(1.1)], rel=1e-5)
    assert node_names(events)[1] == ("external:open_interest", "asset:ETH")


def test_a_liquidation_has_the_features_of_a_trade_and_a_source_node_of_its_own() -> None:
    columns = make_columns([5, 6], ["BTC", "BTC"], price=[100.0, 99.0], size=[1.0, 3.0], side=[-1.0, -1.0])
    events = liquidation_events(SYMBOLS, columns)
    trades = trade_events(SYMBOLS, columns)
    assert node_names(events) == [("liquidation:BTC", "asset:BTC")] * 2
    assert np.array_equal(events.features, trades.features)


def test_clock_features_count_events_of_the_same_asset_only() -> None:
    """TGN-20: the time since the last trade and since the last large trade. No trade here is large."""
    t = [0, 10 * SECOND_US, 10 * SECOND_US, 30 * SECOND_US, MINUTE_US + 10 * SECOND_US]
    events = make_trades(t, ["BTC", "BTC", "BTC", "ETH", "BTC"], [100.0] * 5, [1.0] * 5)
    with_clocks = with_clock_features(events, min_large_value=1e9)
    # ETH has no earlier trade, so its time counts from the first event of all
    assert np.expm1(feature_values(with_clocks, "log_since_trade")) == pytest.approx([0, 10, 10, 30, 60], rel=1e-5)
    assert np.expm1(feature_values(with_clocks, "log_trade_rate")) == pytest.approx([0, 1, 1, 0, 2], rel=1e-5)
    assert np.expm1(feature_values(with_clocks, "log_since_large_trade")) == pytest.approx(
        [0, 10, 10, 30, 70], rel=1e-5
    )


def test_clock_features_of_simultaneous_events_do_not_depend_on_their_order() -> None:
    btc = make_trades([0, 9, 9], ["BTC"] * 3, [100.0] * 3, [1.0] * 3)
    eth = make_trades([0], ["ETH"], [9.0], [1.0], size=5.0)
    btc_first = with_clock_features(concatenate([btc, eth]))
    eth_first = with_clock_features(concatenate([eth, btc]))
    assert sorted(map(tuple, btc_first.features.tolist())) == sorted(map(tuple, eth_first.features.tolist()))


def test_later_trades_do_not_change_the_clock_features_of_earlier_events() -> None:
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 5 * MINUTE_US, 200)).tolist()
    events = make_trades(t, rng.choice(SYMBOLS, 200).tolist(), rng.uniform(90, 110, 200).tolist(), [1.0] * 200)
    assert np.array_equal(with_clock_features(events)[:120].features, with_clock_features(events[:120]).features)


def test_no_two_features_have_the_same_name() -> None:
    assert len(set(FEATURES)) == len(FEATURES) == len(FEATURE_COLUMN)


def test_a_market_has_a_node_of_every_type_for_every_symbol() -> None:
    """TGN-06."""
    nodes = market_nodes(SYMBOLS)
    assert nodes[:2] == ("asset:BTC", "asset:ETH")
    assert len(set(nodes)) == len(nodes) == len(NODE_TYPES) * len(SYMBOLS) + len(EXTERNAL_NODES)


def test_the_error_for_rows_of_an_unknown_symbol_states_its_name() -> None:
    with pytest.raises(GraphError, match="rows of DOGE"):
        make_trades([1], ["DOGE"], [1.0], [1.0])


def test_no_rows_give_no_events() -> None:
    assert len(with_clock_features(make_trades([], [], [], []))) == 0
