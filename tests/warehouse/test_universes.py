"""Universes as the seeds define them. Seeds are the CSV files in warehouse/seeds."""

from __future__ import annotations

import pickle
from datetime import date

import pytest

from warehouse.connect import Warehouse
from warehouse.errors import UnknownUniverseError
from warehouse.universes import Member, load_universe


def test_the_benchmark_of_the_stocks_is_fetched_but_is_no_member(warehouse: Warehouse) -> None:
    stocks = load_universe(warehouse, "us_stocks")
    assert (stocks.provider, stocks.interval, stocks.calendar, stocks.benchmark) == ("yahoo", "1d", "XNYS", "SPY")
    assert len(stocks.symbols) == 130
    assert "SPY" not in stocks.symbols
    assert set(stocks.symbols_to_fetch) - set(stocks.symbols) == {"SPY"}
    assert list(stocks.symbols_to_fetch) == sorted(stocks.symbols_to_fetch)
    assert stocks.sectors["AAPL"] == "Information Technology"
    assert stocks.survivorship_biased is True


def test_a_benchmark_that_is_a_member_is_fetched_once(warehouse: Warehouse) -> None:
    crypto = load_universe(warehouse, "crypto")
    assert crypto.benchmark == "BTCUSDT"
    assert crypto.symbols_to_fetch == crypto.symbols
    assert len(crypto.symbols) == 6


def test_an_unknown_universe_is_refused_with_the_names_of_the_existing_ones(warehouse: Warehouse) -> None:
    with pytest.raises(UnknownUniverseError, match=r"unknown universe 'us_stonks'; known: .*crypto, .*us_stocks"):
        load_universe(warehouse, "us_stonks")


def test_a_symbol_with_two_memberships_is_one_symbol(warehouse: Warehouse) -> None:
    memberships = [
        ("B", date(2020, 1, 2), date(2021, 1, 4)),
        ("A", date(2020, 1, 2), None),
        ("B", date(2022, 1, 3), None),
    ]
    with warehouse.write("seed") as con:
        con.execute(
            "INSERT INTO store.universes BY NAME SELECT 'tiny' AS universe, 'yahoo' AS provider, '1d' AS interval,"
            " 'XNYS' AS calendar, 'C' AS benchmark, '2020-01-02' AS history_start, 1 AS commission_bps,"
            " 5 AS slippage_bps, false AS survivorship_biased, '' AS description"
        )
        con.executemany(
            "INSERT INTO store.universe_members (universe, symbol, valid_from, valid_to, membership_source)"
            " VALUES ('tiny', ?, ?, ?, 'test')",
            memberships,
        )
    tiny = load_universe(warehouse, "tiny")
    assert tiny.symbols == ("A", "B")
    assert tiny.symbols_to_fetch == ("A", "B", "C")
    assert tiny.sectors == {}
    assert tiny.members[1] == Member("B", None, None, date(2020, 1, 2), date(2021, 1, 4))
    assert pickle.loads(pickle.dumps(tiny)) == tiny
    assert hash(tiny) is not None  # a universe can be the key of a cache
