"""Recorded trades and best prices of Binance's markets in a folder, as events and bars by symbol.

    <folder>/trades_*.parquet        venue, symbol, ts_ms (exchange), received_ns, side (taker), price, size, trade_id
    <folder>/top_of_book_*.parquet   venue, symbol, received_ns, bid, bid_size, ask, ask_size

The symbol BTCUSDT of the venue binance_usdm is named usdm:BTCUSDT here. Trades have the exchange's time. A book has
only the recorder's time, whose clock may be off by seconds: it is corrected by the smallest delay between both clocks
among the venue's trades received before the book, so that no later trade changes a book's time.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.panel import TS_TYPE
from models.sessions import FAR_FUTURE
from tasks.errors import NightOutOfRangeError, NoPricesError, TapeMalformedError, TapeMissingError, UnknownSymbolError
from tasks.markets.event_rows import event_columns
from tasks.markets.provider import Provider
from tasks.markets.trade_bars import bars_from_trades

TRADES = "trades_*.parquet"
BOOKS = "top_of_book_*.parquet"
NUMBER_COLUMNS = {
    TRADES: {"ts_ms": pa.int64(), "received_ns": pa.int64(), "price": pa.float64(), "size": pa.float64()},
    BOOKS: {"received_ns": pa.int64()} | dict.fromkeys(("bid", "bid_size", "ask", "ask_size"), pa.float64()),
}
TEXT_COLUMNS = {TRADES: ("venue", "symbol", "side", "trade_id"), BOOKS: ("venue", "symbol")}
MILLISECOND_NS = 1_000_000
MICROSECOND_NS = 1_000


class RecordedEvents(Provider):
    """The recording in ``folder``, of which ``fetch`` returns what was known at ``until``.

    Raises TapeMissingError without trades, TapeMalformedError for a bad file.

    ``symbols``: the symbols with trades, sorted. The recording is assumed to be complete from its ``first`` event to
    its ``last``.
    """

    def __init__(self, folder: Path, until: datetime = FAR_FUTURE) -> None:
        self._folder = folder
        self._until = until
        trades = _without_repeats(_read(folder, TRADES))
        books = _read(folder, BOOKS)
        if not trades.num_rows:
            raise TapeMissingError(f"no {TRADES} in {folder}: give the folder that holds recorded trades")
        self._rows = pa.concat_tables([_trade_rows(trades), _book_rows(books, _clock_delays(trades, books))]).sort_by(
            "ts"
        )
        self.symbols = tuple(sorted(pc.unique(_symbol_names(trades)).to_pylist()))
        self.first: datetime = self._rows["ts"][0].as_py()
        self.last: datetime = self._rows["ts"][-1].as_py()

    def check_night(self, as_of: date) -> None:
        """Raises NightOutOfRangeError unless the recording has events of the day ``as_of``."""
        if not self.first.date() <= as_of <= self.last.date():
            raise NightOutOfRangeError(
                f"the night {as_of} is not on the tape {self._folder}: its binance data runs from {self.first.date()} "
                f"to {self.last.date()}"
            )

    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """Bars and events of one symbol from ``start`` to ``end``, cut at ``until``."""
        until = min(end, self._until)
        return {"bars": self.bars(symbol, interval, start, until), "events": self.events(symbol, start, until)}

    def events(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Trades and books of one symbol with start < ts ≤ end as rows of EVENT_ROWS, oldest first."""
        rows = self._symbol_rows(symbol)
        return rows.filter(pc.and_(pc.greater(rows["ts"], start), pc.less_equal(rows["ts"], end)))

    def bars(self, symbol: str, interval: str, start: datetime, end: datetime) -> pa.Table:
        """Bars of one symbol that open at or after ``start`` and have closed by ``end``, see bars_from_trades.

        Raises UnknownSymbolError, and NoPricesError where the recording has no whole bar in the span.
        """
        rows = self._symbol_rows(symbol)
        trades = rows.filter(pc.equal(rows["kind"], "trade"))
        until = np.datetime64(min(end, self.last).astimezone(UTC).replace(tzinfo=None), "us")
        bars = bars_from_trades(trades, interval, until)
        bars = bars.filter(pc.greater_equal(bars["ts"], start))
        if not bars.num_rows:
            raise NoPricesError(f"{self._folder} has no whole bar of {symbol} from {start} to {end}")
        return bars

    def _symbol_rows(self, symbol: str) -> pa.Table:
        if symbol not in self.symbols:
            raise UnknownSymbolError(f"{self._folder} has no trade of {symbol}; it has {', '.join(self.symbols)}")
        return self._rows.filter(pc.equal(self._rows["symbol"], symbol))


def _read(folder: Path, pattern: str) -> pa.Table:
    """All files of a pattern as one table with the columns of that pattern; empty where there is no file."""
    schema = pa.schema([(name, pa.string()) for name in TEXT_COLUMNS[pattern]] + list(NUMBER_COLUMNS[pattern].items()))
    tables = [schema.empty_table()]
    for path in sorted(folder.glob(pattern)):
        try:
            tables.append(pq.read_table(path, columns=schema.names).select(schema.names).cast(schema))
        except (pa.ArrowException, OSError, KeyError, ValueError) as exc:
            raise TapeMalformedError(f"{path} cannot be read as {', '.join(schema.names)}: {exc}") from exc
        _refuse_invalid(tables[-1], path)
    return pa.concat_tables(tables)


def _without_repeats(trades: pa.Table) -> pa.Table:
    """The trades without repeats, which files that overlap contain: a bar must not count a trade twice."""
    keys = trades.select(["venue", "symbol", "ts_ms", "trade_id"]).to_pandas()
    return trades.filter(pa.array(~keys.duplicated().to_numpy()))


def _refuse_invalid(table: pa.Table, path: Path) -> None:
    """Raises TapeMalformedError for the first row with a missing value, or a number that is not positive and finite."""
    valid = np.ones(table.num_rows, dtype=bool)
    for name in table.column_names:
        valid &= table[name].is_valid().to_numpy()
        if name not in ("venue", "symbol", "side", "trade_id"):
            positive = pc.and_(pc.greater(table[name], 0), pc.is_finite(table[name]))
            valid &= pc.fill_null(positive, False).to_numpy()
    if "side" in table.column_names:
        valid &= pc.fill_null(pc.is_in(table["side"], pa.array(["buy", "sell"])), False).to_numpy()
    if not table.num_rows or not valid.all():
        row = int(np.argmin(valid)) if table.num_rows else 0
        raise TapeMalformedError(f"{path}: row {row} is no event: {table.slice(row, 1).to_pylist()}")


def _symbol_names(table: pa.Table) -> pa.ChunkedArray:
    """Every row's symbol with its market, such as usdm:BTCUSDT."""
    market = pc.replace_substring_regex(table["venue"], "^binance_", "")
    return pc.binary_join_element_wise(market, table["symbol"], ":")


def _clock_delays(trades: pa.Table, books: pa.Table) -> np.ndarray:
    """Nanoseconds (b,) from the exchange's time of each book to the recorder's time of its receipt.

    It is the smallest delay of the venue's trades received before the book; books before the first trade get the delay
    of that trade. Raises TapeMalformedError for a venue without trades.
    """
    book_received = books["received_ns"].to_numpy()
    delays = np.zeros(books.num_rows, dtype=np.int64)
    for venue in pc.unique(books["venue"]).to_pylist():
        venue_trades = trades.filter(pc.equal(trades["venue"], venue)).sort_by("received_ns")
        if not venue_trades.num_rows:
            raise TapeMalformedError(f"books of {venue} without one trade: their delay is unknown; remove them")
        trade_received = venue_trades["received_ns"].to_numpy()
        smallest = np.minimum.accumulate(trade_received - venue_trades["ts_ms"].to_numpy() * MILLISECOND_NS)
        is_venue = pc.equal(books["venue"], venue).to_numpy()
        last_trade = np.searchsorted(trade_received, book_received[is_venue], side="right") - 1
        delays[is_venue] = smallest[np.maximum(last_trade, 0)]
    return delays


def _trade_rows(trades: pa.Table) -> pa.Table:
    return event_columns(
        "trade",
        trades.num_rows,
        symbol=_symbol_names(trades),
        ts=_instants(trades["ts_ms"].to_numpy() * MILLISECOND_NS),
        event_id=trades["trade_id"],
        side=trades["side"],
        price=trades["price"],
        size=trades["size"],
    )


def _book_rows(books: pa.Table, delays_ns: np.ndarray) -> pa.Table:
    return event_columns(
        "book",
        books.num_rows,
        symbol=_symbol_names(books),
        ts=_instants(books["received_ns"].to_numpy() - delays_ns),
        event_id=books["received_ns"].cast(pa.string()),
        **{name: books[name] for name in ("bid", "ask", "bid_size", "ask_size")},
    )


def _instants(nanoseconds: np.ndarray) -> pa.Array:
    # rounded up: a time rounded down to whole microseconds would be a little too early
    microseconds = -(-nanoseconds // MICROSECOND_NS)
    return pa.array(microseconds.astype("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE)
