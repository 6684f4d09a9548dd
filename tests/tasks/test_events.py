"""Archived trades into the warehouse, and events as a network reads them."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import requests
from requests.adapters import BaseAdapter

from tasks.events import ArchiveJob, market_rows, readable_rows, store_archived_events
from tasks.markets.bybit_archive import TradeArchive
from tasks.markets.bybit_frames import Frames
from tasks.markets.event_rows import event_rows
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.migrate import migrate

DAY = date(2024, 8, 8)


@pytest.fixture(scope="module")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "warehouse.duckdb"
    migrate(Warehouse.at(path))
    return path


@pytest.fixture
def warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse.at(shutil.copy(migrated_file, tmp_path))


@pytest.mark.parametrize(
    "odd",
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
def test_a_row_that_is_no_event_is_left_out_and_told(odd: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    trade = {"kind": "trade", "symbol": "AAA", "ts": 5, "event_id": "1", "side": "buy", "price": 2.0, "size": 3.0}
    whole = readable_rows(event_rows([trade, trade | {"event_id": "2"}]), ("AAA",))
    assert len(whole) == 2 and caplog.text == ""
    rows = readable_rows(event_rows([trade, trade | {"event_id": "2"}, trade | {"event_id": "odd"} | odd]), ("AAA",))
    np.testing.assert_array_equal(rows, whole)
    assert "1 of 3 stored events cannot be read and are left out; the first is one of AAA at 1970-01-01" in caplog.text


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
    job, began = ArchiveJob(warehouse, canned_archive, "live", "crypto", [(DAY, "BTCUSDT")]), datetime.now(UTC)
    assert store_archived_events(job) == {(DAY, "BTCUSDT"): 2}
    assert store_archived_events(job) == {(DAY, "BTCUSDT"): 0}
    with warehouse.read() as con:
        stored = con.execute("SELECT source, venue, trade_id FROM trades ORDER BY ts").fetchall()
        ((received,),) = con.execute("SELECT DISTINCT fetched_at FROM events").fetchall()
    assert stored == [("live", "bybit", "aa-00"), ("live", "bybit", "aa-01")]
    assert began < received < datetime.now(UTC)  # what is fetched today no night of the past has known


def test_live_trades_are_received_when_they_are_written_and_not_when_the_download_began(
    canned_archive, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that begins meanwhile reads all of them or none, however often it looks."""
    download, came = canned_archive.trades, []

    def slowly(symbol: str, day: date):
        tables = list(download(symbol, day))
        came.append(datetime.now(UTC))
        yield from tables

    monkeypatch.setattr(canned_archive, "trades", slowly)
    store_archived_events(ArchiveJob(warehouse, canned_archive, "live", "crypto", [(DAY, "BTCUSDT")]))
    with warehouse.read() as con:
        ((received,),) = con.execute("SELECT DISTINCT fetched_at FROM events").fetchall()
    assert received > came[0]


@pytest.mark.parametrize(("night", "after"), [(date(2024, 8, 7), timedelta()), (DAY, timedelta(microseconds=1))])
def test_recorded_trades_never_slip_in_behind_a_published_night(
    canned_archive, warehouse: Warehouse, night: date, after: timedelta
) -> None:
    clock = datetime(night.year, night.month, night.day + 1, tzinfo=UTC)
    with warehouse.write("nights") as con:
        for universe, published in (("crypto", clock), ("crypto_wide", clock + timedelta(days=9))):
            con.execute(
                "INSERT INTO store.nights BY NAME SELECT $night AS night, 'recorded' AS source, $universe AS universe, "
                "'r' AS run_id, $clock AS clock, '{}' AS settings, '' AS settings_hash, 'published' AS state, "
                "$clock AS published_at",
                {"night": night, "universe": universe, "clock": published},
            )
    store_archived_events(ArchiveJob(warehouse, canned_archive, "recorded", "crypto", [(DAY, "BTCUSDT")]))
    with warehouse.read() as con:
        ((received,),) = con.execute("SELECT DISTINCT fetched_at FROM events").fetchall()
    assert received == datetime(2024, 8, 9, tzinfo=UTC) + after


def test_a_trade_that_the_stream_and_the_archive_both_have_is_stored_once(canned_archive, warehouse: Warehouse) -> None:
    """The archive dates it finer, 00:00:00.2507: whichever comes first, the other adds none."""
    job = ArchiveJob(warehouse, canned_archive, "live", "crypto", [(DAY, "BTCUSDT")])
    data = {"T": 1_723_075_200_250, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "2", "i": "aa-00"}
    frame = json.dumps({"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": data["T"], "data": [data]})
    streamed = event_rows(Frames(("BTCUSDT",)).read(frame))
    stamps = {"source": "live", "venue": "bybit", "run_id": "r", "fetched_at": datetime(2024, 8, 9, tzinfo=UTC)}
    with warehouse.write("stream") as con:
        assert append_events(con, streamed, **stamps) == 1
    assert store_archived_events(job) == {(DAY, "BTCUSDT"): 1}
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
