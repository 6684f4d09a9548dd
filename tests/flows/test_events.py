"""The flow `events` and its command, against a local archive of trades and a local REST service.

The fixture ``empty_warehouse`` is a migrated warehouse without rows, see conftest.py.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from pydantic import ValidationError

from flows import cli
from flows.events import EventsParameters
from warehouse.connect import Warehouse

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")  # of the universe demo_crypto
HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
DAY = date(2024, 6, 28)
DAY_MS = 86_400_000
HOUR_MS = 3_600_000


class Archive:
    """A folder with the layout of Bybit's archive, and the address of its server."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def write(self, symbol: str, day: date, *prices: float) -> None:
        """Writes the file of one symbol and day with a trade at each price, one per second from noon UTC."""
        noon_s = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()
        rows = [f"{noon_s + k},{symbol},Buy,0.5,{price},x,{symbol}-{day}-{k},1,1,1\n" for k, price in enumerate(prices)]
        path = self.folder / "trading" / symbol / f"{symbol}{day}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress((HEADER + "".join(rows)).encode()))


class ArchiveHandler(SimpleHTTPRequestHandler):
    """Serves the files of the archive, and Bybit's REST path for open interest.

    The open interest of any day is 101 at midnight and 100 at 1:00, newest first, as Bybit sends it.
    """

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/v5/market/open-interest":
            super().do_GET()
            return
        start_ms = int(dict(parse_qsl(url.query))["startTime"])
        midnight_ms = start_ms - start_ms % DAY_MS
        values_by_ms = {midnight_ms + HOUR_MS: "100", midnight_ms: "101"}
        rows = [{"openInterest": value, "timestamp": str(ts_ms)} for ts_ms, value in values_by_ms.items()]
        now_ms = midnight_ms + HOUR_MS + DAY_MS
        response = {"retCode": 0, "retMsg": "OK", "result": {"list": rows}, "time": now_ms}
        body = json.dumps(response).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """An empty archive with its server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(ArchiveHandler, directory=str(tmp_path / "archive")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Archive(tmp_path / "archive", f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def filled_archive(archive: Archive) -> Archive:
    """An archive with three trades on each of two days of the four symbols of demo_crypto."""
    for day in (DAY, DAY + timedelta(days=1)):
        for symbol in SYMBOLS:
            archive.write(symbol, day, 1.0, 2.0, 3.0)
    return archive


def run_command(monkeypatch: pytest.MonkeyPatch, warehouse: Warehouse, *options: str) -> int:
    """Runs `nightgraph events` in this process; returns its exit code."""
    monkeypatch.setattr("sys.argv", ["nightgraph", "events", *options, "--warehouse", str(warehouse.path)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def stored_trades(warehouse: Warehouse) -> list[tuple]:
    """(source, UTC day, symbol, number of trades, first fetched_at) of the stored trades, sorted."""
    with warehouse.read() as con:
        return con.execute(
            "SELECT source, ts::DATE, symbol, count(*), min(fetched_at) FROM trades GROUP BY ALL ORDER BY ALL"
        ).fetchall()


def test_the_command_stores_days_of_a_universe_and_a_second_run_stores_nothing_new(
    filled_archive: Archive,
    empty_warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--universe", "demo_crypto", "--day", str(DAY), "--days", "2", "--url", filled_archive.url]
    assert run_command(monkeypatch, empty_warehouse, *options) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()]
    assert ["2024-06-28", "BTCUSDT", "3"] in rows and ["2024-06-29", "XRPUSDT", "3"] in rows
    assert "ETHUSDT 2024-06-29: 3 new events" in captured.err
    trades = stored_trades(empty_warehouse)
    assert len(trades) == 2 * len(SYMBOLS)
    # Any archive but Bybit's own is a recording: its events count as received at the end of their day.
    assert trades[0] == ("recorded", DAY, "BTCUSDT", 3, datetime(2024, 6, 29, tzinfo=UTC))
    assert run_command(monkeypatch, empty_warehouse, *options) == 0
    rows_of_second_run = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2024-06-28", "BTCUSDT", "0"] in rows_of_second_run
    assert stored_trades(empty_warehouse) == trades


def test_with_a_rest_url_the_open_interest_is_stored_once(
    filled_archive: Archive, empty_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--universe",
        "demo_crypto",
        "--day",
        str(DAY),
        "--url",
        filled_archive.url,
        "--rest-url",
        filled_archive.url,
    ]
    for _ in range(2):  # the second run stores nothing new
        assert run_command(monkeypatch, empty_warehouse, *options) == 0
    statement = (
        "SELECT ts::VARCHAR, open_interest FROM events WHERE kind = 'open_interest' AND symbol = 'XRPUSDT' ORDER BY ts"
    )
    with empty_warehouse.read() as con:
        rows = con.execute(statement).fetchall()
    assert rows == [("2024-06-28 00:00:00+00", 101.0), ("2024-06-28 01:00:00+00", 100.0)]


def test_a_missing_day_is_named_after_all_others_are_stored(
    filled_archive: Archive,
    empty_warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (filled_archive.folder / "trading" / "ETHUSDT" / f"ETHUSDT{DAY}.csv.gz").unlink()
    assert (
        run_command(
            monkeypatch, empty_warehouse, "--universe", "demo_crypto", "--day", str(DAY), "--url", filled_archive.url
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "error: the archive has no trades of ETHUSDT 2024-06-28, the other 3 files are stored" in error
    assert "Traceback" not in error
    assert [symbol for _, _, symbol, _, _ in stored_trades(empty_warehouse)] == ["BTCUSDT", "SOLUSDT", "XRPUSDT"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--day", "2024-06-28", "--universe", "us_stocks"], "us_stocks is not a universe of Bybit"),
        (["--day", "2024-06-28", "--universe", "nowhere"], "unknown universe 'nowhere'"),
        (["--day", "2024-06-28", "--days", "0"], "days: Input should be greater than or equal to 1"),
        (["--day", "2024-06-28", "--url", "ftp://x"], "url: String should match pattern"),
        (["--day", "2024-06-28", "--rest-url", "http://127.0.0.1"], "rest_url needs url"),
        (["--day", "2019-01-01"], "crypto has no member from 2019-01-01 to 2019-01-01"),
    ],
)
def test_days_that_cannot_be_fetched_are_refused_before_any_request(
    empty_warehouse: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert run_command(monkeypatch, empty_warehouse, *options) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_bybits_own_archive_is_live_and_only_members_of_the_day_are_fetched(empty_warehouse: Warehouse) -> None:
    with EventsParameters(
        day=date(2021, 5, 12), days=2, universe="demo_crypto", warehouse=str(empty_warehouse.path)
    ).job() as job:
        assert job.source == "live" and job.rest is not None
        assert list(job.files) == [
            (date(2021, 5, 12), "BTCUSDT"),
            (date(2021, 5, 12), "ETHUSDT"),
            (date(2021, 5, 13), "BTCUSDT"),
            (date(2021, 5, 13), "ETHUSDT"),
            (date(2021, 5, 13), "XRPUSDT"),
        ]


def test_the_day_is_required() -> None:
    with pytest.raises(ValidationError, match="day"):
        EventsParameters.model_validate({})


@pytest.mark.slow
def test_the_flow_returns_the_number_of_new_events(filled_archive: Archive, empty_warehouse: Warehouse) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.events import events

    parameters = EventsParameters(
        day=DAY, universe="demo_crypto", url=filled_archive.url, warehouse=str(empty_warehouse.path)
    )
    with prefect_test_harness():
        assert events(parameters) == 3 * len(SYMBOLS)  # three trades per symbol and day
