"""Recorded market data in a folder (a tape), read as one symbol's arrays per call.

    <folder>/yahoo/bars_1d.parquet     symbol, date, open, high, low, close, adj_close, volume
    <folder>/bybit/klines_60.parquet   symbol, ts (UTC bar open), open, high, low, close, volume[, turnover]
    <folder>/bybit/klines_D.parquet    the same by day; optional
    <folder>/bybit/funding.parquet     symbol, ts (settlement), funding_rate; optional

Yahoo's prices were recorded at the end of the recording, adjusted for all splits up to then. The recording does not
contain the splits, so a recorded price before a split is a fraction of the traded price. Returns, and volumes in
dollars, are unaffected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.sessions import BAR_LENGTHS, bar_closes, bar_opens, last_session, session_dates
from tasks.errors import NightOutOfRangeError, TapeMalformedError, TapeMissingError
from tasks.markets.recording import OHLC, Bars, Perpetual, Stock

YAHOO_DAILY = "yahoo/bars_1d.parquet"
BYBIT_HOURLY = "bybit/klines_60.parquet"
BYBIT_DAILY = "bybit/klines_D.parquet"
BYBIT_FUNDING = "bybit/funding.parquet"
FILES = {"yahoo": YAHOO_DAILY, "bybit": BYBIT_HOURLY}
# A recorded dividend changes adj_close / close by a fraction of more than 3e-5, rounding changes it by less than 1e-6.
MIN_DIVIDEND_STEP = 1e-5
PRICE_NOISE = 1e-6
DEFAULT_SESSION_OPEN = np.timedelta64(14 * 60 + 30, "m")  # UTC, for a recorded day without a session


class RecordedMarket:
    """The recording in ``folder``. A file is read when it is first needed.

    Every method raises TapeMissingError for a missing file and TapeMalformedError for an invalid file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise TapeMissingError(f"no tape at {folder}: give the folder that holds {', '.join(FILES.values())}")
        if not self.providers:
            raise TapeMissingError(f"the tape {folder} holds none of {', '.join(FILES.values())}")

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers whose required file this recording has."""
        return tuple(provider for provider, pattern in FILES.items() if any(self._folder.glob(pattern)))

    def check_night(self, provider: str, as_of: date) -> None:
        """Raises NightOutOfRangeError unless the recording has the last bars that closed by the end of ``as_of``."""
        if provider == "yahoo":
            dates = self._daily.columns["date"]
            first_date = dates.min().astype(date)
            last_date = dates.max().astype(date)
            due_date = last_session("XNYS", as_of)
        else:
            ts = self._hourly.columns["ts"]
            first_date = ts.min().astype(datetime).date()
            last_close = (ts.max() + BAR_LENGTHS["1h"]).astype(datetime)
            last_date = last_close.date() - timedelta(days=1)  # the last complete day
            due_date = as_of
        if not first_date <= due_date <= last_date:
            raise NightOutOfRangeError(
                f"the night {as_of} is not on the tape {self._folder}: its {provider} data runs from "
                f"{first_date} to {last_date}"
            )

    def perpetuals(self) -> Sequence[str]:
        """The symbols that have hourly bars."""
        return list(self._hourly.slices)

    def stock(self, symbol: str) -> Stock:
        """One stock. Raises KeyError for a symbol that is not recorded."""
        columns = self._daily.symbol_columns(symbol)
        dates = columns["date"]
        first = dates[0].astype(date)
        stop = dates[-1].astype(date) + timedelta(days=1)
        sessions = session_dates("XNYS", first, stop)
        is_session = np.isin(dates, sessions)
        ts = dates.astype("datetime64[us]") + DEFAULT_SESSION_OPEN
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
    """A parquet file as arrays (rows,), sorted by (symbol, time).

    ``columns``: the array of the time column and of each number column, by name; times are datetime64[D] for the column
    "date", datetime64[us] (UTC) otherwise, numbers float64. ``slices``: each symbol's slice of these arrays.

    Raises TapeMissingError if there is no file. Raises TapeMalformedError if a required column is missing, a column has
    another type, a symbol or time is null, a (symbol, time) is repeated, or the file is empty and may not be.
    """

    def __init__(
        self,
        path: Path,
        time_column: str,
        number_columns: Iterable[str],
        optional: Iterable[str] = (),
        may_be_empty: bool = False,
    ) -> None:
        if not path.is_file():
            raise TapeMissingError(f"the tape has no {path}")
        try:
            present = set(pq.read_schema(path).names)
            missing = {"symbol", time_column, *number_columns} - present
            if missing:
                raise TapeMalformedError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            number_columns = [*number_columns, *(name for name in optional if name in present)]
            time_type = pa.date32() if time_column == "date" else pa.timestamp("us", "UTC")
            number_fields = [(name, pa.float64()) for name in number_columns]
            schema = pa.schema([("symbol", pa.string()), (time_column, time_type), *number_fields])
            table = pq.read_table(path, columns=schema.names).cast(schema)
        except (pa.ArrowException, OSError) as exc:
            raise TapeMalformedError(f"{path} cannot be read as a table of {time_column} and numbers: {exc}") from exc
        if table["symbol"].null_count or table[time_column].null_count or (table.num_rows == 0 and not may_be_empty):
            raise TapeMalformedError(f"{path} is empty, or has rows without a symbol or {time_column}")
        symbols = table["symbol"].combine_chunks().dictionary_encode()
        codes = symbols.indices.to_numpy()
        times = table[time_column].to_numpy().astype("datetime64[D]" if time_column == "date" else "datetime64[us]")
        order = np.lexsort((times, codes))
        codes = codes[order]
        times = times[order]
        is_repeat = (codes[1:] == codes[:-1]) & (times[1:] == times[:-1])
        if is_repeat.any():
            row = int(np.argmax(is_repeat))
            raise TapeMalformedError(f"{path} has {symbols.dictionary[int(codes[row])]} {times[row]} twice")
        edges = np.searchsorted(codes, np.arange(len(symbols.dictionary) + 1)).tolist()
        self.slices = {
            symbol: slice(edges[code], edges[code + 1]) for code, symbol in enumerate(symbols.dictionary.to_pylist())
        }
        self.columns = {time_column: times} | {name: table[name].to_numpy()[order] for name in number_columns}

    def symbol_columns(self, symbol: str) -> dict[str, np.ndarray]:
        """One symbol's columns, oldest first. Raises KeyError for a symbol that the file does not have."""
        rows = self.slices[symbol]
        return {name: column[rows] for name, column in self.columns.items()}


def _bars(columns: dict[str, np.ndarray], ts: np.ndarray, close_times: np.ndarray) -> Bars:
    prices = {name: columns[name] for name in OHLC}
    return Bars(ts, close_times, **prices, volume=columns["volume"], turnover=columns.get("turnover"))


def _klines(columns: dict[str, np.ndarray], interval: str) -> Bars:
    return _bars(columns, columns["ts"], columns["ts"] + BAR_LENGTHS[interval])


def infer_dividends(close: np.ndarray, adj_close: np.ndarray) -> np.ndarray:
    """Dividends (t,) in dollars per share, computed from Yahoo's closes (t,) and adjusted closes (t,).

    Yahoo multiplies every adjusted close before an ex-date by 1 − dividend / previous close. An amount is rounded to
    the decimals that are above the noise of the recorded prices. Days other than ex-dates have 0.
    """
    ratio = adj_close / close
    step = np.full(len(close), 0.0)
    step[1:] = ratio[1:] / ratio[:-1] - 1
    dividends = np.zeros(len(close))
    for t in np.flatnonzero(step > MIN_DIVIDEND_STEP):
        decimals = int(np.floor(-np.log10(close[t - 1] * PRICE_NOISE)))
        dividends[t] = round(close[t - 1] * step[t] / (1 + step[t]), decimals)
    return dividends
