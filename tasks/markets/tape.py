"""A tape: a requests transport that answers as Yahoo and Bybit did at one instant, from recorded or simulated bars.

The real clients use it, so that offline runs test their paging, parsing and error handling. The instant is the tape's
clock. Bars that had not closed at the clock are left out. A symbol without a closed bar is unknown. Yahoo's adjusted
closes and dividends are adjusted only for the splits and dividends up to the clock.
"""

from __future__ import annotations

import io
import json
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import requests
from requests.adapters import BaseAdapter

from models.sessions import BAR_LENGTHS
from tasks.markets.recording import OHLC, Bars, Recording, Stock

CHART_PATH = "/v8/finance/chart/"
# the most rows in one answer
MAX_KLINE_ROWS = 1000
MAX_FUNDING_ROWS = 200
MAX_INSTRUMENT_ROWS = 1000
INTERVAL_OF_CODE = {"60": "1h", "D": "1d"}
MILLISECOND = np.timedelta64(1, "ms")
SECOND = np.timedelta64(1, "s")
MINUTE = np.timedelta64(1, "m")
SESSION_RANGES = ["1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max"]
Answer = tuple[int, Any]  # HTTP status and body: text, or an object to encode as JSON


class Tape(BaseAdapter):
    """The transport, with the clock ``clock`` (UTC).

    With ``partial`` the answers also contain the current bar, which has not closed, as live answers do. Bybit's current
    bar has the last close as all of its prices; in Yahoo's, all values are null.
    """

    def __init__(self, recording: Recording, clock: datetime, partial: bool = False) -> None:
        super().__init__()
        self._recording = recording
        self._sends_open_bar = partial
        self._clock = np.datetime64(clock.replace(tzinfo=None), "us")

    def session(self) -> requests.Session:
        """A session whose every https request this tape answers."""
        session = requests.Session()
        session.trust_env = False
        session.mount("https://", self)
        return session

    def send(self, request, stream=False, timeout=None, verify=True, cert=None, proxies=None):
        url = urlsplit(request.url)
        query = dict(parse_qsl(url.query))
        status, body = self._answer(unquote(url.path), query)
        response = requests.Response()
        response.status_code = status
        response.request = request
        response.url = request.url
        response.headers["Content-Type"] = "application/json;charset=utf-8"
        response.encoding = "utf-8"
        response.raw = io.BytesIO((body if isinstance(body, str) else json.dumps(body)).encode())
        return response

    def close(self) -> None:
        """Does nothing: no connection is open."""

    def _answer(self, path: str, query: dict[str, str]) -> Answer:
        if path.startswith(CHART_PATH):
            return self._chart(path.removeprefix(CHART_PATH), query)
        if path == "/v1/test/getcrumb":
            return 200, "tape"
        endpoint = {
            "/v5/market/kline": self._kline,
            "/v5/market/funding/history": self._funding,
            "/v5/market/instruments-info": self._instruments,
        }.get(path)
        if endpoint is None:
            return 404, "<html><body>not on this tape</body></html>"
        if query.get("category") != "linear":
            return self._refusal("params error: category invalid")
        return endpoint(query)

    def _chart(self, symbol: str, query: dict[str, str]) -> Answer:
        """Yahoo's chart: daily bars that open in [period1, period2), with the dividends and splits of these days."""
        try:
            stock = self._recording.stock(symbol)
        except KeyError:
            return _not_found()
        n_visible = int(np.searchsorted(stock.bars.close_times, self._clock, side="right"))
        if n_visible == 0:
            return _not_found()
        columns, dividends = adjusted_history(stock, n_visible)
        ts = stock.bars.ts[:n_visible]
        opens_s = (ts - np.datetime64(0, "us")) // SECOND
        is_requested = (opens_s >= int(query["period1"])) & (opens_s < int(query["period2"]))
        result: dict[str, Any] = {"meta": _chart_meta(symbol, opens_s, columns["close"])}
        timestamps = opens_s[is_requested].tolist()
        quote: dict[str, list[Any]] = {name: _nulls_for_nan(values[is_requested]) for name, values in columns.items()}
        quote["volume"] = [None if volume is None else int(volume) for volume in quote["volume"]]
        next_open = stock.bars.ts[n_visible : n_visible + 1]
        if self._sends_open_bar and len(next_open) and next_open[0] <= self._clock:
            timestamps.append(int((next_open[0] - np.datetime64(0, "us")) // SECOND))
            for values in quote.values():
                values.append(None)
        if not timestamps:
            return 200, {"chart": {"result": [result | {"indicators": {"quote": [{}]}}], "error": None}}
        adjusted = quote.pop("adjclose")
        result |= {"timestamp": timestamps, "indicators": {"quote": [quote], "adjclose": [{"adjclose": adjusted}]}}
        events = _chart_events(opens_s, is_requested, dividends, stock.splits[:n_visible])
        return 200, {"chart": {"result": [result | ({"events": events} if events else {})], "error": None}}

    def _kline(self, query: dict[str, str]) -> Answer:
        """Bybit's klines that open in [start, end] (ms), the newest first, with all cells as text."""
        interval = INTERVAL_OF_CODE.get(query.get("interval", ""))
        if interval is None:
            return self._refusal("Invalid period!")
        bars = self._perpetual(query.get("symbol", "")).get(interval)
        if bars is None:
            return self._refusal("Not supported symbols")
        n_visible = int(np.searchsorted(bars.close_times, self._clock, side="right"))
        rows = [
            [str(open_ms), *(repr(price) for price in prices), repr(volume), "" if turnover is None else repr(turnover)]
            for open_ms, *prices, volume, turnover in _klines_newest_first(bars, n_visible, query, MAX_KLINE_ROWS)
        ]
        if self._sends_open_bar and n_visible:
            length = BAR_LENGTHS[interval]
            current_open = bars.ts[n_visible - 1] + ((self._clock - bars.ts[n_visible - 1]) // length) * length
            open_ms = int((current_open - np.datetime64(0, "us")) // MILLISECOND)
            if open_ms <= int(query.get("end", open_ms)):
                last_close = repr(float(bars.close[n_visible - 1]))
                rows = [[str(open_ms), *[last_close] * len(OHLC), "0", "0"], *rows][:MAX_KLINE_ROWS]
        return self._result({"symbol": query["symbol"], "category": "linear", "list": rows})

    def _funding(self, query: dict[str, str]) -> Answer:
        """Bybit's funding settlements in [startTime, endTime] (ms), the newest first."""
        symbol = query.get("symbol", "")
        if not self._perpetual(symbol):
            return self._refusal("Not supported symbols")
        if "startTime" in query and "endTime" not in query:
            return self._refusal("params error: endTime is needed with startTime")
        perpetual = self._recording.perpetual(symbol)
        n_visible = int(np.searchsorted(perpetual.funding_ts, self._clock, side="right"))
        settled_ms = _to_epoch_ms(perpetual.funding_ts[:n_visible])
        newest = _requested_range(settled_ms, query, "startTime", "endTime", MAX_FUNDING_ROWS)
        settlements = zip(settled_ms[newest].tolist(), perpetual.funding_rate[newest].tolist(), strict=True)
        rows = [
            {"symbol": symbol, "fundingRate": f"{rate:.8f}", "fundingRateTimestamp": str(time_ms)}
            for time_ms, rate in settlements
        ]
        return self._result({"category": "linear", "list": rows[::-1]})

    def _instruments(self, query: dict[str, str]) -> Answer:
        """One page of Bybit's list of instruments; the cursor is the position of the next page's first instrument."""
        symbols = [query["symbol"]] if "symbol" in query else sorted(self._recording.perpetuals())
        listed = [symbol for symbol in symbols if self._perpetual(symbol)]
        if "symbol" in query and not listed:
            return self._refusal("Not supported symbols")
        first = int(query.get("cursor") or 0)
        stop = first + min(int(query.get("limit", 500)), MAX_INSTRUMENT_ROWS)
        page = [self._instrument(symbol) for symbol in listed[first:stop]]
        cursor = str(stop) if stop < len(listed) else ""
        return self._result({"category": "linear", "list": page, "nextPageCursor": cursor})

    def _instrument(self, symbol: str) -> dict[str, Any]:
        """The instrument's fields that its bars and settlements determine; tick and lot size are empty texts."""
        perpetual = self._recording.perpetual(symbol)
        settlements = perpetual.funding_ts[perpetual.funding_ts <= self._clock]
        row: dict[str, Any] = {
            "symbol": symbol,
            "contractType": "LinearPerpetual",
            "status": "Trading",
            "baseCoin": symbol.removesuffix("USDT"),
            "quoteCoin": "USDT",
            "launchTime": str(_to_epoch_ms(perpetual.bars["1h"].ts[:1])[0]),
            "priceFilter": {"tickSize": ""},
            "lotSizeFilter": {"qtyStep": ""},
        }
        if len(settlements) > 1:
            row["fundingInterval"] = int((settlements[-1] - settlements[-2]) // MINUTE)
        return row

    def _perpetual(self, symbol: str) -> dict[str, Bars]:
        """A perpetual's bars by interval; empty for a symbol whose first hourly bar had not opened before the clock."""
        try:
            bars = self._recording.perpetual(symbol).bars
        except KeyError:
            return {}
        return bars if bars["1h"].ts[0] < self._clock else {}

    def _result(self, result: dict[str, Any]) -> Answer:
        return 200, self._body(0, "OK", result)

    def _refusal(self, message: str) -> Answer:
        return 200, self._body(10001, message, {})

    def _body(self, code: int, message: str, result: dict[str, Any]) -> dict[str, Any]:
        clock_ms = int((self._clock - np.datetime64(0, "us")) // MILLISECOND)
        return {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": clock_ms}


def adjusted_history(stock: Stock, n_visible: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Yahoo's columns by name and the dividends, arrays (n_visible,), when the first ``n_visible`` bars have closed.

    Prices, volumes and dividends are adjusted for the splits in these bars. ``adjclose`` is also adjusted for the
    dividends in these bars: each multiplies every close before its ex-date by 1 − dividend / previous close.
    """
    splits = stock.splits[:n_visible]
    ratios = np.where(splits > 0, splits, 1.0)
    shares = np.append(np.cumprod(ratios[::-1])[::-1][1:], 1.0)  # shares after all splits per share of the bar's day
    bars = stock.bars
    columns = {name: getattr(bars, name)[:n_visible] / shares for name in OHLC}
    columns["volume"] = bars.volume[:n_visible] * shares
    dividends = stock.dividends[:n_visible] / shares
    factors = np.ones(n_visible)
    factors[:-1] = 1 - dividends[1:] / columns["close"][:-1]
    columns["adjclose"] = columns["close"] * np.cumprod(factors[::-1])[::-1]
    return columns, dividends


def _chart_events(
    opens_s: np.ndarray, is_requested: np.ndarray, dividends: np.ndarray, splits: np.ndarray
) -> dict[str, dict[str, Any]]:
    """The "events" of Yahoo's chart: the dividends and splits of the requested bars; all arrays are (t,)."""
    events: dict[str, dict[str, Any]] = {}
    for t in np.flatnonzero(is_requested & (dividends > 0)):
        date_s = int(opens_s[t])
        events.setdefault("dividends", {})[str(date_s)] = {"amount": float(dividends[t]), "date": date_s}
    for t in np.flatnonzero(is_requested & (splits > 0)):
        date_s = int(opens_s[t])
        ratio = float(splits[t])
        split = {"date": date_s, "numerator": ratio, "denominator": 1.0, "splitRatio": f"{ratio:g}:1"}
        events.setdefault("splits", {})[str(date_s)] = split
    return events


def _chart_meta(symbol: str, opens_s: np.ndarray, close: np.ndarray) -> dict[str, Any]:
    return {
        "currency": "USD",
        "symbol": symbol,
        "instrumentType": "EQUITY",
        "firstTradeDate": int(opens_s[0]),
        "regularMarketTime": int(opens_s[-1]),
        "regularMarketPrice": float(close[-1]),
        "timezone": "EST",
        "exchangeTimezoneName": "America/New_York",
        "priceHint": 2,
        "dataGranularity": "1d",
        "range": "",
        "validRanges": SESSION_RANGES,
    }


def _not_found() -> Answer:
    error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
    return 404, {"chart": {"result": None, "error": error}}


def _nulls_for_nan(values: np.ndarray) -> list[float | None]:
    """The values as a list, with None for NaN."""
    return [None if value != value else value for value in values.tolist()]


def _to_epoch_ms(ts: np.ndarray) -> np.ndarray:
    """Milliseconds since 1970, UTC."""
    return (ts - np.datetime64(0, "us")) // MILLISECOND


def _requested_range(
    times_ms: np.ndarray, query: dict[str, str], start_name: str, end_name: str, max_rows: int
) -> slice:
    """The positions of the newest rows that a query requests, from the times (t,) of all rows, oldest first.

    ``start_name`` and ``end_name`` are the query's names for the first and the last time, both inclusive and optional.
    The number of rows is limited by the query's "limit" and by ``max_rows``.
    """
    start = int(np.searchsorted(times_ms, int(query[start_name]))) if start_name in query else 0
    stop = len(times_ms)
    if end_name in query:
        stop = int(np.searchsorted(times_ms, int(query[end_name]), side="right"))
    limit = max(1, min(int(query.get("limit", max_rows)), max_rows))
    return slice(max(start, stop - limit), stop)


def _klines_newest_first(bars: Bars, n_visible: int, query: dict[str, str], max_rows: int) -> list[tuple[Any, ...]]:
    """The requested bars among the first ``n_visible``: (open time in ms, open, high, low, close, volume, turnover)."""
    opens_ms = _to_epoch_ms(bars.ts[:n_visible])
    newest = _requested_range(opens_ms, query, "start", "end", max_rows)
    requested_ms = opens_ms[newest].tolist()
    columns = [getattr(bars, name)[newest].tolist() for name in (*OHLC, "volume")]
    turnover = [None] * len(requested_ms) if bars.turnover is None else bars.turnover[newest].tolist()
    return list(zip(requested_ms, *columns, turnover, strict=True))[::-1]
