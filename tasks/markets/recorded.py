"""Recorded market data in a folder, symbol by symbol.

    <folder>/yahoo/bars_1d.parquet     symbol, date, open, high, low, close, adj_close, volume
    <folder>/bybit/klines_60.parquet   symbol, ts (UTC bar open), open, high, low, close, volume[, turnover]
    <folder>/bybit/klines_D.parquet    the same by day; optional
    <folder>/bybit/funding.parquet     symbol, ts (settlement), funding_rate; optional

Yahoo's prices were recorded split-adjusted to the end of the recording, and the recording does not contain the splits:
before a later split a price is a fraction of the price traded then. Returns, and volumes in dollars, are unaffected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.sessions import INTERVALS, bar_closes, bar_opens, last_session, session_dates
from tasks.errors import NightOutOfRangeError, TapeMalformedError, TapeMissingError
from tasks.markets.recording import OHLC, Bars, Perpetual, Stock

YAHOO_DAILY = "yahoo/bars_1d.parquet"
BYBIT_HOURLY = "bybit/klines_60.parquet"
BYBIT_DAILY = "bybit/klines_D.parquet"
BYBIT_FUNDING = "bybit/funding.parquet"
FILES = {"yahoo": YAHOO_DAILY, "bybit": BYBIT_HOURLY}
# Every dividend moves adj_close / close by more than 3e-5, and the recorded floats' noise moves it by less than 1e-6.
DIVIDEND_STEP = 1e-5
PRICE_NOISE = 1e-6
SESSION_OPEN = np.timedelta64(14 * 60 + 30, "m")  # for a recorded day that the calendar has no session on


class RecordedMarket:
    """The recording in ``folder``. Raises TapeMissingError or TapeMalformedError on reading a missing or bad file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise TapeMissingError(f"no tape at {folder}: give the folder that holds {', '.join(FILES.values())}")
        if not self.providers:
            raise TapeMissingError(f"the tape {folder} holds none of {', '.join(FILES.values())}")

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that this recording has data of."""
        return tuple(provider for provider, pattern in FILES.items() if any(self._folder.glob(pattern)))

    def check_night(self, provider: str, as_of: date) -> None:
        """Raises NightOutOfRangeError unless the recording covers every bar that had closed by the end of ``as_of``."""
        if provider == "yahoo":
            dates = self._daily.columns["date"]
            first = dates.min().astype(date)
            last = dates.max().astype(date)
            due = last_session("XNYS", as_of)
        else:
            ts = self._hourly.columns["ts"]
            first = ts.min().astype(datetime).date()
            last = (ts.max() + INTERVALS["1h"]).astype(datetime).date() - timedelta(days=1)  # the last whole day
            due = as_of
        if not first <= due <= last:
            raise NightOutOfRangeError(
                f"the night {as_of} is not on the tape {self._folder}: its {provider} data runs from {first} to {last}"
            )

    def perpetuals(self) -> Sequence[str]:
        """The symbols of the hourly bars."""
        return list(self._hourly.slices)

    def stock(self, symbol: str) -> Stock:
        """One stock. Raises KeyError for a symbol that is not recorded."""
        columns = self._daily.symbol_columns(symbol)
        dates = columns["date"]
        first = dates[0].astype(date)
        stop = dates[-1].astype(date) + timedelta(days=1)
        sessions = session_dates("XNYS", first, stop)
        is_session = np.isin(dates, sessions)
        ts = dates.astype("datetime64[us]") + SESSION_OPEN
        ts[is_session] = bar_opens("XNYS", "1d", first, stop)[np.searchsorted(sessions, dates[is_session])]
        bars = _bars(columns, ts, bar_closes("XNYS", "1d", ts))
        return Stock(bars, infer_dividends(bars.close, columns["adj_close"]), np.zeros(len(ts)))

    def perpetual(self, symbol: str) -> Perpetual:
        """One perpetual. Raises KeyError for a symbol that is not recorded."""
        bars = {"1h": _klines(self._hourly.symbol_columns(symbol), "1h")}
        if self._daily_klines is not None and symbol in self._daily_klines.slices:
            bars["1d"] = _klines(self._daily_klines.symbol_columns(symbol), "1d")
        if self._funding is None or symbol not in self._funding.slices:
            return Perpetual(bars, np.array([], "datetime64[us]"), np.array([]))
        funding = self._funding.symbol_columns(symbol)
        return Perpetual(bars, funding["ts"], funding["funding_rate"])

    @cached_property
    def _daily(self) -> SymbolTable:
        return SymbolTable(self._folder / YAHOO_DAILY, "date", (*OHLC, "adj_close", "volume"))

    @cached_property
    def _hourly(self) -> SymbolTable:
        return SymbolTable(self._folder / BYBIT_HOURLY, "ts", (*OHLC, "volume"), optional=("turnover",))

    @cached_property
    def _daily_klines(self) -> SymbolTable | None:
        path = self._folder / BYBIT_DAILY
        if not path.is_file():
            return None
        return SymbolTable(path, "ts", (*OHLC, "volume"), optional=("turnover",), may_be_empty=True)

    @cached_property
    def _funding(self) -> SymbolTable | None:
        path = self._folder / BYBIT_FUNDING
        return SymbolTable(path, "ts", ("funding_rate",), may_be_empty=True) if path.is_file() else None


class SymbolTable:
    """A parquet file as arrays sorted by (symbol, time): ``columns`` by name, and each symbol's rows in ``slices``."""

    def __init__(
        self,
        path: Path,
        time: str,
        numbers: Iterable[str],
        optional: Iterable[str] = (),
        may_be_empty: bool = False,
    ) -> None:
        if not path.is_file():
            raise TapeMissingError(f"the tape has no {path}")
        try:
            present = set(pq.read_schema(path).names)
            missing = {"symbol", time, *numbers} - present
            if missing:
                raise TapeMalformedError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            numbers = [*numbers, *(name for name in optional if name in present)]
            table = pq.read_table(path, columns=["symbol", time, *numbers])
            table = table.cast(
                pa.schema(
                    [("symbol", pa.string()), (time, pa.date32() if time == "date" else pa.timestamp("us", "UTC"))]
                    + [(name, pa.float64()) for name in numbers]
                )
            )
        except (pa.ArrowException, OSError) as exc:
            raise TapeMalformedError(f"{path} cannot be read as a table of {time} and numbers: {exc}") from exc
        if table["symbol"].null_count or table[time].null_count or (table.num_rows == 0 and not may_be_empty):
            raise TapeMalformedError(f"{path} is empty, or has rows without a symbol or {time}")
        names = table["symbol"].combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy()
        stamps = table[time].to_numpy().astype("datetime64[D]" if time == "date" else "datetime64[us]")
        order = np.lexsort((stamps, codes))
        codes = codes[order]
        stamps = stamps[order]
        is_repeat = (codes[1:] == codes[:-1]) & (stamps[1:] == stamps[:-1])
        if is_repeat.any():
            k = int(np.argmax(is_repeat))
            raise TapeMalformedError(f"{path} has {names.dictionary[int(codes[k])]} {stamps[k]} twice")
        edges = np.searchsorted(codes, np.arange(len(names.dictionary) + 1))
        self.slices = {
            symbol: slice(int(edges[k]), int(edges[k + 1])) for k, symbol in enumerate(names.dictionary.to_pylist())
        }
        self.columns = {time: stamps} | {name: table[name].to_numpy()[order] for name in numbers}

    def symbol_columns(self, symbol: str) -> dict[str, np.ndarray]:
        """One symbol's columns, oldest first. Raises KeyError for a symbol that the file does not have."""
        rows = self.slices[symbol]
        return {name: column[rows] for name, column in self.columns.items()}


def _bars(columns: dict[str, np.ndarray], ts: np.ndarray, closes: np.ndarray) -> Bars:
    prices = {name: columns[name] for name in OHLC}
    return Bars(ts, closes, **prices, volume=columns["volume"], turnover=columns.get("turnover"))


def _klines(columns: dict[str, np.ndarray], interval: str) -> Bars:
    return _bars(columns, columns["ts"], columns["ts"] + INTERVALS[interval])


def infer_dividends(close: np.ndarray, adj_close: np.ndarray) -> np.ndarray:
    """Dividends (t,) in dollars a share, 0 on days other than ex-dates, computed from Yahoo's adjusted closes.

    Yahoo lowers every adjusted close before an ex-date by the factor 1 − dividend / previous close. The amount is
    rounded to as many decimals as the recorded floats are accurate to at that price.
    """
    ratio = adj_close / close
    step = np.full(len(close), 0.0)
    step[1:] = ratio[1:] / ratio[:-1] - 1
    amounts = np.zeros(len(close))
    for k in np.flatnonzero(step > DIVIDEND_STEP):
        decimals = int(np.floor(-np.log10(close[k - 1] * PRICE_NOISE)))
        amounts[k] = round(close[k - 1] * step[k] / (1 + step[k]), decimals)
    return amounts
