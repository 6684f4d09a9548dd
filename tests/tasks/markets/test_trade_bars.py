"""Bars computed from hand-written trades."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from tasks.markets.trade_bars import bars_from_trades

NOON = np.datetime64("2024-08-08T12:00:00", "us")
TRADES = [  # milliseconds after noon, price, size
    (400, 50.0, 9.0),  # in the bar in which the recording may have started
    (1_001, 10.0, 1.0),
    (1_500, 12.0, 2.0),
    (1_900, 9.0, 1.0),
    (2_000, 11.0, 0.5),  # exactly at the close: belongs to this bar
    (4_250, 13.0, 4.0),
]


def trade_table(rows: list[tuple[int, float, float]]) -> pa.Table:
    milliseconds, price, size = zip(*rows, strict=True)
    ts = NOON + np.array(milliseconds) * np.timedelta64(1, "ms")
    return pa.table(
        {"symbol": ["spot:AAA"] * len(rows), "ts": pa.array(ts).cast(TS_TYPE), "price": price, "size": size}
    )


def bar_rows(rows: list[tuple[int, float, float]], end_ms: int, interval: str = "1s") -> list[tuple]:
    """(seconds after noon, open, high, low, close, volume) of the bars of these trades."""
    table = bars_from_trades(trade_table(rows), interval, NOON + np.timedelta64(end_ms, "ms"))
    seconds = (table["ts"].to_numpy().astype("datetime64[us]") - NOON) // np.timedelta64(1, "s")
    columns = [table[name].to_pylist() for name in ("open", "high", "low", "close", "volume")]
    return list(zip(seconds.tolist(), *columns, strict=True))


def test_a_bar_includes_trades_at_its_close_but_not_at_its_open_and_an_empty_bar_repeats_the_last_price() -> None:
    assert bar_rows(TRADES, 6_900) == [
        (1, 10.0, 12.0, 9.0, 11.0, 4.5),
        (2, 11.0, 11.0, 11.0, 11.0, 0.0),
        (3, 11.0, 11.0, 11.0, 11.0, 0.0),
        (4, 13.0, 13.0, 13.0, 13.0, 4.0),
        (5, 13.0, 13.0, 13.0, 13.0, 0.0),
    ]


def test_the_bar_of_the_first_trade_is_left_out_but_its_price_is_used() -> None:
    assert bar_rows([(400, 50.0, 9.0), (2_100, 40.0, 1.0)], 3_000) == [
        (1, 50.0, 50.0, 50.0, 50.0, 0.0),
        (2, 40.0, 40.0, 40.0, 40.0, 1.0),
    ]


@pytest.mark.parametrize(("end_ms", "last"), [(1_999, None), (2_000, 1), (2_001, 1), (3_000, 2)])
def test_only_closed_bars_are_returned(end_ms: int, last: int | None) -> None:
    closed_bars = bar_rows([row for row in TRADES if row[0] <= end_ms], end_ms)
    assert (closed_bars[-1][0] if closed_bars else None) == last
    assert closed_bars == bar_rows(TRADES, 6_900)[: len(closed_bars)]


def test_bars_have_the_columns_of_the_other_providers() -> None:
    bars = bars_from_trades(trade_table(TRADES), "1h", NOON + np.timedelta64(2, "h")).to_pylist()
    assert bars == [
        {
            "symbol": "spot:AAA",
            "interval": "1h",
            "ts": (NOON + np.timedelta64(1, "h")).tolist().replace(tzinfo=bars[0]["ts"].tzinfo),
            **dict.fromkeys(("open", "high", "low", "close", "close_adjusted"), 13.0),
            "volume": 0.0,
            "turnover": None,
        }
    ]
