"""The Bybit client against recorded bodies and against the tape."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.errors import (
    ForbiddenError,
    MalformedAnswerError,
    OutageError,
    RateLimitedError,
    RefusedError,
    UnknownSymbolError,
)
from tasks.markets.bybit import Bybit
from tasks.markets.recorded import RecordedMarket
from tasks.markets.retry_policy import NO_RETRY
from tasks.markets.tape import Tape

KLINE = "v5/market/kline"
FUNDING = "v5/market/funding/history"
INSTRUMENTS = "v5/market/instruments-info"
START = datetime(2026, 8, 1, tzinfo=UTC)
CLOCK = datetime(2026, 9, 1, tzinfo=UTC)


def ok_answer(result: dict) -> tuple[int, dict]:
    return 200, {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1786820637599}


@pytest.fixture
def client(canned):
    """client({path: (status, body)}): a client that gets these answers; its clock is later than their rows."""

    def build(answers):
        session, _ = canned(answers)
        return Bybit(CLOCK, session, NO_RETRY)

    return build


def test_the_bar_of_a_recorded_answer_that_has_not_closed_is_dropped_MAM_20(client: Callable, wire: Callable) -> None:
    """MAM-20."""
    bars = client({KLINE: (200, wire("bybit_rest/candles.json"))}).klines("BTCUSDT", "1h", START, CLOCK)
    assert bars.to_pylist() == [
        {
            "symbol": "BTCUSDT",
            "interval": "1h",
            "ts": datetime(2026, 8, 15, 18, tzinfo=UTC),
            "open": 63044.4,
            "high": 63089.6,
            "low": 63000.1,
            "close": 63027.8,
            "close_adjusted": 63027.8,
            "volume": 385.721,
            "turnover": 24314058.6517,
        }
    ]


def test_recorded_funding_is_returned_oldest_first(client: Callable, wire: Callable) -> None:
    rates = client({FUNDING: (200, wire("bybit_rest/funding.json"))}).funding("BTCUSDT", START, CLOCK)
    assert rates["rate"].to_pylist() == [0.00004737, 0.00004403]
    assert rates["ts"].to_pylist() == [datetime(2026, 8, 15, h, tzinfo=UTC) for h in (8, 16)]


def test_the_published_instrument_body_gives_tick_lot_and_funding_interval_TRAP_10(
    client: Callable, wire: Callable
) -> None:
    body = wire("bybit_doc_examples/Endpoints__V5Api__ExchangeData__GetLinearInverseSymbols.txt")
    rows = client({INSTRUMENTS: (200, body)}).instruments(["BTCUSDT", "NOPEUSDT"]).to_pylist()
    assert rows == [
        {
            "symbol": "BTCUSDT",
            "status": "Trading",
            "launched_at": datetime(2020, 3, 30, tzinfo=UTC),
            "tick_size": 0.1,
            "lot_size": 0.001,
            "funding_interval_minutes": 480,
        }
    ]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("10001_not_supported_symbols", UnknownSymbolError),
        ("10001_accounttype", RefusedError),
        ("10016_request_timeout", OutageError),
    ],
)
def test_recorded_error_bodies_become_typed_errors(
    client: Callable, wire: Callable, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="retCode 100"):
        client({KLINE: (200, wire(f"bybit_errors/{name}.json"))}).klines("BTCUSDT", "1h", START, CLOCK)


@pytest.mark.parametrize(
    ("code", "error"),
    [(10006, RateLimitedError), (10018, RateLimitedError), (10009, ForbiddenError), (110001, RefusedError)],
)
def test_each_return_code_raises_its_error(client: Callable, code: int, error: type[Exception]) -> None:
    body = {"retCode": code, "retMsg": "Too many visits. Exceeded the API Rate Limit.", "result": {}, "time": 0}
    with pytest.raises(error, match=f"XUSDT.*retCode {code}"):
        client({KLINE: (200, body)}).klines("XUSDT", "1h", START, CLOCK)


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"unexpected": True}),
        (200, []),
        ok_answer({}),
        ok_answer({"list": [["1786816800000", "1"]]}),
        ok_answer({"list": [["1786816800000", "one", "1", "1", "1", "1", "1"]]}),
        ok_answer({"list": [[str(1786809600000 + 3_600_000 * k), *"111111"] for k in range(2)]}),
    ],
    ids=["no retCode", "a list", "no rows", "short row", "not a number", "oldest first"],
)
def test_an_answer_of_another_shape_is_refused(client: Callable, answer) -> None:
    with pytest.raises(MalformedAnswerError):
        client({KLINE: answer}).klines("XUSDT", "1h", START, CLOCK)


@pytest.mark.parametrize("hours", [1, 999, 1000, 1001, 2000, 2161])
def test_paging_backwards_gives_every_bar_once_S4_34(small_tape: Path, hours: int) -> None:
    """S4-34, TRAP-09: an answer has at most 1,000 bars; older bars are requested page by page."""
    clock = datetime(2024, 4, 1, tzinfo=UTC)
    bybit = Bybit(clock, Tape(RecordedMarket(small_tape), clock).session(), NO_RETRY)
    start = clock - timedelta(hours=hours)
    bars = bybit.klines("XUSDT", "1h", start, clock)
    assert bars["ts"].to_pylist() == [start + timedelta(hours=k) for k in range(hours)]


def test_funding_pages_past_two_hundred_rows_and_includes_the_settlement_at_the_clock(small_tape) -> None:
    clock = datetime(2024, 3, 31, tzinfo=UTC)
    bybit = Bybit(clock, Tape(RecordedMarket(small_tape), clock).session(), NO_RETRY)
    rates = bybit.funding("XUSDT", datetime(2024, 1, 1, tzinfo=UTC), clock + timedelta(milliseconds=1))
    first = datetime(2024, 1, 1, 8, tzinfo=UTC)
    assert rates["ts"].to_pylist() == [first + timedelta(hours=8 * k) for k in range(270)]  # 90 days of 3
    assert rates["ts"][-1].as_py() == clock


def test_instruments_are_read_from_all_pages(canned) -> None:
    def row(symbol: str) -> dict:
        sizes = {"priceFilter": {"tickSize": ""}, "lotSizeFilter": {"qtyStep": ""}}
        return {"symbol": symbol, "status": "Trading", "launchTime": "0", **sizes}

    class Pages:
        """Two pages; the first has a cursor to the second."""

        def get(self, path, _default):
            body = [
                ok_answer({"list": [row("B"), row("C")], "nextPageCursor": "next"}),
                ok_answer({"list": [row("A")]}),
            ]
            return body[len(adapter.requested_paths) - 1]

    session, adapter = canned(Pages())
    rows = Bybit(CLOCK, session, NO_RETRY).instruments(["A", "B"])
    assert rows["symbol"].to_pylist() == ["A", "B"]
    assert len(adapter.requested_paths) == 2


def test_a_repeated_cursor_ends_paging_with_an_error(client: Callable) -> None:
    with pytest.raises(MalformedAnswerError, match="cursor"):
        client({INSTRUMENTS: ok_answer({"list": [], "nextPageCursor": "again"})}).instruments(["A"])


def test_the_published_body_of_recent_trades_gives_event_rows(client: Callable, wire: Callable) -> None:
    body = wire("bybit_doc_examples/Endpoints__V5Api__ExchangeData__GetTradeHistory.txt")
    (row,) = client({"v5/market/recent-trade": (200, body)}).recent_trades("BTCUSDT").to_pylist()
    assert {name: value for name, value in row.items() if value is not None} == {
        "kind": "trade",
        "symbol": "BTCUSDT",
        "ts": datetime(2022, 12, 26, 11, 9, 15, 758_000, UTC),
        "event_id": "2100000000007764263",
        "side": "buy",
        "price": 16618.49,
        "size": 0.00012,
    }


def test_recent_trades_are_sorted_oldest_first_and_end_at_the_clock(client: Callable) -> None:
    def trade(number: int, ts: datetime) -> dict[str, str]:
        stamp = str(int(ts.timestamp() * 1000))
        return {"execId": str(number), "price": "1", "size": "2", "side": "Sell", "time": stamp}

    newest_first = [trade(3, CLOCK + timedelta(seconds=1)), trade(2, CLOCK), trade(1, START)]
    trades = client({"v5/market/recent-trade": ok_answer({"list": newest_first})}).recent_trades("BTCUSDT")
    assert trades["event_id"].to_pylist() == ["1", "2"]


def test_recorded_open_interest_gives_event_rows_oldest_first(client: Callable, wire: Callable) -> None:
    answers = {"v5/market/open-interest": (200, wire("bybit_rest/open_interest.json"))}
    rows = client(answers).open_interest("BTCUSDT", START, CLOCK)
    assert rows["open_interest"].to_pylist() == [65041.568, 64992.054]
    assert rows["ts"].to_pylist() == [datetime(2026, 8, 15, h, tzinfo=UTC) for h in (18, 19)]
    assert set(rows["kind"].to_pylist()) == {"open_interest"}


TRADE = {"execId": "1", "price": "2", "size": "1", "side": "Buy", "time": "1"}


@pytest.mark.parametrize("row", [{}, TRADE | {"price": "x"}, TRADE | {"price": "-2"}, TRADE | {"size": "nan"}])
def test_a_recent_trade_of_another_shape_is_refused(client: Callable, row: dict[str, str]) -> None:
    with pytest.raises(MalformedAnswerError, match="BTCUSDT"):
        client({"v5/market/recent-trade": ok_answer({"list": [row]})}).recent_trades("BTCUSDT")
