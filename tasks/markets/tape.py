"""A requests transport that answers as Yahoo and Bybit would at one instant, from recorded or simulated bars.

The real clients use it, so that offline runs go through their paging, parsing and error handling. Bars that had not
closed at the clock are missing: a symbol without a closed bar is unknown, and Yahoo's adjusted closes and dividends are
adjusted only for splits and dividends up to the clock.
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

from models.sessions import INTERVALS
from tasks.markets.recording import OHLC, Bars, Recording, Stock

CHART = "/v8/finance/chart/"
KLINE_CAP = 1000  # rows of one answer at most, here and below
FUNDING_CAP = 200
INSTRUMENT_CAP = 1000
INTERVAL_NAMES = {"60": "1h", "D": "1d"}
SECOND, MILLISECOND, MINUTE = (np.timedelta64(1, unit) for unit in ("s", "ms", "m"))
SESSION_RANGES = ["1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max"]
Answer = tuple[int, Any]


class Tape(BaseAdapter):
    """The transport. With ``partial`` it also sends the newest bar, which has not closed, as live answers do: Bybit's
    has all prices equal to the last close, Yahoo's is all null."""

    def __init__(self, recording: Recording, clock: datetime, partial: bool = False) -> None:
        super().__init__()
        self._recording = recording
        self._partial = partial
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
        if path.startswith(CHART):
            return self._chart(path.removeprefix(CHART), query)
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
        try:
            stock = self._recording.stock(symbol)
        except KeyError:
            return _not_found()
        visible = int(np.searchsorted(stock.bars.closes, self._clock, side="right"))
        if visible == 0:
            return _not_found()
        columns, dividends = adjusted_history(stock, visible)
        ts = stock.bars.ts[:visible]
        seconds = (ts - np.datetime64(0, "us")) // SECOND
        rows = (seconds >= int(query["period1"])) & (seconds < int(query["period2"]))
        result: dict[str, Any] = {"meta": _meta(symbol, seconds, columns["close"])}
        stamps = seconds[rows].tolist()
        quote: dict[str, list[Any]] = {name: _numbers(values[rows]) for name, values in columns.items()}
        quote["volume"] = [None if v is None else int(v) for v in quote["volume"]]
        next_open = stock.bars.ts[visible : visible + 1]
        if self._partial and len(next_open) and next_open[0] <= self._clock:
            stamps.append(int((next_open[0] - np.datetime64(0, "us")) // SECOND))
            for values in quote.values():
                values.append(None)
        if not stamps:
            return 200, {"chart": {"result": [result | {"indicators": {"quote": [{}]}}], "error": None}}
        adjusted = quote.pop("adjclose")
        result |= {"timestamp": stamps, "indicators": {"quote": [quote], "adjclose": [{"adjclose": adjusted}]}}
        events = _events(seconds, rows, dividends, stock.splits[:visible])
        return 200, {"chart": {"result": [result | ({"events": events} if events else {})], "error": None}}

    def _kline(self, query: dict[str, str]) -> Answer:
        interval = INTERVAL_NAMES.get(query.get("interval", ""))
        if interval is None:
            return self._refusal("Invalid period!")
        bars = self._perpetual(query.get("symbol", "")).get(interval)
        if bars is None:
            return self._refusal("Not supported symbols")
        visible = int(np.searchsorted(bars.closes, self._clock, side="right"))
        rows = [
            [str(stamp), *(repr(price) for price in prices), repr(volume), "" if turnover is None else repr(turnover)]
            for stamp, *prices, volume, turnover in _newest_first(bars, visible, query, KLINE_CAP)
        ]
        if self._partial and visible:
            length = INTERVALS[interval]
            current_open = bars.ts[visible - 1] + ((self._clock - bars.ts[visible - 1]) // length) * length
            stamp = int((current_open - np.datetime64(0, "us")) // MILLISECOND)
            if stamp <= int(query.get("end", stamp)):
                flat = repr(float(bars.close[visible - 1]))
                rows = [[str(stamp), flat, flat, flat, flat, "0", "0"], *rows][:KLINE_CAP]
        return self._result({"symbol": query["symbol"], "category": "linear", "list": rows})

    def _funding(self, query: dict[str, str]) -> Answer:
        symbol = query.get("symbol", "")
        if not self._perpetual(symbol):
            return self._refusal("Not supported symbols")
        if "startTime" in query and "endTime" not in query:
            return self._refusal("params error: endTime is needed with startTime")
        perpetual = self._recording.perpetual(symbol)
        visible = int(np.searchsorted(perpetual.funding_ts, self._clock, side="right"))
        stamps = _milliseconds(perpetual.funding_ts[:visible])
        start, stop, limit = _span(stamps, query, "startTime", "endTime", FUNDING_CAP)
        first = max(start, stop - limit)
        rows = zip(stamps[first:stop].tolist(), perpetual.funding_rate[first:stop].tolist(), strict=True)
        rates = [
            {"symbol": symbol, "fundingRate": f"{rate:.8f}", "fundingRateTimestamp": str(stamp)} for stamp, rate in rows
        ]
        return self._result({"category": "linear", "list": rates[::-1]})

    def _instruments(self, query: dict[str, str]) -> Answer:
        symbols = [query["symbol"]] if "symbol" in query else sorted(self._recording.perpetuals())
        listed = [symbol for symbol in symbols if self._perpetual(symbol)]
        if "symbol" in query and not listed:
            return self._refusal("Not supported symbols")
        first = int(query.get("cursor") or 0)
        stop = first + min(int(query.get("limit", 500)), INSTRUMENT_CAP)
        page = [self._instrument(symbol) for symbol in listed[first:stop]]
        cursor = str(stop) if stop < len(listed) else ""
        return self._result({"category": "linear", "list": page, "nextPageCursor": cursor})

    def _instrument(self, symbol: str) -> dict[str, Any]:
        """The instrument's fields that follow from its bars and settlements; a tape has no tick or lot size."""
        perpetual = self._recording.perpetual(symbol)
        settlements = perpetual.funding_ts[perpetual.funding_ts <= self._clock]
        row: dict[str, Any] = {
            "symbol": symbol,
            "contractType": "LinearPerpetual",
            "status": "Trading",
            "baseCoin": symbol.removesuffix("USDT"),
            "quoteCoin": "USDT",
            "launchTime": str(_milliseconds(perpetual.bars["1h"].ts[:1])[0]),
            "priceFilter": {"tickSize": ""},
            "lotSizeFilter": {"qtyStep": ""},
        }
        return row | (
            {"fundingInterval": int((settlements[-1] - settlements[-2]) // MINUTE)} if len(settlements) > 1 else {}
        )

    def _perpetual(self, symbol: str) -> dict[str, Bars]:
        """A perpetual's bars by interval; empty for a symbol that was not listed at the clock."""
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
        time = int((self._clock - np.datetime64(0, "us")) // MILLISECOND)
        return {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": time}


def adjusted_history(stock: Stock, visible: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Yahoo's columns and dividends, (visible,) each, at the time when the first ``visible`` bars have closed.

    Prices, volumes and dividends are adjusted for the splits up to then; adjclose also for the dividends up to then,
    each of which lowers every close before its ex-date by the factor 1 − dividend / previous close.
    """
    splits = stock.splits[:visible]
    ratios = np.where(splits > 0, splits, 1.0)
    shares = np.append(np.cumprod(ratios[::-1])[::-1][1:], 1.0)
    bars = stock.bars
    columns = {name: getattr(bars, name)[:visible] / shares for name in OHLC}
    columns["volume"] = bars.volume[:visible] * shares
    dividends = stock.dividends[:visible] / shares
    factors = np.ones(visible)
    factors[:-1] = 1 - dividends[1:] / columns["close"][:-1]
    columns["adjclose"] = columns["close"] * np.cumprod(factors[::-1])[::-1]
    return columns, dividends


def _events(
    seconds: np.ndarray, rows: np.ndarray, dividends: np.ndarray, splits: np.ndarray
) -> dict[str, dict[str, Any]]:
    events: dict[str, dict[str, Any]] = {}
    for k in np.flatnonzero(rows & (dividends > 0)):
        stamp = int(seconds[k])
        events.setdefault("dividends", {})[str(stamp)] = {"amount": float(dividends[k]), "date": stamp}
    for k in np.flatnonzero(rows & (splits > 0)):
        stamp = int(seconds[k])
        ratio = float(splits[k])
        split = {"date": stamp, "numerator": ratio, "denominator": 1.0, "splitRatio": f"{ratio:g}:1"}
        events.setdefault("splits", {})[str(stamp)] = split
    return events


def _meta(symbol: str, seconds: np.ndarray, close: np.ndarray) -> dict[str, Any]:
    return {
        "currency": "USD",
        "symbol": symbol,
        "instrumentType": "EQUITY",
        "firstTradeDate": int(seconds[0]),
        "regularMarketTime": int(seconds[-1]),
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


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def _milliseconds(ts: np.ndarray) -> np.ndarray:
    return (ts - np.datetime64(0, "us")) // MILLISECOND


def _span(stamps: np.ndarray, query: dict[str, str], start: str, end: str, cap: int) -> tuple[int, int, int]:
    """Positions [first, stop) of the stamps between the query's start and end, both included, and its row limit."""
    first = int(np.searchsorted(stamps, int(query[start]))) if start in query else 0
    stop = int(np.searchsorted(stamps, int(query[end]), side="right")) if end in query else len(stamps)
    return first, stop, max(1, min(int(query.get("limit", cap)), cap))


def _newest_first(bars: Bars, visible: int, query: dict[str, str], cap: int) -> list[tuple[Any, ...]]:
    stamps = _milliseconds(bars.ts[:visible])
    start, stop, limit = _span(stamps, query, "start", "end", cap)
    first = max(start, stop - limit)
    columns = [getattr(bars, name)[first:stop].tolist() for name in (*OHLC, "volume")]
    turnover = [None] * (stop - first) if bars.turnover is None else bars.turnover[first:stop].tolist()
    return list(zip(stamps[first:stop].tolist(), *columns, turnover, strict=True))[::-1]
