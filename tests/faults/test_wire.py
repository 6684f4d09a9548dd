"""The clients, and the ingest of a night (the run for one date), against a local HTTP server with a market's faults."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from tasks import ingest
from tasks.errors import ForbiddenError, MarketDownError, OutageError, RateLimitedError, TooManyBadSymbolsError
from tasks.ingest import PullOptions, ingest_universe
from tasks.markets.bybit import Bybit
from tasks.markets.retry_policy import RetryPolicy
from tasks.markets.yahoo import Yahoo
from tasks.night import Night
from tests.universes import make_perpetuals
from warehouse.connect import Warehouse
from warehouse.migrate import migrate

START = datetime(2024, 6, 28, tzinfo=UTC)
CLOCK = datetime(2024, 6, 29, tzinfo=UTC)
HANG_S = 1.0  # longer than the clients' time-out


@dataclass(frozen=True)
class Answer:
    """The server's answer to one request.

    With ``is_cut`` the server sends only half of the announced body; with ``hangs`` it answers after HANG_S.
    """

    status: int = 200
    body: Any = ""
    is_cut: bool = False
    hangs: bool = False

    def bytes(self) -> bytes:
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


@dataclass
class Script:
    """The server's answers in order. The last answer is repeated; an empty script answers every request correctly.

    ``answer_by_symbol`` takes precedence for requests of a symbol. ``requested_paths`` records the requests.
    """

    answers: list[Answer] = field(default_factory=list)
    answer_by_symbol: dict[str, Answer] = field(default_factory=dict)
    requested_paths: list[str] = field(default_factory=list)
    url: str = ""

    def next(self, path: str) -> Answer:
        self.requested_paths.append(path)
        for symbol, answer in self.answer_by_symbol.items():
            if f"symbol={symbol}" in path:
                return answer
        if not self.answers:
            return kline() if "/kline" in path else bybit(0, {"list": []})
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def kline(hours: int = 24) -> Answer:
    """A good answer with the bars of the hours before CLOCK, newest first."""
    end = int(CLOCK.timestamp() * 1000)
    rows = [[str(end - 3_600_000 * k), "1", "2", "0.5", "1.5", "10", "15"] for k in range(1, hours + 1)]
    return bybit(0, {"list": rows})


def bybit(code: int, result: dict | None = None) -> Answer:
    message = {0: "OK", 10006: "Too many visits. Exceeded the API Rate Limit.", 10016: "Server error."}[code]
    return Answer(
        body={"retCode": code, "retMsg": message, "result": result or {}, "time": int(CLOCK.timestamp() * 1000)}
    )


def chart() -> Answer:
    """A good answer with a chart of one session."""
    meta = {
        "currency": "USD",
        "instrumentType": "EQUITY",
        "exchangeTimezoneName": "America/New_York",
        "validRanges": [],
    }
    quote = {"open": [1.0], "high": [2.0], "low": [0.5], "close": [1.5], "volume": [10]}
    prices = {"quote": [quote], "adjclose": [{"adjclose": [1.5]}]}
    return Answer(
        body={"chart": {"result": [{"meta": meta, "timestamp": [1719581400], "indicators": prices}], "error": None}}
    )


@pytest.fixture
def server() -> Iterator[Script]:
    """A server that answers from the script; requests for a crumb or cookie are answered without it."""
    script = Script()
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_scripted = self.path.startswith(("/v5/", "/v8/"))
            answer = script.next(self.path) if is_scripted else Answer(body="crumb")
            if answer.hangs:
                done.wait(HANG_S)
            body = answer.bytes()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that timed out has closed the connection
                self.wfile.write(body[: len(body) // 2] if answer.is_cut else body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{http.server_port}"
    yield script
    done.set()
    http.shutdown()
    thread.join()
    http.server_close()


class ReroutingAdapter(HTTPAdapter):
    """Sends requests to Yahoo to the local server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def send(self, request, **kwargs):
        request.url = self._url + "/" + request.url.split("/", 3)[3]
        return super().send(request, **kwargs)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def bybit_client(server: Script, waits: list[float]) -> Bybit:
    return Bybit(CLOCK, retry_policy=RetryPolicy(attempts=4, sleep=waits.append), url=server.url, timeout_s=0.3)


@pytest.fixture
def yahoo_client(server: Script, waits: list[float]) -> Yahoo:
    session = requests.Session()
    session.mount("https://", ReroutingAdapter(server.url))
    return Yahoo(CLOCK, session, RetryPolicy(attempts=3, sleep=waits.append), timeout_s=0.3)


TEMPORARY_FAULTS = {
    "10006": bybit(10006),
    "10016": bybit(10016),
    "500": Answer(500, "oops"),
    "502 as a page": Answer(502, "<html>Bad Gateway</html>"),
    "429": Answer(429, "slow down"),
    "truncated": replace(kline(), is_cut=True),
    "not JSON": Answer(200, "<html>maintenance</html>"),
    "time-out": Answer(hangs=True),
}


@pytest.mark.parametrize("fault", TEMPORARY_FAULTS.values(), ids=TEMPORARY_FAULTS)
def test_a_temporary_fault_costs_two_waits_and_no_bar(
    server: Script, bybit_client: Bybit, waits: list[float], fault: Answer
) -> None:
    server.answers = [fault, fault, kline()]
    assert len(bybit_client.klines("XUSDT", "1h", START, CLOCK)) == 24
    assert len(waits) == 2
    assert waits[1] > waits[0] / 2  # the limit doubles; a wait is between half of its limit and its limit


@pytest.mark.parametrize("fault", TEMPORARY_FAULTS.values(), ids=TEMPORARY_FAULTS)
def test_a_lasting_fault_raises_an_outage_that_names_the_symbol(
    server: Script, bybit_client: Bybit, fault: Answer
) -> None:
    server.answers = [fault]
    with pytest.raises(OutageError, match="XUSDT"):
        bybit_client.klines("XUSDT", "1h", START, CLOCK)
    assert len(server.requested_paths) == 4


def test_a_rate_limit_raises_an_error_of_its_own(server: Script, bybit_client: Bybit) -> None:
    server.answers = [bybit(10006)]
    with pytest.raises(RateLimitedError, match="10006"):
        bybit_client.klines("XUSDT", "1h", START, CLOCK)


def test_a_403_is_retried_once_and_its_error_names_rate_limit_or_region(
    server: Script, bybit_client: Bybit, waits: list[float]
) -> None:
    server.answers = [Answer(403, "<html>CloudFront</html>")]
    with pytest.raises(ForbiddenError, match=r"rate limit or a region"):
        bybit_client.klines("XUSDT", "1h", START, CLOCK)
    assert (len(server.requested_paths), waits) == (2, [30.0])


def test_an_unreachable_market_raises_an_outage() -> None:
    unreachable = Bybit(CLOCK, retry_policy=RetryPolicy(attempts=1), url="http://127.0.0.1:9", timeout_s=0.3)
    with pytest.raises(OutageError, match="try again later"):
        unreachable.funding("XUSDT", START, CLOCK)


YAHOO_FAULTS = {
    "429": Answer(429, "Too Many Requests"),
    "500": Answer(500, "oops"),
    "truncated": replace(chart(), is_cut=True),
    "time-out": Answer(hangs=True),
}


@pytest.mark.parametrize("fault", YAHOO_FAULTS.values(), ids=YAHOO_FAULTS)
def test_yahoos_faults_raise_outages_and_the_next_request_succeeds(
    server: Script, yahoo_client: Yahoo, waits: list[float], fault: Answer
) -> None:
    server.answers = [fault]
    with pytest.raises(OutageError, match="AAA"):
        yahoo_client.daily_bars("AAA", date(2024, 6, 28), date(2024, 6, 29))
    assert len(waits) == 2
    server.answers = [chart()]
    bars, _ = yahoo_client.daily_bars("AAA", date(2024, 6, 28), date(2024, 6, 29))
    assert bars["close"].to_pylist() == [1.5]


def test_yahoos_403_error_names_rate_limit_or_region(server: Script, yahoo_client: Yahoo, waits: list[float]) -> None:
    server.answers = [Answer(403, "Forbidden")]
    with pytest.raises(ForbiddenError, match=r"rate limit or a region"):
        yahoo_client.daily_bars("AAA", date(2024, 6, 28), date(2024, 6, 29))
    assert waits == [30.0]


SYMBOLS = tuple(f"{letter}USDT" for letter in "ABCDEFGH")
UNIVERSE = make_perpetuals(SYMBOLS, START.date())


@pytest.fixture
def ingest_night(
    server: Script, bybit_client: Bybit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], ingest.IngestReport]:
    """ingest_night(): ingests eight perpetuals from the server, which gives good answers unless scripted otherwise."""

    @contextmanager
    def open_server(*_: object) -> Iterator[Bybit]:
        yield bybit_client

    monkeypatch.setattr(ingest, "open_provider", open_server)
    warehouse = Warehouse.from_url(tmp_path / "w.duckdb")
    migrate(warehouse)

    def run() -> ingest.IngestReport:
        night = Night(START.date(), "live", UNIVERSE, warehouse, CLOCK)
        return ingest_universe(night, PullOptions(overlap_bars=5, max_bad_fraction=0.25, threads=1))

    run.warehouse = warehouse  # type: ignore[attr-defined]
    return run


def count_raw_rows(warehouse: Warehouse) -> dict[str, int]:
    with warehouse.read() as con:
        return {
            table: con.execute(f"SELECT count(*) FROM raw.{table}").fetchone()[0]  # type: ignore[index]
            for table in ("bars", "funding_rates", "instruments", "fetches")
        }


def test_a_failing_symbol_is_recorded_and_skipped_and_requested_again_by_the_next_run(
    server: Script, ingest_night: Any
) -> None:
    server.answer_by_symbol = {"CUSDT": Answer(500, "oops")}
    first = ingest_night()
    assert (first.fetched, list(first.failed), first.bars) == (7, ["CUSDT"], 7 * 24)
    assert "HTTP 500" in first.failed["CUSDT"]
    server.answer_by_symbol = {}
    requests_before = len(server.requested_paths)
    second = ingest_night()
    assert (second.fetched, second.failed, second.bars) == (8, {}, 8 * 24)
    assert all("CUSDT" in path or "instruments" in path for path in server.requested_paths[requests_before:])


def test_outages_of_too_many_symbols_stop_the_night_as_an_outage(server: Script, ingest_night: Any) -> None:
    server.answer_by_symbol = {symbol: bybit(10016) for symbol in SYMBOLS[2:]}
    with pytest.raises(MarketDownError, match="3 of 8 symbols"):
        ingest_night()
    assert count_raw_rows(ingest_night.warehouse) == {
        "bars": 2 * 24,
        "funding_rates": 0,
        "instruments": 0,
        "fetches": 5,
    }


def test_other_failures_of_too_many_symbols_are_not_an_outage(server: Script, ingest_night: Any) -> None:
    unknown = Answer(body={"retCode": 10001, "retMsg": "Not supported symbols", "result": {}, "time": 0})
    server.answer_by_symbol = dict.fromkeys(SYMBOLS[:3], unknown)
    with pytest.raises(TooManyBadSymbolsError, match=r"3 of 8 symbols.*AUSDT"):
        ingest_night()


def test_a_403_stops_the_night_at_once_and_writes_nothing(server: Script, ingest_night: Any) -> None:
    server.answer_by_symbol = dict.fromkeys(SYMBOLS, Answer(403, "no"))
    with pytest.raises(ForbiddenError):
        ingest_night()
    assert set(count_raw_rows(ingest_night.warehouse).values()) == {0}
    assert sum("symbol=" in path for path in server.requested_paths) <= 4
