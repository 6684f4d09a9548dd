"""A REST client of Bybit V5 linear perpetuals: klines (bars), funding, instruments, recent trades and open interest.

Every method returns a typed table or raises an error of tasks/errors.py. The wire's times are milliseconds UTC.
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
from models.sessions import BAR_LENGTHS
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
# the most rows in one answer
MAX_KLINE_ROWS = 1000
MAX_FUNDING_ROWS = 200
MAX_INSTRUMENT_ROWS = 1000
MAX_TRADE_ROWS = 1000
MAX_INTEREST_ROWS = 200
INTERVAL_CODES = {"1h": "60", "1d": "D"}
# values of retCode
BAD_PARAMETER_CODE = 10001
RATE_LIMIT_CODES = {10006, 10018}  # too many requests; too many from this address
SERVER_ERROR_CODES = {10000, 10016}  # server time-out; server error
FORBIDDEN_CODES = {10009, 10024}  # address banned; region not served
TAKER_SIDES = {"Buy": "buy", "Sell": "sell"}  # the side of a trade on the wire to the side of an event
FUNDING_OVERLAP = timedelta(days=2)  # short enough that it needs no second page
# the cells of a kline on the wire after its open time
KLINE_COLUMNS = ("open", "high", "low", "close", "volume", "turnover")


class Bybit(Provider):
    """A client of Bybit's market endpoints. It returns only bars that had closed by ``until`` (UTC).

    Every method raises UnknownSymbolError, RefusedError (for any other retCode), MalformedAnswerError, ForbiddenError
    or OutageError; the last two are raised only after all retries. Several threads can share one client.
    """

    def __init__(
        self,
        until: datetime,
        session: requests.Session | None = None,
        retry_policy: RetryPolicy | None = None,
        url: str = LIVE_URL,
        timeout_s: float = TIMEOUT_S,
    ):
        self._until_ms = _to_epoch_ms(until)
        self._session = session or requests.Session()
        self._retry_policy = retry_policy or RetryPolicy(REQUESTS_PER_SECOND)
        self._url = url
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._retry_policy.close()

    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """Bars that open in [start, end), and funding settlements in [start − FUNDING_OVERLAP, end]."""
        # the interval includes its end, because a settlement belongs to the bar that closes at the same time
        funding = self.funding(symbol, start - FUNDING_OVERLAP, end + timedelta(milliseconds=1))
        return {"bars": self.klines(symbol, interval, start, end), "funding_rates": funding}

    def klines(self, symbol: str, interval: str, start: datetime, end: datetime) -> pa.Table:
        """Closed bars whose open time is in [start, end), oldest first.

        Columns: symbol, interval, ts (open time, UTC), open, high, low, close, close_adjusted (= close), volume (base
        coin), turnover (quote coin; null if the answer has none).
        """
        query = {"symbol": symbol, "interval": INTERVAL_CODES[interval]}
        length_ms = BAR_LENGTHS[interval].astype(int) // 1000
        rows, server_ms = self._pages(
            "/v5/market/kline", query, ("start", "end"), lambda row: int(row[0]), MAX_KLINE_ROWS, start, end
        )
        # a bar must also have closed by the exchange's clock, because this machine's clock can run ahead
        last_open_ms = min(self._until_ms, server_ms) - length_ms
        with _parsing(symbol):
            return _kline_table(symbol, interval, [row for row in rows if int(row[0]) <= last_open_ms])

    def funding(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Funding settlements in [start, end), oldest first.

        Columns: symbol, ts (settlement time, UTC), rate (the fraction of its position's value that a long pays).
        """
        rows, _ = self._pages(
            "/v5/market/funding/history",
            {"symbol": symbol},
            ("startTime", "endTime"),
            lambda row: int(row["fundingRateTimestamp"]),
            MAX_FUNDING_ROWS,
            start,
            end,
        )
        with _parsing(symbol):
            return _funding_table(symbol, rows)

    def recent_trades(self, symbol: str) -> pa.Table:
        """The last trades up to ``until``, at most MAX_TRADE_ROWS, oldest first, as a table of EVENT_SCHEMA.

        Bybit serves no older trades by REST.
        """
        body = self._get("/v5/market/recent-trade", {"symbol": symbol, "limit": MAX_TRADE_ROWS}, symbol)
        with _parsing(symbol):
            rows = [row for row in body["result"]["list"] if int(row["time"]) <= self._until_ms]
            return _trade_table(symbol, sorted(rows, key=lambda row: int(row["time"])))

    def open_interest(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Hourly open interest (base coin) with ts in [start, end), oldest first, as a table of EVENT_SCHEMA."""
        rows, _ = self._pages(
            "/v5/market/open-interest",
            {"symbol": symbol, "intervalTime": "1h"},
            ("startTime", "endTime"),
            lambda row: int(row["timestamp"]),
            MAX_INTEREST_ROWS,
            start,
            end,
        )
        with _parsing(symbol):
            return event_columns(
                "open_interest",
                len(rows),
                symbol=pa.repeat(symbol, len(rows)),
                ts=_timestamps_from_ms(row["timestamp"] for row in rows),
                event_id=pa.array([row["timestamp"] for row in rows], pa.string()),
                open_interest=pa.array([_positive_number(row["openInterest"]) for row in rows], pa.float64()),
            )

    def instruments(self, symbols: Iterable[str]) -> pa.Table:
        """The current trading rules of the requested symbols, sorted by symbol; a symbol that is not listed has no row.

        Columns: symbol, status, launched_at (UTC), tick_size (quote coin), lot_size (base coin),
        funding_interval_minutes. A value that the answer lacks is null.
        """
        requested = set(symbols)
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            query = {"limit": MAX_INSTRUMENT_ROWS} | ({"cursor": cursor} if cursor else {})
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
        bound_names: tuple[str, str],
        row_ms: Callable[[Any], int],
        max_rows: int,
        start: datetime,
        end: datetime,
    ) -> tuple[list[Any], int]:
        """Rows with a time in [start, end), oldest first, and the server's time (ms) in the first answer.

        ``bound_names`` are the query's names for the first and last time, both inclusive. ``row_ms`` returns the time
        of a row in milliseconds. An answer has at most ``max_rows`` rows, newest first; after a full answer, the rows
        before its oldest row are requested. The server's time is 0 if no request was made.
        """
        symbol = query["symbol"]
        first_name, last_name = bound_names
        first_ms = _to_epoch_ms(start)
        last_ms = min(_to_epoch_ms(end) - 1, self._until_ms)
        rows: list[Any] = []
        server_ms = 0
        while first_ms <= last_ms:
            body = self._get(path, query | {first_name: first_ms, last_name: last_ms, "limit": max_rows}, symbol)
            with _parsing(symbol):
                page = body["result"]["list"]
                times_ms = [row_ms(row) for row in page]
                server_ms = server_ms or int(body["time"])
            is_descending = times_ms == sorted(set(times_ms), reverse=True)
            if not is_descending or any(not first_ms <= time_ms <= last_ms for time_ms in times_ms):
                raise MalformedAnswerError(f"Bybit {path} {symbol}: rows out of order or outside the requested period")
            rows += page
            if len(page) < max_rows:
                break
            last_ms = times_ms[-1] - 1
        return rows[::-1], server_ms

    def _get(self, path: str, query: dict[str, Any], symbol: str) -> dict[str, Any]:
        """The body of an answer with retCode 0, after retries; ``symbol`` names the request in messages."""
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
    """Raises the error that a body's retCode stands for; returns if it is 0. ``label`` is the request's name."""
    if not isinstance(body, dict) or "retCode" not in body:
        raise MalformedAnswerError(f"{label}: an answer without retCode: {json.dumps(body)[:80]}")
    code = body["retCode"]
    message = str(body.get("retMsg", ""))
    if code == 0:
        return
    error = f"{label}: retCode {code}, {message or 'no message'}"
    if code in RATE_LIMIT_CODES:
        raise RateLimitedError(f"{error}; wait, or lower the request rate")
    if code in SERVER_ERROR_CODES:
        raise OutageError(f"{error}; Bybit is out of order, try again later")
    if code in FORBIDDEN_CODES:
        raise ForbiddenError(f"{error}; Bybit does not serve this address or region")
    if code == BAD_PARAMETER_CODE and "symbol" in message.lower():
        raise UnknownSymbolError(f"{error}; Bybit does not list it: check the spelling or set its valid_to")
    raise RefusedError(f"{error}; Bybit refused the request")


@contextmanager
def _parsing(symbol: str) -> Iterator[None]:
    """Within the block, errors from reading an answer with an unexpected shape become MalformedAnswerError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
        raise MalformedAnswerError(f"Bybit {symbol}: not the answer we know ({type(exc).__name__}: {exc})") from exc


def _to_epoch_ms(instant: datetime) -> int:
    """Milliseconds since 1970, UTC; an instant without a time zone is taken as UTC."""
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return round(instant.timestamp() * 1000)


def _timestamps_from_ms(milliseconds: Iterable[str]) -> pa.Array:
    """Timestamps of TS_TYPE from texts with milliseconds since 1970."""
    values = np.array([int(m) for m in milliseconds], dtype="int64") * 1000
    return pa.array(values.view("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE)


def _optional_number(text: str) -> float | None:
    """The number; None for an empty text."""
    return float(text) if text else None


def _positive_number(text: str) -> float:
    """The number. Raises ValueError unless it is positive and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text} is not a price, size or open interest")
    return value


def _kline_table(symbol: str, interval: str, rows: list[list[str]]) -> pa.Table:
    columns: dict[str, Any] = {
        "symbol": pa.array([symbol] * len(rows), pa.string()),
        "interval": pa.array([interval] * len(rows), pa.string()),
        "ts": _timestamps_from_ms(row[0] for row in rows),
    }
    for cell, name in enumerate(KLINE_COLUMNS, start=1):
        columns[name] = pa.array([_optional_number(row[cell]) for row in rows], pa.float64())
    table = pa.table(columns)
    return table.add_column(table.column_names.index("volume"), "close_adjusted", table["close"])


def _funding_table(symbol: str, rows: list[dict[str, str]]) -> pa.Table:
    return pa.table(
        {
            "symbol": pa.array([symbol] * len(rows), pa.string()),
            "ts": _timestamps_from_ms(row["fundingRateTimestamp"] for row in rows),
            "rate": pa.array([float(row["fundingRate"]) for row in rows], pa.float64()),
        }
    )


def _trade_table(symbol: str, rows: list[dict[str, str]]) -> pa.Table:
    return event_columns(
        "trade",
        len(rows),
        symbol=pa.repeat(symbol, len(rows)),
        ts=_timestamps_from_ms(row["time"] for row in rows),
        event_id=pa.array([row["execId"] for row in rows], pa.string()),
        side=pa.array([TAKER_SIDES[row["side"]] for row in rows], pa.string()),
        price=pa.array([_positive_number(row["price"]) for row in rows], pa.float64()),
        size=pa.array([_positive_number(row["size"]) for row in rows], pa.float64()),
    )


def _instrument_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "symbol": pa.array([row["symbol"] for row in rows], pa.string()),
            "status": pa.array([row.get("status") for row in rows], pa.string()),
            "launched_at": _timestamps_from_ms(row["launchTime"] for row in rows),
            "tick_size": pa.array([_optional_number(row["priceFilter"]["tickSize"]) for row in rows], pa.float64()),
            "lot_size": pa.array([_optional_number(row["lotSizeFilter"]["qtyStep"]) for row in rows], pa.float64()),
            "funding_interval_minutes": pa.array([row.get("fundingInterval") for row in rows], pa.int32()),
        }
    )
