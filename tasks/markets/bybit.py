"""A REST client of Bybit V5 linear perpetuals: klines, funding, instruments, the last trades and open interest.

Every method returns a typed table or raises a typed error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import requests

from models.panel import TS_TYPE
from models.sessions import INTERVALS
from tasks.errors import (
    ForbiddenError,
    MalformedAnswerError,
    OutageError,
    RateLimitedError,
    RefusedError,
    UnknownSymbolError,
)
from tasks.markets.event_rows import event_columns
from tasks.markets.provider import Provider
from tasks.markets.retry_policy import RetryPolicy, raise_for_status

LIVE_URL = "https://api.bybit.com"
REQUESTS_PER_SECOND = 10
TIMEOUT_S = 10.0
KLINE_ROWS = 1000  # rows of one answer at most, here and below
FUNDING_ROWS = 200
INSTRUMENT_ROWS = 1000
TRADE_ROWS = 1000
INTEREST_ROWS = 200
WIRE_INTERVALS = {"1h": "60", "1d": "D"}
BAD_PARAMETER = 10001
RATE_LIMITED = {10006, 10018}  # too many requests; too many from this address
SERVER_ERRORS = {10000, 10016}  # server time-out; server error
FORBIDDEN = {10009, 10024}  # address banned; region not served
TAKERS = {"Buy": "buy", "Sell": "sell"}
FUNDING_OVERLAP = timedelta(days=2)  # costs no second page of answers
KLINE_VALUES = ("open", "high", "low", "close", "volume", "turnover")


class Bybit(Provider):
    """A client of Bybit's market endpoints that never returns a bar which had not closed at ``until`` (UTC).

    Every method raises UnknownSymbolError, RefusedError (any other retCode), MalformedAnswerError, ForbiddenError or
    OutageError, the last two only after all retries. Safe to share between threads.
    """

    def __init__(
        self,
        until: datetime,
        session: requests.Session | None = None,
        retry_policy: RetryPolicy | None = None,
        url: str = LIVE_URL,
        timeout_s: float = TIMEOUT_S,
    ):
        self._until_ms = _milliseconds(until)
        self._session = session or requests.Session()
        self._retry_policy = retry_policy or RetryPolicy(REQUESTS_PER_SECOND)
        self._url = url
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._retry_policy.close()

    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """Bars in [start, end), and the funding settled from two days before ``start`` up to ``end``."""
        # a settlement at the very end is public by then, and belongs to the bar that closes with it
        settled = self.funding(symbol, start - FUNDING_OVERLAP, end + timedelta(milliseconds=1))
        return {"bars": self.klines(symbol, interval, start, end), "funding_rates": settled}

    def klines(self, symbol: str, interval: str, start: datetime, end: datetime) -> pa.Table:
        """Closed bars whose open is in [start, end), oldest first.

        symbol, interval, ts (open, UTC), open, high, low, close, close_adjusted (= close), volume (base coin), turnover
        (quote coin; null where the answer has none).
        """
        query = {"symbol": symbol, "interval": WIRE_INTERVALS[interval]}
        length_ms = INTERVALS[interval].astype(int) // 1000
        rows, server_ms = self._pages(
            "/v5/market/kline", query, ("start", "end"), lambda row: int(row[0]), KLINE_ROWS, start, end
        )
        # a bar must have closed by the exchange's clock too, in case this machine's clock runs ahead
        last_open_ms = min(self._until_ms, server_ms) - length_ms
        with _parsing(symbol):
            return _kline_table(symbol, interval, [row for row in rows if int(row[0]) <= last_open_ms])

    def funding(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Rates settled in [start, end), oldest first: symbol, ts (settlement, UTC), rate (a fraction longs pay)."""
        rows, _ = self._pages(
            "/v5/market/funding/history",
            {"symbol": symbol},
            ("startTime", "endTime"),
            lambda row: int(row["fundingRateTimestamp"]),
            FUNDING_ROWS,
            start,
            end,
        )
        with _parsing(symbol):
            return _funding_table(symbol, rows)

    def recent_trades(self, symbol: str) -> pa.Table:
        """The last trades, 1000 at most, oldest first, as event rows; Bybit serves no older ones."""
        body = self._get("/v5/market/recent-trade", {"symbol": symbol, "limit": TRADE_ROWS}, symbol)
        with _parsing(symbol):
            rows = [row for row in body["result"]["list"] if int(row["time"]) <= self._until_ms]
            return _trade_table(symbol, sorted(rows, key=lambda row: int(row["time"])))

    def open_interest(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Hourly open interest (base coin) stamped in [start, end), oldest first, as event rows."""
        rows, _ = self._pages(
            "/v5/market/open-interest",
            {"symbol": symbol, "intervalTime": "1h"},
            ("startTime", "endTime"),
            lambda row: int(row["timestamp"]),
            INTEREST_ROWS,
            start,
            end,
        )
        with _parsing(symbol):
            return event_columns(
                "open_interest",
                len(rows),
                symbol=pa.repeat(symbol, len(rows)),
                ts=_instants(row["timestamp"] for row in rows),
                event_id=pa.array([row["timestamp"] for row in rows], pa.string()),
                open_interest=pa.array([_positive(row["openInterest"]) for row in rows], pa.float64()),
            )

    def instruments(self, symbols: Iterable[str]) -> pa.Table:
        """The current rules of those of the symbols that the exchange lists, sorted by symbol.

        symbol, status, launched_at (UTC), tick_size (quote coin), lot_size (base coin), funding_interval_minutes; null
        where the answer has none.
        """
        requested = set(symbols)
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            query = {"limit": INSTRUMENT_ROWS} | ({"cursor": cursor} if cursor else {})
            body = self._get("/v5/market/instruments-info", query, "instruments")
            with _parsing("instruments"):
                rows += [row for row in body["result"]["list"] if row["symbol"] in requested]
                last_cursor = cursor
                cursor = body["result"].get("nextPageCursor", "")
            if not cursor:
                break
            if cursor == last_cursor:
                raise MalformedAnswerError(
                    f"Bybit instruments: the cursor {cursor!r} was returned twice; stopped paging"
                )
        with _parsing("instruments"):
            return _instrument_table(sorted(rows, key=lambda row: row["symbol"]))

    def _pages(
        self,
        path: str,
        query: dict[str, Any],
        span: tuple[str, str],
        stamp: Callable[[Any], int],
        cap: int,
        start: datetime,
        end: datetime,
    ) -> tuple[list[Any], int]:
        """Rows stamped in [start, end), oldest first, and the server's time (ms) of the first answer.

        ``span`` names the query's start and end, ``stamp`` returns a row's time (ms). An answer is sorted newest first
        and has ``cap`` rows at most, so after a full one the span before its oldest row is requested.
        """
        symbol = query["symbol"]
        first_ms = _milliseconds(start)
        last_ms = min(_milliseconds(end) - 1, self._until_ms)
        rows: list[Any] = []
        server_ms = 0
        while first_ms <= last_ms:
            body = self._get(path, query | {span[0]: first_ms, span[1]: last_ms, "limit": cap}, symbol)
            with _parsing(symbol):
                page = body["result"]["list"]
                stamps = [stamp(row) for row in page]
                server_ms = server_ms or int(body["time"])
            if stamps != sorted(set(stamps), reverse=True) or any(not first_ms <= s <= last_ms for s in stamps):
                raise MalformedAnswerError(f"Bybit {path} {symbol}: rows out of order or outside the requested span")
            rows += page
            if len(page) < cap:
                break
            last_ms = stamps[-1] - 1
        return rows[::-1], server_ms

    def _get(self, path: str, query: dict[str, Any], symbol: str) -> dict[str, Any]:
        return self._retry_policy.call(lambda: self._get_once(path, query, symbol), f"Bybit {path} {symbol}")

    def _get_once(self, path: str, query: dict[str, Any], symbol: str) -> dict[str, Any]:
        label = f"Bybit {path} {symbol}"
        self._retry_policy.wait_for_turn()
        try:
            query = {"category": "linear"} | query
            response = self._session.get(self._url + path, params=query, timeout=self._timeout_s)
            raise_for_status(response.status_code, label)
            body = response.json()
        except requests.exceptions.JSONDecodeError as exc:
            raise OutageError(f"{label}: the answer is cut short or not JSON; try again later") from exc
        except requests.exceptions.RequestException as exc:
            raise OutageError(f"{label}: no whole answer ({type(exc).__name__}: {exc}); try again later") from exc
        raise_for_code(body, label)
        return body


def raise_for_code(body: Any, label: str) -> None:
    """Raises the error that a body's retCode means; returns on 0. ``label`` names the request in the message."""
    if not isinstance(body, dict) or "retCode" not in body:
        raise MalformedAnswerError(f"{label}: an answer without retCode: {json.dumps(body)[:80]}")
    code = body["retCode"]
    message = str(body.get("retMsg", ""))
    if code == 0:
        return
    error = f"{label}: retCode {code}, {message or 'no message'}"
    if code in RATE_LIMITED:
        raise RateLimitedError(f"{error}; wait, or lower the request rate")
    if code in SERVER_ERRORS:
        raise OutageError(f"{error}; Bybit is out of order, try again later")
    if code in FORBIDDEN:
        raise ForbiddenError(f"{error}; Bybit does not serve this address or region")
    if code == BAD_PARAMETER and "symbol" in message.lower():
        raise UnknownSymbolError(f"{error}; Bybit does not list it: check the spelling or set its valid_to")
    raise RefusedError(f"{error}; Bybit refused the request")


@contextmanager
def _parsing(symbol: str) -> Iterator[None]:
    """Raises MalformedAnswerError for errors that reading an answer of another shape causes in the block."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
        raise MalformedAnswerError(f"Bybit {symbol}: not the answer we know ({type(exc).__name__}: {exc})") from exc


def _milliseconds(instant: datetime) -> int:
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return round(instant.timestamp() * 1000)


def _instants(milliseconds: Iterable[str]) -> pa.Array:
    values = np.array([int(m) for m in milliseconds], dtype="int64") * 1000
    return pa.array(values.view("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE)


def _number(text: str) -> float | None:
    return float(text) if text else None


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text} is not a price, size or open interest")
    return value


def _kline_table(symbol: str, interval: str, rows: list[list[str]]) -> pa.Table:
    columns: dict[str, Any] = {
        "symbol": pa.array([symbol] * len(rows), pa.string()),
        "interval": pa.array([interval] * len(rows), pa.string()),
        "ts": _instants(row[0] for row in rows),
    }
    for k, name in enumerate(KLINE_VALUES, start=1):
        columns[name] = pa.array([_number(row[k]) for row in rows], pa.float64())
    table = pa.table(columns)
    return table.add_column(table.column_names.index("volume"), "close_adjusted", table["close"])


def _funding_table(symbol: str, rows: list[dict[str, str]]) -> pa.Table:
    return pa.table(
        {
            "symbol": pa.array([symbol] * len(rows), pa.string()),
            "ts": _instants(row["fundingRateTimestamp"] for row in rows),
            "rate": pa.array([float(row["fundingRate"]) for row in rows], pa.float64()),
        }
    )


def _trade_table(symbol: str, rows: list[dict[str, str]]) -> pa.Table:
    return event_columns(
        "trade",
        len(rows),
        symbol=pa.repeat(symbol, len(rows)),
        ts=_instants(row["time"] for row in rows),
        event_id=pa.array([row["execId"] for row in rows], pa.string()),
        side=pa.array([TAKERS[row["side"]] for row in rows], pa.string()),
        price=pa.array([_positive(row["price"]) for row in rows], pa.float64()),
        size=pa.array([_positive(row["size"]) for row in rows], pa.float64()),
    )


def _instrument_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "symbol": pa.array([row["symbol"] for row in rows], pa.string()),
            "status": pa.array([row.get("status") for row in rows], pa.string()),
            "launched_at": _instants(row["launchTime"] for row in rows),
            "tick_size": pa.array([_number(row["priceFilter"]["tickSize"]) for row in rows], pa.float64()),
            "lot_size": pa.array([_number(row["lotSizeFilter"]["qtyStep"]) for row in rows], pa.float64()),
            "funding_interval_minutes": pa.array([row.get("fundingInterval") for row in rows], pa.int32()),
        }
    )
