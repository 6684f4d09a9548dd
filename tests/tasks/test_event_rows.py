"""Stored events as rows of MARKET_ROW: which rows are left out, and what the key identifies."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.event_rows import market_rows, readable_rows
from tasks.markets.event_rows import event_rows


@pytest.mark.parametrize(
    "bad_values",
    [
        {"price": 0.0},
        {"price": None},
        {"size": float("inf")},
        {"kind": "book", "bid": -1.0, "ask": 2.0, "bid_size": 1.0, "ask_size": 1.0},
        {"kind": "open_interest", "open_interest": 0.0},
        {"kind": "funding", "rate": 1e40},
        {"kind": "rumour"},
    ],
    ids=str,
)
def test_an_unreadable_row_is_left_out_with_a_warning(
    bad_values: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    trade = {"kind": "trade", "symbol": "AAA", "ts": 5, "event_id": "1", "side": "buy", "price": 2.0, "size": 3.0}
    second_trade = trade | {"event_id": "2"}
    expected = readable_rows(event_rows([trade, second_trade]), ("AAA",))
    assert len(expected) == 2 and caplog.text == ""
    bad_event = trade | {"event_id": "3"} | bad_values
    rows = readable_rows(event_rows([trade, second_trade, bad_event]), ("AAA",))
    np.testing.assert_array_equal(rows, expected)
    assert "1 of 3 stored events cannot be read and are left out; the first is one of AAA at 1970-01-01" in caplog.text


def test_a_key_depends_on_kind_symbol_time_and_id_alone() -> None:
    event = {"kind": "trade", "symbol": "AAA", "ts": 5, "event_id": "1"}
    other_price = event | {"price": 3.0}
    other_identities = [{"ts": 6}, {"event_id": "2"}, {"kind": "liquidation"}, {"symbol": "BBB"}]
    events = event_rows([event, other_price, *(event | change for change in other_identities)])
    key, key_other_price, *other_keys = market_rows(events, ("AAA", "BBB"))["key"].tolist()
    assert key == key_other_price
    assert len({key, *other_keys}) == 1 + len(other_identities)
    assert key == 6663218034592857650  # the same in every run, because saved states identify events by their keys
