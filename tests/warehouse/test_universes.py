"""Universes as the seeds describe them."""

from __future__ import annotations

import pickle
from datetime import date

import pytest

from warehouse.errors import UnknownUniverseError
from warehouse.universes import Member, load_universe


def test_stocks_have_their_benchmark_beside_their_members(warehouse):
    stocks = load_universe(warehouse, "us_stocks")
    assert (stocks.provider, stocks.interval, stocks.calendar, stocks.benchmark) == ("yahoo", "1d", "XNYS", "SPY")
    assert len(stocks.symbols) == 130
    assert "SPY" not in stocks.symbols
    assert set(stocks.fetched) - set(stocks.symbols) == {"SPY"}
    assert list(stocks.fetched) == sorted(stocks.fetched)
    assert stocks.sectors["AAPL"] == "Information Technology"
    assert stocks.survivorship_biased is True


def test_a_benchmark_that_is_a_member_is_fetched_once(warehouse):
    crypto = load_universe(warehouse, "crypto")
    assert crypto.benchmark == "BTCUSDT"
    assert crypto.fetched == crypto.symbols
    assert len(crypto.symbols) == 6


def test_an_unknown_universe_is_answered_with_the_known_ones(warehouse):
    with pytest.raises(UnknownUniverseError, match=r"unknown universe 'us_stonks'; known: .*crypto, .*us_stocks"):
        load_universe(warehouse, "us_stonks")


def test_a_symbol_that_left_and_came_back_is_one_symbol(warehouse):
    values = [("B", date(2020, 1, 2), date(2021, 1, 4)), ("A", date(2020, 1, 2), None), ("B", date(2022, 1, 3), None)]
    with warehouse.write("seed") as con:
        con.execute(
            "INSERT INTO store.universes VALUES ('tiny', 'yahoo', '1d', 'XNYS', 'C', '2020-01-02', 1, 5, false, '')"
        )
        con.executemany("INSERT INTO store.universe_members VALUES ('tiny', ?, ?, ?, NULL, NULL, 'test')", values)
    tiny = load_universe(warehouse, "tiny")
    assert tiny.symbols == ("A", "B")
    assert tiny.fetched == ("A", "B", "C")
    assert tiny.sectors == {}
    assert tiny.members[1] == Member("B", None, None, date(2020, 1, 2), date(2021, 1, 4))
    assert pickle.loads(pickle.dumps(tiny)) == tiny
    assert hash(tiny) is not None
