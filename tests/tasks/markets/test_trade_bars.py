"""Bars of hand-written trades."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from models.panel import TS_TYPE
from tasks.markets.trade_bars import bars_of_trades

NOON = np.datetime64("2024-08-08T12:00:00", "us")
TRADES = [  # milliseconds after noon, price, size
    (400, 50.0, 9.0),  # within the bar in which the recording may have begun
    (1_001, 10.0, 1.0),
    (1_500, 12.0, 2.0),
    (1_900, 9.0, 1.0),
    (2_000, 11.0, 0.5),  # at the very close: of this bar still
    (4_250, 13.0, 4.0),
]


def table(rows: list[tuple[int, float, float]]) -> pa.Table:
    milliseconds, price, size = zip(*rows, strict=True)
    ts = NOON + np.array(milliseconds) * np.timedelta64(1, "ms")
    return pa.table(
        {"symbol": ["spot:AAA"] * len(rows), "ts": pa.array(ts).cast(TS_TYPE), "price": price, "size": size}
    )


def bars(rows: list[tuple[int, float, float]], end_ms: int, interval: str = "1s") -> list[tuple]:
    made = bars_of_trades(table(rows), interval, NOON + np.timedelta64(end_ms, "ms"))
    seconds = (made["ts"].to_numpy().astype("datetime64[us]") - NOON) // np.timedelta64(1, "s")
    columns = [made[name].to_pylist() for name in ("open", "high", "low", "close", "volume")]
    return list(zip(seconds.tolist(), *columns, strict=True))


def test_a_bar_has_the_trades_after_its_open_up_to_its_close_and_an_empty_one_the_last_price() -> None:
    assert bars(TRADES, 6_900) == [
        (1, 10.0, 12.0, 9.0, 11.0, 4.5),
        (2, 11.0, 11.0, 11.0, 11.0, 0.0),
        (3, 11.0, 11.0, 11.0, 11.0, 0.0),
        (4, 13.0, 13.0, 13.0, 13.0, 4.0),
        (5, 13.0, 13.0, 13.0, 13.0, 0.0),
    ]


def test_the_bar_of_the_first_trade_is_left_out_but_its_price_is_known() -> None:
    assert bars([(400, 50.0, 9.0), (2_100, 40.0, 1.0)], 3_000) == [
        (1, 50.0, 50.0, 50.0, 50.0, 0.0),
        (2, 40.0, 40.0, 40.0, 40.0, 1.0),
    ]


@pytest.mark.parametrize(("end_ms", "last"), [(1_999, None), (2_000, 1), (2_001, 1), (3_000, 2)])
def test_only_closed_bars_are_given(end_ms: int, last: int | None) -> None:
    known = [row for row in TRADES if row[0] <= end_ms]
    made = bars(known, end_ms)
    assert (made[-1][0] if made else None) == last
    assert made == bars(TRADES, 6_900)[: len(made)]


def test_bars_are_rows_as_any_provider_s() -> None:
    made = bars_of_trades(table(TRADES), "1h", NOON + np.timedelta64(2, "h")).to_pylist()
    assert made == [
        {
            "symbol": "spot:AAA",
            "interval": "1h",
            "ts": (NOON + np.timedelta64(1, "h")).tolist().replace(tzinfo=made[0]["ts"].tzinfo),
            **dict.fromkeys(("open", "high", "low", "close", "close_adjusted"), 13.0),
            "volume": 0.0,
            "turnover": None,
        }
    ]
