"""The archive job: archived trades are stored once, and count as received after every published night's clock.

A night is the run for one as-of date; it reads the events received up to its clock.
"""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, date, datetime, timedelta

import pytest
import requests
from requests.adapters import BaseAdapter

from models.sessions import midnight_after
from tasks.events import ArchiveJob, store_archived_events
from tasks.markets.bybit_archive import TradeArchive
from tasks.markets.bybit_frames import FrameReader
from tasks.markets.event_rows import event_rows
from warehouse.connect import Warehouse
from warehouse.events import append_events

DAY = date(2024, 8, 8)


def test_an_archived_day_adds_only_trades_that_are_not_stored_yet(
    canned_archive: TradeArchive, warehouse: Warehouse
) -> None:
    job = ArchiveJob(warehouse, canned_archive, "live", "crypto", [(DAY, "BTCUSDT")])
    started_at = datetime.now(UTC)
    assert store_archived_events(job) == {(DAY, "BTCUSDT"): 2}
    assert store_archived_events(job) == {(DAY, "BTCUSDT"): 0}
    with warehouse.read() as con:
        stored = con.execute("SELECT source, venue, trade_id FROM trades ORDER BY ts").fetchall()
        ((received_at,),) = con.execute("SELECT DISTINCT fetched_at FROM events").fetchall()
    assert stored == [("live", "bybit", "aa-00"), ("live", "bybit", "aa-01")]
    assert started_at < received_at < datetime.now(UTC)  # after the clock of every past night


def test_live_trades_count_as_received_when_they_are_written_not_when_the_download_began(
    canned_archive: TradeArchive, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So every query of a night that begins during the download reads either all of the trades or none."""
    download = canned_archive.trades
    downloaded_at = []

    def download_then_note_time(symbol: str, day: date):
        tables = list(download(symbol, day))
        downloaded_at.append(datetime.now(UTC))
        yield from tables

    monkeypatch.setattr(canned_archive, "trades", download_then_note_time)
    store_archived_events(ArchiveJob(warehouse, canned_archive, "live", "crypto", [(DAY, "BTCUSDT")]))
    with warehouse.read() as con:
        ((received_at,),) = con.execute("SELECT DISTINCT fetched_at FROM events").fetchall()
    assert received_at > downloaded_at[0]


@pytest.mark.parametrize(
    ("night", "after_midnight"), [(date(2024, 8, 7), timedelta()), (DAY, timedelta(microseconds=1))]
)
def test_recorded_trades_count_as_received_after_the_newest_published_night(
    canned_archive: TradeArchive, warehouse: Warehouse, night: date, after_midnight: timedelta
) -> None:
    clock = midnight_after(night)
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
        ((received_at,),) = con.execute("SELECT DISTINCT fetched_at FROM events").fetchall()
    assert received_at == midnight_after(DAY) + after_midnight


def test_a_trade_from_both_the_stream_and_the_archive_is_stored_once(
    canned_archive: TradeArchive, warehouse: Warehouse
) -> None:
    """The archive's time, 00:00:00.2507, is finer than the stream's; still neither source adds a row."""
    job = ArchiveJob(warehouse, canned_archive, "live", "crypto", [(DAY, "BTCUSDT")])
    streamed_trade = {"T": 1_723_075_200_250, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "2", "i": "aa-00"}
    frame = json.dumps(
        {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": streamed_trade["T"], "data": [streamed_trade]}
    )
    streamed = event_rows(FrameReader(("BTCUSDT",)).read(frame))
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
    """An archive that answers every request with one file of two trades, the newest first."""
    header = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
    rows = "1723075200.5,BTCUSDT,Sell,1,2,x,aa-01,1,1,1\n1723075200.2507,BTCUSDT,Buy,1,2,x,aa-00,1,1,1\n"

    class OneFileAdapter(BaseAdapter):
        def send(self, request, **_):
            response = requests.Response()
            response.status_code = 200
            response.request = request
            response.url = request.url
            response.raw = io.BytesIO(gzip.compress((header + rows).encode()))
            return response

        def close(self) -> None:
            pass

    http_session = requests.Session()
    http_session.mount("https://", OneFileAdapter())
    return TradeArchive(http_session)
