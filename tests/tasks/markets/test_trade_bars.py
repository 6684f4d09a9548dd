"""Bars computed from hand-written trades."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from tasks.markets.trade_bars import bars_from_trades

OHLCV = ("open", "high", "low", "close", "volume")
NOON = np.datetime64("2024-08-08T12:00:00", "us")
TRADES = [  # milliseconds after noon, price, size
    (400, 50.0, 9.0),  # in the bar in which the recording may have started
    (1_001, 10.0, 1.0),
    (1_500, 12.0, 2.0),
    (1_900, 9.0, 1.0),
    (2_000, 11.0, 0.5),  # exactly at the close: belongs to this bar
    (4_250, 13.0, 4.0),
]


def trade_table(trades: list[tuple[int, float, float]]) -> pa.Table:
    """The table of trades (milliseconds after noon, price, size) of one symbol."""
    milliseconds, price, size = zip(*trades, strict=True)
    ts = NOON + np.array(milliseconds) * np.timedelta64(1, "ms")
    return pa.table(
        {"symbol": ["spot:AAA"] * len(trades), "ts": pa.array(ts).cast(TS_TYPE), "price": price, "size": size}
    )


def one_second_bars(trades: list[tuple[int, float, float]], end_ms: int) -> list[tuple]:
    """(open in seconds after noon, open, high, low, close, volume) of the bars that closed by ``end_ms`` after noon."""
    table = bars_from_trades(trade_table(trades), "1s", NOON + np.timedelta64(end_ms, "ms"))
    open_s = (table["ts"].to_numpy().astype("datetime64[us]") - NOON) // np.timedelta64(1, "s")
    columns = [table[name].to_pylist() for name in OHLCV]
    return list(zip(open_s.tolist(), *columns, strict=True))


ALL_BARS_MS = 6_900  # the bar of second 6 has not closed


def test_bars_include_trades_at_their_close_and_bars_without_trades_repeat_the_last_price() -> None:
    assert one_second_bars(TRADES, ALL_BARS_MS) == [
        (1, 10.0, 12.0, 9.0, 11.0, 4.5),
        (2, 11.0, 11.0, 11.0, 11.0, 0.0),
        (3, 11.0, 11.0, 11.0, 11.0, 0.0),
        (4, 13.0, 13.0, 13.0, 13.0, 4.0),
        (5, 13.0, 13.0, 13.0, 13.0, 0.0),
    ]


def test_the_bar_of_the_first_trade_is_left_out_but_its_price_is_used() -> None:
    assert one_second_bars([(400, 50.0, 9.0), (2_100, 40.0, 1.0)], 3_000) == [
        (1, 50.0, 50.0, 50.0, 50.0, 0.0),
        (2, 40.0, 40.0, 40.0, 40.0, 1.0),
    ]


@pytest.mark.parametrize(("end_ms", "closed_bars"), [(1_999, 0), (2_000, 1), (2_001, 1), (3_000, 2)])
def test_only_closed_bars_are_returned(end_ms: int, closed_bars: int) -> None:
    trades = [(ms, price, size) for ms, price, size in TRADES if ms <= end_ms]
    assert one_second_bars(trades, end_ms) == one_second_bars(TRADES, ALL_BARS_MS)[:closed_bars]


def test_bars_have_the_columns_of_the_other_providers() -> None:
    bars = bars_from_trades(trade_table(TRADES), "1h", NOON + np.timedelta64(2, "h")).to_pylist()
    assert bars == [
        {
            "symbol": "spot:AAA",
            "interval": "1h",
            "ts": datetime(2024, 8, 8, 13, tzinfo=UTC),
            **dict.fromkeys(("open", "high", "low", "close", "close_adjusted"), 13.0),
            "volume": 0.0,
            "turnover": None,
        }
    ]
