"""Events that are built batch by batch equal the events that are built from one whole table, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from models.graphs.events import EVENT_KINDS, Events, concatenate
from models.graphs.market_events import HOUR_US, MINUTE_US, market_nodes, with_clock_features
from models.graphs.market_stream import BUILDERS, EVENT_VALUES, MARKET_ROW, MarketEvents
from models.graphs.snapshot import GraphError

SYMBOLS = ("AAA", "BBB", "CCC")
ARRAY_NAMES = ("src", "dst", "t", "kind", "features")


def make_market_rows(n_rows: int, seconds: int, seed: int = 0) -> np.ndarray:
    """Rows of every kind at random milliseconds of a period of ``seconds``, in order of time; some are simultaneous."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n_rows, MARKET_ROW)
    rows["t"] = np.sort(rng.integers(0, seconds * 1_000, n_rows)) * 1_000 + 1_700_000_000_000_000
    rows["key"] = np.arange(n_rows)
    rows["kind"] = [
        EVENT_KINDS.index(kind) for kind in rng.choice(list(BUILDERS), n_rows, p=[0.6, 0.3, 0.02, 0.04, 0.04])
    ]
    rows["symbol"] = rng.integers(0, len(SYMBOLS), n_rows)
    rows["next_t"] = rows["t"] + HOUR_US
    rows["price"] = rng.uniform(90, 110, n_rows)
    rows["size"] = np.exp(rng.normal(3, 3, n_rows))
    rows["side"] = rng.choice([-1, 1], n_rows)
    rows["bid"] = rng.uniform(90, 100, n_rows)
    rows["ask"] = rows["bid"] + 0.1
    rows["bid_size"], rows["ask_size"] = rng.uniform(1, 9, (2, n_rows))
    rows["rate"] = rng.normal(0, 1e-4, n_rows)
    rows["open_interest"] = rng.uniform(1e3, 2e3, n_rows)
    return rows


def join_arrays(parts: list[Events]) -> dict[str, np.ndarray]:
    """The arrays of all parts, concatenated, by name."""
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAY_NAMES}


def test_one_batch_equals_the_builders_and_the_clock_features_of_the_whole_table() -> None:
    rows = make_market_rows(2_000, 300)
    parts = []
    for kind, build in BUILDERS.items():
        kind_rows = rows[rows["kind"] == EVENT_KINDS.index(kind)]
        columns = {name: kind_rows[name] for name in ("t", "next_t", *EVENT_VALUES)}
        parts.append(build(SYMBOLS, columns | {"symbol": np.array(SYMBOLS)[kind_rows["symbol"]]}))
    table = with_clock_features(concatenate(parts))
    batch = MarketEvents(SYMBOLS)(rows)
    for name in ARRAY_NAMES:
        np.testing.assert_array_equal(getattr(batch, name), getattr(table, name), err_msg=name)


@pytest.mark.parametrize("seconds", [10, 600])
def test_many_batches_equal_one_batch_of_all_rows(seconds: int) -> None:
    rows = make_market_rows(1_200, seconds)
    whole = MarketEvents(SYMBOLS)(rows)
    builder = MarketEvents(SYMBOLS)
    batch_starts = np.flatnonzero(np.diff(rows["t"] // 100_000)) + 1  # batches of 0.1 s
    batch_arrays = join_arrays([builder(batch) for batch in np.split(rows, batch_starts)])
    assert len(batch_starts) > 80  # of the 100 batches of ten seconds, most have rows
    for name in ARRAY_NAMES:
        np.testing.assert_array_equal(batch_arrays[name], getattr(whole, name), err_msg=name)


def test_a_restored_builder_gives_the_same_events_as_the_original() -> None:
    rows = make_market_rows(600, 60)
    original = MarketEvents(SYMBOLS)
    restored = MarketEvents(SYMBOLS)
    original(rows[:300])
    restored.restore(original.state())
    np.testing.assert_array_equal(restored(rows[300:]).features, original(rows[300:]).features)


def test_the_state_of_other_symbols_is_refused() -> None:
    original = MarketEvents(SYMBOLS)
    with pytest.raises(GraphError, match="the state is of AAA, BBB, CCC, this stream of AAA, BBB"):
        MarketEvents(SYMBOLS[:2]).restore(original.state())


def test_only_rows_that_later_features_may_read_are_kept() -> None:
    rows = make_market_rows(20_000, 3_600)
    builder = MarketEvents(SYMBOLS)
    builder(rows)
    trade_t = rows["t"][rows["kind"] == EVENT_KINDS.index("trade")]
    assert len(builder.recent_trades) == (trade_t >= trade_t[-1] - MINUTE_US).sum()
    # for each symbol the last row of each kind and the last large trade; and the first row of all
    assert len(builder.past) <= len(SYMBOLS) * (len(BUILDERS) + 1) + 1
    assert builder.past[0] == rows[0]


def test_no_rows_give_no_events() -> None:
    builder = MarketEvents(SYMBOLS)
    assert len(builder(make_market_rows(0, 1))) == 0
    assert len(builder(make_market_rows(5, 1))) == 5


def test_later_rows_do_not_change_earlier_events() -> None:
    rows = make_market_rows(400, 60)
    whole = MarketEvents(SYMBOLS)(rows)
    for first_later_row in (1, 150, 399):
        earlier = rows[rows["t"] < rows["t"][first_later_row]]
        np.testing.assert_array_equal(MarketEvents(SYMBOLS)(earlier).features, whole.features[: len(earlier)])


def test_events_run_between_the_nodes_of_the_market() -> None:
    events = MarketEvents(SYMBOLS)(make_market_rows(300, 60))
    assert events.nodes == market_nodes(SYMBOLS)
    node_types = np.array([name.split(":")[0] for name in events.nodes])
    assert set(node_types[events.src]) == {"trade", "book", "funding", "external", "liquidation"}
    assert set(node_types[events.dst]) == {"asset"}
