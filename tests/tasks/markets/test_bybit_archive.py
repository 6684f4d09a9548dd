"""The trade archive, from a local server: blocks of typed rows, broken downloads, files that are something else."""

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
from tasks.markets.event_rows import EVENT_ROWS
from tasks.markets.retry_policy import RetryPolicy

DAY, PATH = date(2024, 8, 8), "/trading/BTCUSDT/BTCUSDT2024-08-08.csv.gz"
HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
NEW = "1723075200.0646,BTCUSDT,Sell,0.003,55133.1,ZeroMinusTick,aa-01,1.65e+10,0.003,165.4\n"
OLD = "1723075199.999999,BTCUSDT,Buy,1.5,55133.2,PlusTick,aa-00,8.2e+12,1.5,82699.8\n"


@dataclass
class Shelf:
    """Answers in order, the last one for ever: status, body, whether only half of it is sent, headers."""

    url: str = ""
    answers: list[tuple[int, bytes, bool, dict[str, str]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def put(self, body: bytes | str, status: int = 200, cut: bool = False, **headers: str) -> None:
        self.answers.append((status, gzip.compress(body.encode()) if isinstance(body, str) else body, cut, headers))


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf.asked.append(self.path)
            status, body, cut, headers = shelf.answers.pop(0) if len(shelf.answers) > 1 else shelf.answers[0]
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
    shelf.url = f"http://127.0.0.1:{server.server_port}"
    yield shelf
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def archive(shelf: Shelf) -> Iterator[TradeArchive]:
    client = TradeArchive(patience=RetryPolicy(attempts=3, sleep=lambda _: None), url=shelf.url)
    yield client
    client.close()


def read(archive: TradeArchive) -> list[dict]:
    return [row for table in archive.trades("BTCUSDT", DAY) for row in table.to_pylist()]


def test_rows_come_typed_in_the_order_of_the_file_to_the_millisecond_before(
    shelf: Shelf, archive: TradeArchive
) -> None:
    shelf.put(HEADER + NEW + OLD)
    tables = list(archive.trades("BTCUSDT", DAY))
    assert [table.schema for table in tables] == [EVENT_ROWS]
    assert shelf.asked == [PATH]
    known = [{name: value for name, value in row.items() if value is not None} for row in tables[0].to_pylist()]
    shared = {"kind": "trade", "symbol": "BTCUSDT"}
    first = datetime(2024, 8, 8, 0, 0, 0, 64_000, UTC), datetime(2024, 8, 7, 23, 59, 59, 999_000, UTC)
    assert known == [
        {**shared, "ts": first[0], "event_id": "aa-01", "side": "sell", "size": 0.003, "price": 55133.1},
        {**shared, "ts": first[1], "event_id": "aa-00", "side": "buy", "size": 1.5, "price": 55133.2},
    ]


def test_a_long_day_comes_in_blocks(shelf: Shelf, archive: TradeArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bybit_archive, "BLOCK_BYTES", 4_096)
    shelf.put(HEADER + NEW * 500)
    sizes = [table.num_rows for table in archive.trades("BTCUSDT", DAY)]
    assert sum(sizes) == 500
    assert len(sizes) > 5


def test_a_file_that_the_server_unpacks_on_the_way_reads_the_same(shelf: Shelf, archive: TradeArchive) -> None:
    shelf.put(HEADER + NEW, Content_Encoding="gzip")
    assert [row["event_id"] for row in read(archive)] == ["aa-01"]


def test_a_download_that_broke_is_asked_for_again_before_any_row_is_used(shelf: Shelf, archive: TradeArchive) -> None:
    shelf.put(HEADER + NEW, cut=True)
    shelf.put(b"", status=503)
    shelf.put(HEADER + OLD)
    assert [row["event_id"] for row in read(archive)] == ["aa-00"]
    assert len(shelf.asked) == 3


def test_a_day_that_is_not_there_is_said_at_once(shelf: Shelf, archive: TradeArchive) -> None:
    shelf.put(b"<html>404</html>", status=404)
    with pytest.raises(NoPricesError, match=f"{PATH}: HTTP 404, no such file; a day is there from the next morning on"):
        read(archive)
    assert len(shelf.asked) == 1


@pytest.mark.parametrize(("status", "error"), [(503, OutageError), (403, ForbiddenError)])
def test_a_server_that_stays_out_of_order_is_an_outage(
    shelf: Shelf, archive: TradeArchive, status: int, error: type[Exception]
) -> None:
    shelf.put(b"", status=status)
    with pytest.raises(error, match=f"{PATH}: HTTP {status}"):
        read(archive)


WHOLE = gzip.compress((HEADER + NEW * 5_000).encode())


@pytest.mark.parametrize(
    "body",
    [
        WHOLE[: len(WHOLE) // 2],
        b"<html>maintenance</html>",
        gzip.compress(b""),
        gzip.compress(b"timestamp,symbol,side\n1.0,BTCUSDT,Buy\n"),
        gzip.compress((HEADER + NEW.replace("55133.1", "dear")).encode()),
        gzip.compress((HEADER + NEW.rpartition(",")[0] + "\n").encode()),
    ],
    ids=["truncated", "a page", "empty", "lacks columns", "a word for a price", "a row too short"],
)
def test_a_file_of_another_shape_is_refused_by_name(shelf: Shelf, archive: TradeArchive, body: bytes) -> None:
    shelf.put(body)
    with pytest.raises(MalformedAnswerError, match=f"{PATH}: cut short, or not the CSV we know with timestamp, symbol"):
        read(archive)


@pytest.mark.parametrize(
    ("was", "became"), [("BTCUSDT", "ETHUSDT"), ("Sell", "sold"), ("0.003,55", "0,55"), ("55133.1", "-1"), ("1723", "")]
)
def test_a_row_that_no_trade_can_be_is_shown(shelf: Shelf, archive: TradeArchive, was: str, became: str) -> None:
    wrong = NEW.replace(was, became) if was != "1723" else NEW.replace("1723075200.0646", "")
    shelf.put(HEADER + NEW + wrong)
    with pytest.raises(MalformedAnswerError, match=r"no trade of BTCUSDT: \{'timestamp'"):
        read(archive)
