"""The trade archive against a local server: blocks of typed rows, broken downloads, files of another shape."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tasks.errors import ForbiddenError, MalformedAnswerError, NoPricesError, OutageError
from tasks.markets import bybit_archive
from tasks.markets.bybit_archive import TradeArchive
from tasks.markets.event_rows import EVENT_SCHEMA
from tasks.markets.retry_policy import RetryPolicy

DAY = date(2024, 8, 8)
PATH = "/trading/BTCUSDT/BTCUSDT2024-08-08.csv.gz"
HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
NEWER_TRADE = "1723075200.0646,BTCUSDT,Sell,0.003,55133.1,ZeroMinusTick,aa-01,1.65e+10,0.003,165.4\n"
OLDER_TRADE = "1723075199.999999,BTCUSDT,Buy,1.5,55133.2,PlusTick,aa-00,8.2e+12,1.5,82699.8\n"


@dataclass
class ArchiveScript:
    """The server's answers in order, the last one repeated: status, body, whether only half of it is sent, headers."""

    url: str = ""
    answers: list[tuple[int, bytes, bool, dict[str, str]]] = field(default_factory=list)
    requested_paths: list[str] = field(default_factory=list)

    def add(self, body: bytes | str, status: int = 200, cut: bool = False, **headers: str) -> None:
        self.answers.append((status, gzip.compress(body.encode()) if isinstance(body, str) else body, cut, headers))


@pytest.fixture
def script() -> Iterator[ArchiveScript]:
    script = ArchiveScript()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.requested_paths.append(self.path)
            status, body, cut, headers = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def archive(script: ArchiveScript) -> Iterator[TradeArchive]:
    client = TradeArchive(retry_policy=RetryPolicy(attempts=3, sleep=lambda _: None), url=script.url)
    yield client
    client.close()


def read_rows(archive: TradeArchive) -> list[dict]:
    return [row for table in archive.trades("BTCUSDT", DAY) for row in table.to_pylist()]


def test_rows_are_typed_in_the_files_order_and_rounded_down_to_the_millisecond(
    script: ArchiveScript, archive: TradeArchive
) -> None:
    script.add(HEADER + NEWER_TRADE + OLDER_TRADE)
    tables = list(archive.trades("BTCUSDT", DAY))
    assert [table.schema for table in tables] == [EVENT_SCHEMA]
    assert script.requested_paths == [PATH]
    rows = [{name: value for name, value in row.items() if value is not None} for row in tables[0].to_pylist()]
    shared = {"kind": "trade", "symbol": "BTCUSDT"}
    newer = datetime(2024, 8, 8, 0, 0, 0, 64_000, UTC)
    older = datetime(2024, 8, 7, 23, 59, 59, 999_000, UTC)
    assert rows == [
        {**shared, "ts": newer, "event_id": "aa-01", "side": "sell", "size": 0.003, "price": 55133.1},
        {**shared, "ts": older, "event_id": "aa-00", "side": "buy", "size": 1.5, "price": 55133.2},
    ]


def test_a_long_day_is_returned_in_blocks(
    script: ArchiveScript, archive: TradeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bybit_archive, "BLOCK_BYTES", 4_096)
    script.add(HEADER + NEWER_TRADE * 500)
    sizes = [table.num_rows for table in archive.trades("BTCUSDT", DAY)]
    assert sum(sizes) == 500
    assert len(sizes) > 5


def test_a_file_that_the_server_has_decompressed_is_read_too(script: ArchiveScript, archive: TradeArchive) -> None:
    script.add(HEADER + NEWER_TRADE, Content_Encoding="gzip")
    assert [row["event_id"] for row in read_rows(archive)] == ["aa-01"]


def test_a_broken_download_is_repeated_before_any_row_is_used(script: ArchiveScript, archive: TradeArchive) -> None:
    script.add(HEADER + NEWER_TRADE, cut=True)
    script.add(b"", status=503)
    script.add(HEADER + OLDER_TRADE)
    assert [row["event_id"] for row in read_rows(archive)] == ["aa-00"]
    assert len(script.requested_paths) == 3


def test_a_missing_day_raises_without_a_retry(script: ArchiveScript, archive: TradeArchive) -> None:
    script.add(b"<html>404</html>", status=404)
    with pytest.raises(NoPricesError, match=f"{PATH}: HTTP 404, no such file; a day is there from the next morning on"):
        read_rows(archive)
    assert len(script.requested_paths) == 1


@pytest.mark.parametrize(("status", "error"), [(503, OutageError), (403, ForbiddenError)])
def test_a_lasting_server_error_is_raised_by_name(
    script: ArchiveScript, archive: TradeArchive, status: int, error: type[Exception]
) -> None:
    script.add(b"", status=status)
    with pytest.raises(error, match=f"{PATH}: HTTP {status}"):
        read_rows(archive)


WHOLE_FILE = gzip.compress((HEADER + NEWER_TRADE * 5_000).encode())


@pytest.mark.parametrize(
    "body",
    [
        WHOLE_FILE[: len(WHOLE_FILE) // 2],
        b"<html>maintenance</html>",
        gzip.compress(b""),
        gzip.compress(b"timestamp,symbol,side\n1.0,BTCUSDT,Buy\n"),
        gzip.compress((HEADER + NEWER_TRADE.replace("55133.1", "dear")).encode()),
        gzip.compress((HEADER + NEWER_TRADE.rpartition(",")[0] + "\n").encode()),
    ],
    ids=["truncated", "a page", "empty", "lacks columns", "a word for a price", "a row too short"],
)
def test_a_file_of_another_shape_is_refused_by_name(script: ArchiveScript, archive: TradeArchive, body: bytes) -> None:
    script.add(body)
    with pytest.raises(MalformedAnswerError, match=f"{PATH}: cut short, or not the CSV we know with timestamp, symbol"):
        read_rows(archive)


@pytest.mark.parametrize(
    ("text", "replacement"),
    [("BTCUSDT", "ETHUSDT"), ("Sell", "sold"), ("0.003,55", "0,55"), ("55133.1", "-1"), ("1723", "")],
)
def test_a_row_that_is_not_a_valid_trade_is_shown_in_the_error(
    script: ArchiveScript, archive: TradeArchive, text: str, replacement: str
) -> None:
    wrong = NEWER_TRADE.replace(text, replacement) if text != "1723" else NEWER_TRADE.replace("1723075200.0646", "")
    script.add(HEADER + NEWER_TRADE + wrong)
    with pytest.raises(MalformedAnswerError, match=r"no trade of BTCUSDT: \{'timestamp'"):
        read_rows(archive)
