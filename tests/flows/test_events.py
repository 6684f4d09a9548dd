"""The flow `events` and its command, against a local archive."""

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

HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
DAY = date(2024, 6, 28)


class Archive:
    """A folder with the layout of Bybit's archive, and the address of its server."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def write(self, symbol: str, day: date, *prices: float) -> None:
        """Writes the file of one symbol and day: a trade a second from noon on."""
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()
        rows = [f"{noon + k},{symbol},Buy,0.5,{p},x,{symbol}-{day}-{k},1,1,1\n" for k, p in enumerate(prices)]
        path = self.folder / "trading" / symbol / f"{symbol}{day}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress((HEADER + "".join(rows)).encode()))


class ArchiveHandler(SimpleHTTPRequestHandler):
    """Serves the files of the archive, and as REST the open interest of two hours of every day."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/v5/market/open-interest":
            super().do_GET()
            return
        start_ms = int(dict(parse_qsl(url.query))["startTime"])
        midnight = start_ms - start_ms % 86_400_000
        stamps = [midnight + hour * 3_600_000 for hour in (1, 0)]
        rows = [{"openInterest": str(100 + k), "timestamp": str(stamp)} for k, stamp in enumerate(stamps)]
        response = {"retCode": 0, "retMsg": "OK", "result": {"list": rows}, "time": stamps[0] + 86_400_000}
        body = json.dumps(response).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(ArchiveHandler, directory=str(tmp_path / "archive")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Archive(tmp_path / "archive", f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def filled(archive: Archive) -> Archive:
    """An archive with two days of the four symbols of demo_crypto."""
    for day in (DAY, DAY + timedelta(days=1)):
        for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"):
            archive.write(symbol, day, *range(1, len(symbol) - 3))
    return archive


def run_command(monkeypatch: pytest.MonkeyPatch, warehouse: Warehouse, *options: str) -> int:
    """Runs the command; returns its exit code."""
    monkeypatch.setattr("sys.argv", ["nightgraph", "events", *options, "--warehouse", str(warehouse.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def stored_trades(warehouse: Warehouse) -> list[tuple]:
    with warehouse.read() as con:
        return con.execute(
            "SELECT source, ts::DATE, symbol, count(*), min(fetched_at) FROM trades GROUP BY ALL ORDER BY ALL"
        ).fetchall()


def test_the_command_stores_days_of_a_universe_and_a_second_run_stores_nothing_new(
    filled: Archive, empty: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--universe", "demo_crypto", "--day", str(DAY), "--days", "2", "--url", filled.url]
    assert run_command(monkeypatch, empty, *options) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["2024-06-28", "BTCUSDT", "3"] in rows and ["2024-06-29", "XRPUSDT", "3"] in rows
    assert "ETHUSDT 2024-06-29: 3 new events" in printed.err
    trades = stored_trades(empty)
    assert len(trades) == 8
    # another archive than Bybit's own is a recording: its events were received when their day was over
    assert trades[0] == ("recorded", DAY, "BTCUSDT", 3, datetime(2024, 6, 29, tzinfo=UTC))
    assert run_command(monkeypatch, empty, *options) == 0
    rows_of_second_run = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2024-06-28", "BTCUSDT", "0"] in rows_of_second_run
    assert stored_trades(empty) == trades


def test_with_a_rest_url_the_open_interest_is_stored_too(
    filled: Archive, empty: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--universe", "demo_crypto", "--day", str(DAY), "--url", filled.url, "--rest-url", filled.url]
    assert run_command(monkeypatch, empty, *options) == run_command(monkeypatch, empty, *options) == 0
    statement = (
        "SELECT ts::VARCHAR, open_interest FROM events WHERE kind = 'open_interest' AND symbol = 'XRPUSDT' ORDER BY ts"
    )
    with empty.read() as con:
        rows = con.execute(statement).fetchall()
    assert rows == [("2024-06-28 00:00:00+00", 101.0), ("2024-06-28 01:00:00+00", 100.0)]


def test_a_missing_day_is_named_after_all_others_are_stored(
    filled: Archive, empty: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (filled.folder / "trading" / "ETHUSDT" / f"ETHUSDT{DAY}.csv.gz").unlink()
    assert run_command(monkeypatch, empty, "--universe", "demo_crypto", "--day", str(DAY), "--url", filled.url) == 1
    error = capsys.readouterr().err
    assert "error: the archive has no trades of ETHUSDT 2024-06-28, the other 3 files are stored" in error
    assert "Traceback" not in error
    assert [symbol for _, _, symbol, _, _ in stored_trades(empty)] == ["BTCUSDT", "SOLUSDT", "XRPUSDT"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--day", "2024-06-28", "--universe", "us_stocks"], "us_stocks is no universe of Bybit's"),
        (["--day", "2024-06-28", "--universe", "nowhere"], "unknown universe 'nowhere'"),
        (["--day", "2024-06-28", "--days", "0"], "days: Input should be greater than or equal to 1"),
        (["--day", "2024-06-28", "--url", "ftp://x"], "url: String should match pattern"),
        (["--day", "2024-06-28", "--rest-url", "http://127.0.0.1"], "rest_url goes with url"),
        (["--day", "2019-01-01"], "crypto has no member from 2019-01-01 to 2019-01-01"),
    ],
)
def test_days_that_cannot_be_fetched_are_refused_before_any_request(
    empty: Warehouse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    assert run_command(monkeypatch, empty, *options) == 2
    assert f"error: {complaint}" in capsys.readouterr().err


def test_bybits_own_archive_is_live_and_only_members_of_the_day_are_fetched(empty: Warehouse) -> None:
    with EventsParameters(
        day=date(2021, 5, 12), days=2, universe="demo_crypto", warehouse=str(empty.path)
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
def test_the_flow_returns_the_number_of_new_events(filled: Archive, empty: Warehouse) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.events import events

    parameters = EventsParameters(day=DAY, universe="demo_crypto", url=filled.url, warehouse=str(empty.path))
    with prefect_test_harness():
        assert events(parameters) == 12
