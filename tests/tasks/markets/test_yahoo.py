"""The Yahoo client against recorded bodies and against the tape."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from yfinance import cache

from tasks.errors import MalformedAnswerError, MarketError, NoPricesError, OutageError, RefusedError, UnknownSymbolError
from tasks.markets.recorded import RecordedMarket
from tasks.markets.retry_policy import NO_RETRY
from tasks.markets.tape import Tape
from tasks.markets.yahoo import Yahoo

UNTIL = datetime(2025, 2, 21, tzinfo=UTC)
AAPL = "yahoo/fixtures__http__chart-AAPL-2020-01-01-to-2020-01-03.json"


@pytest.fixture
def client(canned):
    """client(body): a client that gets this body for the symbol's chart."""

    def build(body: Any, symbol: str = "AAPL", until: datetime = UNTIL, status: int = 200) -> Yahoo:
        session, _ = canned({f"v8/finance/chart/{symbol}": (status, body), "v1/test/getcrumb": (200, "crumb")})
        return Yahoo(until, session, NO_RETRY)

    return build


def test_a_recorded_chart_gives_the_bar_at_its_session_open_MAM_19(client: Callable, wire: Callable) -> None:
    """MAM-19."""
    bars, actions = client(wire(AAPL)).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 3))
    row = bars.to_pylist()[0]
    assert row["ts"] == datetime(2020, 1, 2, 14, 30, tzinfo=UTC)
    assert row["close"] == 75.0875015258789
    assert row["close_adjusted"] < row["close"]
    assert (len(bars), len(actions)) == (1, 0)


def test_a_recorded_split_and_dividend_come_with_their_sessions(client: Callable, wire: Callable) -> None:
    body = wire("yahoo/fixtures__http__chart-AAPL-2020-08-31-to-2020-11-07.json")
    bars, actions = client(body).daily_bars("AAPL", date(2020, 8, 31), date(2020, 11, 7))
    assert len(bars) == 49
    assert actions.select(["ts", "kind", "value"]).to_pylist() == [
        {"ts": datetime(2020, 11, 6, 14, 30, tzinfo=UTC), "kind": "dividend", "value": 0.205},
        {"ts": datetime(2020, 8, 31, 13, 30, tzinfo=UTC), "kind": "split", "value": 4.0},
    ]


def test_all_recorded_dividends_of_a_year_are_returned(client: Callable, wire: Callable) -> None:
    """S4-37: the daily bars of one stock, here of one year."""
    body = wire("yahoo/fixtures__http__historical-via-chart-MSFT-dividends-2021-02-01-to-2022-01-31.csv.json")
    bars, actions = client(body, "MSFT").daily_bars("MSFT", date(2021, 2, 1), date(2022, 1, 31))
    assert (len(bars), actions["value"].to_pylist()) == (252, [0.56, 0.56, 0.56, 0.62])


def with_last_bar(body: dict, open_s: int, price: float | None, volume: int | None) -> dict:
    """The chart with one more row at the end, at ``open_s`` (epoch seconds), with all prices ``price``."""
    result = body["chart"]["result"][0]
    result["timestamp"].append(open_s)
    for name, column in result["indicators"]["quote"][0].items():
        column.append(volume if name == "volume" else price)
    result["indicators"]["adjclose"][0]["adjclose"].append(price)
    return body


@pytest.mark.parametrize("volume", [None, 0, 12345])
def test_an_all_null_last_bar_is_dropped(client: Callable, wire: Callable, volume: int | None) -> None:
    body = with_last_bar(wire(AAPL), 1578061800, None, volume)
    bars, _ = client(body).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 4))
    assert bars["ts"].to_pylist() == [datetime(2020, 1, 2, 14, 30, tzinfo=UTC)]


@pytest.mark.parametrize(("clock_time", "n_bars"), [("20:59:59", 1), ("21:00:00", 2)])
def test_a_bar_is_returned_once_its_session_has_closed(
    client: Callable, wire: Callable, clock_time: str, n_bars: int
) -> None:
    body = with_last_bar(wire(AAPL), 1578061800, 74.0, 1)
    clock = datetime.fromisoformat(f"2020-01-03T{clock_time}+00:00")
    bars, _ = client(body, until=clock).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 4))
    assert len(bars) == n_bars


def test_a_row_on_a_day_without_a_session_is_dropped(client: Callable, wire: Callable) -> None:
    body = with_last_bar(wire(AAPL), 1578148200, 74.0, 1)  # a Saturday
    bars, _ = client(body).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 6))
    assert len(bars) == 1


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("http__weirdJsonResult.fake", 200, MalformedAnswerError),
        ("http__pageWithUnknownError", 404, MalformedAnswerError),
        ("http__pageWith404andJson.fake", 404, MalformedAnswerError),
        ("fixtures__http__chart-notimestamp-weird-quote.fake", 200, MarketError),
        ("fixtures__http__chart-notimestamp-quotes-length.fake", 200, MarketError),
    ],
)
def test_recorded_odd_answers_become_typed_errors(
    client: Callable, wire: Callable, name: str, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        client(wire(f"yahoo/{name}.json"), status=status).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 3))


def refusal(code: str, description: str) -> dict:
    return {"chart": {"result": None, "error": {"code": code, "description": description}}}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, refusal("Not Found", "No data found, symbol may be delisted"), UnknownSymbolError),
        (400, refusal("Bad Request", "Data doesn't exist for startDate = 1, endDate = 2"), NoPricesError),
        (422, refusal("Unprocessable Entity", "Period is nonsense"), RefusedError),
        (200, "Will be right back", OutageError),
        (200, '{"chart":{"result":[{"meta":{"currency"', OutageError),
    ],
)
def test_refusals_become_typed_errors_that_name_the_symbol(
    client: Callable, status: int, body: Any, error: type
) -> None:
    with pytest.raises(error, match="AAPL"):
        client(body, status=status).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 3))


def test_two_clients_in_one_process_share_no_answers(small_tape) -> None:
    clocks = [datetime(2024, 3, day, tzinfo=UTC) for day in (2, 9)]
    clients = [Yahoo(clock, Tape(RecordedMarket(small_tape), clock).session(), NO_RETRY) for clock in clocks]
    arguments = ("AAA", date(2024, 1, 2), date(2024, 4, 1))
    n_bars = [len(client.daily_bars(*arguments)[0]) for client in (*clients, *clients)]
    n_earlier, n_later = n_bars[:2]
    assert n_later == n_earlier + 5  # one week of sessions
    assert n_bars[2:] == [n_earlier, n_later]


def test_nothing_is_stored_on_disk(client: Callable, wire: Callable) -> None:
    client(wire(AAPL)).daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 3))
    assert cache._TzDBManager._db is None
    assert cache._CookieDBManager._db is None


def test_the_cookie_and_the_crumb_are_requested_once(canned, wire: Callable) -> None:
    session, adapter = canned({"v8/finance/chart/AAPL": (200, wire(AAPL)), "v1/test/getcrumb": (200, "crumb")})
    yahoo = Yahoo(UNTIL, session, NO_RETRY)
    for _ in range(3):
        yahoo.daily_bars("AAPL", date(2020, 1, 1), date(2020, 1, 3))
    assert sorted(adapter.requested_paths) == ["", "v1/test/getcrumb", *["v8/finance/chart/AAPL"] * 3]
