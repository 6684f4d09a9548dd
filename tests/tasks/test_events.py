"""Recorded and archived events into the warehouse, and out of it as a network reads them."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from requests.adapters import BaseAdapter

from models.graphs.events import KINDS
from models.graphs.market_events import COLUMN
from tasks.errors import TapeMalformedError, TapeMissingError
from tasks.events import load_events, market_rows, store_archived_trades, store_recorded_events
from tasks.markets.bybit_archive import TradeArchive
from tasks.markets.bybit_frames import Frames
from tasks.markets.event_rows import event_rows
from tasks.markets.recorded_events import RecordedEvents
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.migrate import migrate

BEGAN_MS = 1_723_161_255_000
SLOW_NS = 1_250_000_000  # so much the recorder's clock is behind


@pytest.fixture(scope="module")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "warehouse.duckdb"
    migrate(Warehouse.at(path))
    return path


@pytest.fixture
def warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse.at(shutil.copy(migrated_file, tmp_path))


def recording(**changes: list) -> dict[str, list]:
    """Four trades at two venues, each received 5, 2, 9 and 3 ms after it by a clock that is behind."""
    stamps, delays = [BEGAN_MS + 100 * k for k in range(4)], (5, 2, 9, 3)
    return {
        "venue": ["one", "one", "one", "two"],
        "symbol": ["AAA", "BBB", "AAA", "AAA"],
        "ts_ms": stamps,
        "received_ns": [1_000_000 * (s + d) - SLOW_NS for s, d in zip(stamps, delays, strict=True)],
        "side": ["buy", "sell", "sell", "buy"],
        "price": [10.0, 20.0, 11.0, 10.5],
        "size": [1.0, 2.0, 3.0, 4.0],
        "trade_id": [1, 1, 2, 1],
        **changes,
    }


def book_at(received_ns: int) -> dict[str, list]:
    prices = {"bid": [9.9], "bid_size": [5.0], "ask": [10.1], "ask_size": [6.0]}
    return {"venue": ["one"], "symbol": ["AAA"], "received_ns": [received_ns], **prices}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "events"
    folder.mkdir()
    pq.write_table(pa.table(recording()), folder / "trades_2024-08-08.parquet")
    pq.write_table(pa.table(book_at(1_000_000 * (BEGAN_MS + 52) - SLOW_NS)), folder / "top_of_book_x.parquet")
    return folder


def test_a_recording_goes_in_by_venue_and_twice_changes_nothing(folder: Path, warehouse: Warehouse) -> None:
    assert store_recorded_events(warehouse, folder) == {"one": 4, "two": 1}
    assert store_recorded_events(warehouse, folder) == {"one": 0, "two": 0}
    with warehouse.read() as con:
        rows = con.execute("SELECT DISTINCT source, fetched_at FROM events").fetchall()
        trades = con.execute("SELECT venue, symbol, trade_id, side, price FROM trades ORDER BY ts").fetchall()
    received = datetime.fromtimestamp((BEGAN_MS + 303) / 1000 - SLOW_NS / 1e9, UTC)
    assert rows == [("recorded", received)]
    assert trades[0] == ("one", "AAA", "1", "buy", 10.0)
    assert [trade[:3] for trade in trades[1:]] == [("one", "BBB", "1"), ("one", "AAA", "2"), ("two", "AAA", "1")]


def test_a_book_is_dated_by_the_exchange_s_clock_and_never_before_it_stood(folder: Path) -> None:
    rows = RecordedEvents(folder).events("one").to_pylist()
    (book,) = [row for row in rows if row["kind"] == "book"]
    # it was received 52 ms after the beginning; the fastest trade of the venue took 2 ms
    assert book["ts"] == datetime.fromtimestamp((BEGAN_MS + 50) / 1000, UTC)
    assert (book["bid"], book["ask_size"]) == (9.9, 6.0)


def test_venues_name_what_is_traded_there(folder: Path) -> None:
    assert RecordedEvents(folder).venues() == {"one": ("AAA", "BBB"), "two": ("AAA",)}


def test_a_folder_without_trades_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TapeMissingError, match=r"no trades_\*\.parquet in"):
        RecordedEvents(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"side": ["buy", "sell", "both", "buy"]},
        {"price": [10.0, 20.0, 0.0, 10.5]},
        {"size": [1.0, 2.0, float("nan"), 4.0]},
        {"trade_id": [1, 1, None, 1]},
    ],
    ids=["side", "price", "size", "id"],
)
def test_a_row_that_no_trade_can_be_is_named(folder: Path, changes: dict[str, list]) -> None:
    pq.write_table(pa.table(recording(**changes)), folder / "trades_2024-08-08.parquet")
    with pytest.raises(TapeMalformedError, match=r"trades_2024-08-08\.parquet: row 2 is no event: \[\{'venue': 'one'"):
        RecordedEvents(folder)


def test_a_file_that_lacks_a_column_or_is_none_is_refused(folder: Path) -> None:
    path = folder / "trades_2024-08-08.parquet"
    pq.write_table(pa.table(recording()).drop_columns("side"), path)
    with pytest.raises(TapeMalformedError, match="cannot be read as venue, symbol, side"):
        RecordedEvents(folder)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(TapeMalformedError, match="cannot be read as venue, symbol, side"):
        RecordedEvents(folder)


def test_what_is_loaded_is_in_order_between_the_symbols_nodes(folder: Path, warehouse: Warehouse) -> None:
    store_recorded_events(warehouse, folder)
    start, end = datetime(2024, 8, 8, tzinfo=UTC), datetime(2024, 8, 10, tzinfo=UTC)
    events = load_events(warehouse, "recorded", "one", ("AAA", "BBB"), start, end)
    assert [KINDS[kind] for kind in events.kind] == ["trade", "book", "trade", "trade"]
    assert [events.nodes[node] for node in events.src] == ["trade:AAA", "book:AAA:ask", "trade:BBB", "trade:AAA"]
    assert events.t.tolist() == [1000 * (BEGAN_MS + ms) for ms in (0, 50, 100, 200)]
    np.testing.assert_allclose(events.features[-1, COLUMN["return"]], 100 * np.log(1.1), rtol=1e-6)
    assert events.features[:, COLUMN["side"]].tolist() == [1, 0, -1, -1]
    assert len(load_events(warehouse, "recorded", "one", ("BBB",), start, end)) == 1
    assert len(load_events(warehouse, "live", "one", ("AAA",), start, end)) == 0


def test_a_key_tells_events_apart_by_what_makes_them_one() -> None:
    row = {"kind": "trade", "symbol": "AAA", "ts": 5, "event_id": "1"}
    others = [row, row | {"price": 3.0}, row | {"ts": 6}, row | {"event_id": "2"}, row | {"kind": "liquidation"}]
    keys = market_rows(event_rows([*others, row | {"symbol": "BBB"}]), ("AAA", "BBB"))["key"]
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 5
    assert keys[0] == 6663218034592857650  # in every run: a saved state knows events by it


def test_a_day_of_the_archive_adds_only_the_trades_that_the_stream_has_not(
    canned_archive, warehouse: Warehouse
) -> None:
    day, received = date(2024, 8, 8), datetime(2024, 8, 9, tzinfo=UTC)
    assert store_archived_trades(warehouse, canned_archive, "BTCUSDT", day, received) == 2
    assert store_archived_trades(warehouse, canned_archive, "BTCUSDT", day, received) == 0
    with warehouse.read() as con:
        stored = con.execute("SELECT source, venue, trade_id FROM trades ORDER BY ts").fetchall()
    assert stored == [("live", "bybit", "aa-00"), ("live", "bybit", "aa-01")]


def test_a_trade_that_the_stream_and_the_archive_both_have_is_stored_once(canned_archive, warehouse: Warehouse) -> None:
    """The archive dates it finer, 00:00:00.2507: whichever comes first, the other adds none."""
    day, received = date(2024, 8, 8), datetime(2024, 8, 9, tzinfo=UTC)
    data = {"T": 1_723_075_200_250, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "2", "i": "aa-00"}
    frame = json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": data["T"], "data": [data]})
    streamed = event_rows(Frames(("BTCUSDT",)).read(frame))
    stamps = {"source": "live", "venue": "bybit", "run_id": "r", "fetched_at": received}
    with warehouse.write("stream") as con:
        assert append_events(con, streamed, **stamps) == 1
    assert store_archived_trades(warehouse, canned_archive, "BTCUSDT", day, received) == 1
    with warehouse.write("stream") as con:
        assert append_events(con, streamed, **stamps) == 0
    with warehouse.read() as con:
        assert con.execute("SELECT trade_id FROM trades ORDER BY ts").fetchall() == [("aa-00",), ("aa-01",)]


@pytest.fixture
def canned_archive() -> TradeArchive:
    """An archive with one file, newest first."""
    header = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
    rows = "1723075200.5,BTCUSDT,Sell,1,2,x,aa-01,1,1,1\n1723075200.2507,BTCUSDT,Buy,1,2,x,aa-00,1,1,1\n"

    class OneFile(BaseAdapter):
        def send(self, request, **_):
            response = requests.Response()
            response.status_code, response.request, response.url = 200, request, request.url
            response.raw = io.BytesIO(gzip.compress((header + rows).encode()))
            return response

        def close(self) -> None:
            pass

    session = requests.Session()
    session.mount("https://", OneFile())
    return TradeArchive(session)


def test_the_recorded_trades_at_hand_go_in_whole(shared_data: Path, warehouse: Warehouse) -> None:
    stored = store_recorded_events(warehouse, shared_data / "events")
    assert sum(stored.values()) == 55_270 + 16_715
    with warehouse.read() as con:
        venues = con.execute("SELECT venue, count(*) FROM trades GROUP BY venue ORDER BY venue").fetchall()
        span = con.execute("SELECT min(ts), max(ts) FROM events WHERE kind = 'book'").fetchone()
    assert venues == [("binance_cm", 4_018), ("binance_spot", 15_863), ("binance_usdm", 35_389)]
    assert span[0] > datetime(2024, 8, 8, 23, 54, 15, tzinfo=UTC)
    start = datetime(2024, 8, 8, tzinfo=UTC)
    events = load_events(warehouse, "recorded", "binance_usdm", ("BTCUSDT", "ETHUSDT"), start, datetime.now(UTC))
    assert len(events) == 35_389 + 3_334 + 3_281
