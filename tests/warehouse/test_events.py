"""Events of an exchange: each is stored once, however often it is written, and events are read in order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from tasks.markets.event_rows import event_columns, event_rows
from warehouse.connect import Warehouse
from warehouse.errors import RowsRefusedError
from warehouse.events import append_events

START = datetime(2024, 8, 8, tzinfo=UTC)
CONSTANTS = {"source": "live", "venue": "bybit", "run_id": "run"}


def trade(number: int, **columns: object) -> dict:
    """A row of one trade, ``number`` seconds after START, with the event_id ``number``; ``columns`` replace values."""
    row = {"kind": "trade", "symbol": "BTCUSDT", "ts": START + timedelta(seconds=number), "event_id": str(number)}
    row |= {"side": "buy", "price": 100.0 + number, "size": 2.0}
    return row | columns


def book(bid_size: float, ask_size: float) -> dict:
    """A row of an order book at START."""
    sizes = {"bid": 99.0, "ask": 101.0, "bid_size": bid_size, "ask_size": ask_size}
    return {"kind": "book", "symbol": "BTCUSDT", "ts": START, "event_id": f"{bid_size}", **sizes}


def write_events(
    warehouse: Warehouse, rows: list[dict] | pa.Table, fetched_at: datetime = START, **constants: str
) -> int:
    """Writes the rows; returns how many were new. ``constants`` replace values of CONSTANTS."""
    table = event_rows(rows) if isinstance(rows, list) else rows
    with warehouse.write("events") as con:
        return append_events(con, table, fetched_at=fetched_at, **{**CONSTANTS, **constants})


def select(warehouse: Warehouse, statement: str) -> list[tuple]:
    with warehouse.read() as con:
        return con.execute(statement).fetchall()


def test_an_event_written_twice_is_one_row_with_its_first_receipt(warehouse: Warehouse) -> None:
    assert write_events(warehouse, [trade(1), trade(2)]) == 2
    assert write_events(warehouse, [trade(2), trade(3), trade(3)], START + timedelta(hours=1)) == 1
    stored = select(warehouse, "SELECT event_id, fetched_at FROM events ORDER BY ts")
    assert stored == [("1", START), ("2", START), ("3", START + timedelta(hours=1))]


def test_the_same_event_id_of_another_source_venue_kind_or_symbol_is_another_event(warehouse: Warehouse) -> None:
    write_events(warehouse, [trade(1)])
    assert write_events(warehouse, [trade(1)], source="recorded") == 1
    assert write_events(warehouse, [trade(1)], venue="elsewhere") == 1
    assert write_events(warehouse, [trade(1, kind="liquidation"), trade(1, symbol="ETHUSDT")]) == 2
    assert select(warehouse, "SELECT count(*), count(DISTINCT venue) FROM events") == [(5, 2)]


def test_every_kind_of_event_joins_its_source_node_to_its_asset_node(warehouse: Warehouse) -> None:
    rows = [trade(1), trade(2, kind="liquidation"), book(2, 1), book(1, 2), trade(3, kind="funding")]
    write_events(warehouse, [*rows, trade(4, kind="open_interest")])
    assert select(warehouse, "SELECT DISTINCT dst FROM events") == [("asset:BTCUSDT",)]
    assert [src for (src,) in select(warehouse, "SELECT src FROM events ORDER BY src")] == [
        "book:BTCUSDT:ask",
        "book:BTCUSDT:bid",
        "external:open_interest",
        "funding:BTCUSDT",
        "liquidation:BTCUSDT",
        "trade:BTCUSDT",
    ]


def test_the_view_trades_has_the_events_of_kind_trade(warehouse: Warehouse) -> None:
    write_events(warehouse, [trade(1), book(2, 1), trade(2, kind="liquidation")])
    columns = "source, venue, symbol, ts, trade_id, side, price, size"
    expected = ("live", "bybit", "BTCUSDT", START + timedelta(seconds=1), "1", "buy", 101.0, 2.0)
    assert select(warehouse, f"SELECT {columns} FROM trades") == [expected]


def test_events_are_read_by_bar_in_order_of_time_and_after_an_instant_in_order_of_receipt(warehouse: Warehouse) -> None:
    write_events(warehouse, [trade(5)], START)
    write_events(warehouse, [trade(4), trade(1), trade(9, symbol="OTHER")], START + timedelta(hours=1))
    keys = {"source": "live", "venue": "bybit", "symbols": ["BTCUSDT"]}
    rows = warehouse.query(
        "bar_events_between",
        **keys,
        start=START,
        end=START + timedelta(seconds=5),
        received=datetime.now(UTC),
        least_value=0.0,
    )
    assert rows["event_id"].to_pylist() == ["1", "4"]
    rows = warehouse.query("events_after", **keys, received=START, archived="archive")
    assert rows["event_id"].to_pylist() == ["1", "4"]
    rows = warehouse.query("events_after", **keys, received=START - timedelta(seconds=1), archived="archive")
    assert rows["event_id"].to_pylist() == ["5", "1", "4"]


def test_the_last_event_of_each_kind_and_symbol_is_read(warehouse: Warehouse) -> None:
    write_events(warehouse, [trade(1), trade(2), trade(7, symbol="OTHER"), trade(1, kind="funding", rate=0.5)])
    keys = {"source": "live", "venue": "bybit", "symbols": ["BTCUSDT"], "since": START}
    assert [
        (row["kind"], row["ts"].second, row["rate"]) for row in warehouse.query("last_events", **keys).to_pylist()
    ] == [
        ("funding", 1, 0.5),
        ("trade", 2, None),
    ]


def test_no_rows_write_nothing(warehouse: Warehouse) -> None:
    assert write_events(warehouse, []) == 0


def test_an_event_without_an_event_id_is_refused_and_nothing_is_written(warehouse: Warehouse) -> None:
    rows = event_columns("trade", 1, symbol=["BTCUSDT"], ts=pa.array([START], pa.timestamp("us", "UTC")))
    with pytest.raises(RowsRefusedError, match=r"store\.events.*event_id"):
        write_events(warehouse, rows)
    assert select(warehouse, "SELECT count(*) FROM events") == [(0,)]
