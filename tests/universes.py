"""Small universes that the tests of several rooms share: daily stocks and hourly perpetuals."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime

from warehouse.universes import Member, Universe


def make_stocks(symbols: Iterable[str], benchmark: str, start: date, sectors: dict[str, str] | None = None) -> Universe:
    """The universe ``stocks`` of Yahoo with daily bars. Its history starts on ``start``, the day that all members join.

    ``sectors`` is the sector by symbol; a symbol without one has no sector.
    """
    sectors = sectors or {}
    return Universe(
        name="stocks",
        provider="yahoo",
        interval="1d",
        calendar="XNYS",
        benchmark=benchmark,
        history_start=datetime.combine(start, datetime.min.time(), UTC),
        commission_bps=1.0,
        slippage_bps=5.0,
        survivorship_biased=True,
        members=tuple(Member(symbol, sectors.get(symbol), None, start, None) for symbol in symbols),
    )


def make_perpetuals(symbols: Iterable[str], start: date, sector: str | None = None) -> Universe:
    """The universe ``perpetuals`` of Bybit with hourly bars. Its history starts on ``start``, the day that all members
    join. The first symbol is the benchmark, and all members have the same sector."""
    members = tuple(Member(symbol, sector, None, start, None) for symbol in symbols)
    return Universe(
        name="perpetuals",
        provider="bybit",
        interval="1h",
        calendar="24/7",
        benchmark=members[0].symbol,
        history_start=datetime.combine(start, datetime.min.time(), UTC),
        commission_bps=1.0,
        slippage_bps=5.0,
        survivorship_biased=True,
        members=members,
    )
