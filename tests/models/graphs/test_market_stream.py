"""Events of a market built batch by batch equal those of one whole table, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS, Events, concatenate
from models.graphs.market_events import market_nodes, with_clocks
from models.graphs.market_stream import BUILDERS, EVENT_VALUES, MARKET_ROW, MarketEvents
from models.graphs.snapshot import GraphError

SYMBOLS = ("AAA", "BBB", "CCC")
DTYPES = ("src", "dst", "t", "kind", "features")


def market_rows(events: int, seconds: int, seed: int = 0) -> np.ndarray:
    """Events of every kind at random times of whole milliseconds, some simultaneous, in the order of time."""
    draw = np.random.default_rng(seed)
    rows = np.zeros(events, MARKET_ROW)
    rows["t"] = np.sort(draw.integers(0, seconds * 1_000, events)) * 1_000 + 1_700_000_000_000_000
    rows["key"] = np.arange(events)
    rows["kind"] = [
        EVENT_KINDS.index(kind) for kind in draw.choice(list(BUILDERS), events, p=[0.6, 0.3, 0.02, 0.04, 0.04])
    ]
    rows["symbol"] = draw.integers(0, len(SYMBOLS), events)
    rows["next_t"] = rows["t"] + 3_600_000_000
    rows["price"] = draw.uniform(90, 110, events)
    rows["size"] = np.exp(draw.normal(3, 3, events))
    rows["side"] = draw.choice([-1, 1], events)
    rows["bid"] = draw.uniform(90, 100, events)
    rows["ask"] = rows["bid"] + 0.1
    rows["bid_size"], rows["ask_size"] = draw.uniform(1, 9, (2, events))
    rows["rate"] = draw.normal(0, 1e-4, events)
    rows["open_interest"] = draw.uniform(1e3, 2e3, events)
    return rows


def join_arrays(parts: list[Events]) -> dict[str, np.ndarray]:
    """The arrays of all parts, one after the other, by name."""
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in DTYPES}


def test_one_batch_equals_the_builders_and_clocks_applied_to_a_table() -> None:
    rows = market_rows(2_000, 300)
    parts = []
    for kind, build in BUILDERS.items():
        kind_rows = rows[rows["kind"] == EVENT_KINDS.index(kind)]
        columns = {name: kind_rows[name] for name in ("t", "next_t", *EVENT_VALUES)}
        parts.append(build(SYMBOLS, columns | {"symbol": np.array(SYMBOLS)[kind_rows["symbol"]]}))
    table = with_clocks(concatenate(parts))
    batch = MarketEvents(SYMBOLS)(rows)
    for name in DTYPES:
        np.testing.assert_array_equal(getattr(batch, name), getattr(table, name), err_msg=name)


@pytest.mark.parametrize("seconds", [10, 600])
def test_many_batches_equal_one_batch_of_all_rows(seconds: int) -> None:
    rows = market_rows(1_200, seconds)
    whole = MarketEvents(SYMBOLS)(rows)
    build = MarketEvents(SYMBOLS)
    cuts = np.flatnonzero(np.diff(rows["t"] // 100_000)) + 1
    parts = join_arrays([build(part) for part in np.split(rows, cuts)])
    assert len(cuts) > 80
    for name in DTYPES:
        np.testing.assert_array_equal(parts[name], getattr(whole, name), err_msg=name)


def test_a_restored_state_continues_and_one_of_other_symbols_is_refused() -> None:
    rows = market_rows(600, 60)
    original = MarketEvents(SYMBOLS)
    restored = MarketEvents(SYMBOLS)
    original(rows[:300])
    restored.restore(original.state())
    np.testing.assert_array_equal(restored(rows[300:]).features, original(rows[300:]).features)
    with pytest.raises(GraphError, match="the state is of AAA, BBB, CCC, this stream of AAA, BBB"):
        MarketEvents(SYMBOLS[:2]).restore(original.state())


def test_only_rows_that_later_features_may_read_are_kept() -> None:
    rows = market_rows(20_000, 3_600)
    build = MarketEvents(SYMBOLS)
    build(rows)
    trades = rows["t"][rows["kind"] == EVENT_KINDS.index("trade")]
    assert len(build.recent_trades) == (trades >= trades[-1] - 60_000_000).sum()
    assert len(build.past) <= len(SYMBOLS) * (len(BUILDERS) + 1) + 1
    assert build.past[0] == rows[0]


def test_no_rows_give_no_events() -> None:
    build = MarketEvents(SYMBOLS)
    assert len(build(market_rows(0, 1))) == 0
    assert len(build(market_rows(5, 1))) == 5


def test_later_rows_do_not_change_earlier_events() -> None:
    rows = market_rows(400, 60)
    whole = MarketEvents(SYMBOLS)(rows)
    for cut in (1, 150, 399):
        earlier = rows[rows["t"] < rows["t"][cut]]
        np.testing.assert_array_equal(MarketEvents(SYMBOLS)(earlier).features, whole.features[: len(earlier)])


def test_events_run_between_the_nodes_of_the_market() -> None:
    events = MarketEvents(SYMBOLS)(market_rows(300, 60))
    assert events.nodes == market_nodes(SYMBOLS)
    ends = {tuple(events.nodes[end].split(":")[0] for end in pair) for pair in zip(events.src, events.dst, strict=True)}
    assert ends == {(start, "asset") for start in ("trade", "book", "funding", "external", "liquidation")}
