"""Recorded trades and order books (best bid and ask) of Binance's markets in a folder, as events and bars by symbol.

    <folder>/trades_*.parquet        venue, symbol, ts_ms (exchange), received_ns, side (taker), price, size, trade_id
    <folder>/top_of_book_*.parquet   venue, symbol, received_ns, bid, bid_size, ask, ask_size

The symbol BTCUSDT of the venue binance_usdm is named usdm:BTCUSDT here.

A trade has the exchange's time. A book has only the time of its receipt by the recorder's clock, which can be wrong by
seconds. Its exchange time is estimated as that time minus the smallest delay (receipt minus exchange time) among the
venue's trades received before the book, so that no later trade changes a book's time.
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

TRADE_FILES = "trades_*.parquet"
BOOK_FILES = "top_of_book_*.parquet"
NUMBER_COLUMNS = {
    TRADE_FILES: {"ts_ms": pa.int64(), "received_ns": pa.int64(), "price": pa.float64(), "size": pa.float64()},
    BOOK_FILES: {"received_ns": pa.int64()} | dict.fromkeys(("bid", "bid_size", "ask", "ask_size"), pa.float64()),
}
TEXT_COLUMNS = {TRADE_FILES: ("venue", "symbol", "side", "trade_id"), BOOK_FILES: ("venue", "symbol")}
MILLISECOND_NS = 1_000_000
MICROSECOND_NS = 1_000


class RecordedEvents(Provider):
    """The recording in ``folder``; ``fetch`` returns only events up to ``until`` (UTC).

    ``symbols``: the symbols that have trades, sorted. ``first_ts``, ``last_ts``: the times of the first and the last
    event; between them the recording is assumed to be complete.

    Raises TapeMissingError if the folder has no trades, TapeMalformedError for an invalid file.
    """

    def __init__(self, folder: Path, until: datetime = FAR_FUTURE) -> None:
        self._folder = folder
        self._until = until
        trades = _without_repeats(_read_files(folder, TRADE_FILES))
        books = _read_files(folder, BOOK_FILES)
        if not trades.num_rows:
            raise TapeMissingError(f"no {TRADE_FILES} in {folder}: give the folder that holds recorded trades")
        book_events = _book_rows(books, _clock_delays(trades, books))
        self._rows = pa.concat_tables([_trade_rows(trades), book_events]).sort_by("ts")
        self.symbols = tuple(sorted(pc.unique(_qualified_symbols(trades)).to_pylist()))
        self.first_ts: datetime = self._rows["ts"][0].as_py()
        self.last_ts: datetime = self._rows["ts"][-1].as_py()

    def check_night(self, as_of: date) -> None:
        """Raises NightOutOfRangeError unless the recording has events of the day ``as_of``."""
        if not self.first_ts.date() <= as_of <= self.last_ts.date():
            raise NightOutOfRangeError(
                f"the night {as_of} is not on the tape {self._folder}: its binance data runs from "
                f"{self.first_ts.date()} to {self.last_ts.date()}"
            )

    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """``bars`` and ``events`` of one symbol from ``start`` to the earlier of ``end`` and ``until``."""
        until = min(end, self._until)
        return {"bars": self.bars(symbol, interval, start, until), "events": self.events(symbol, start, until)}

    def events(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Trades and books of one symbol with start < ts ≤ end, a table of EVENT_SCHEMA, oldest first."""
        rows = self._symbol_rows(symbol)
        return rows.filter(pc.and_(pc.greater(rows["ts"], start), pc.less_equal(rows["ts"], end)))

    def bars(self, symbol: str, interval: str, start: datetime, end: datetime) -> pa.Table:
        """Bars of one symbol that open at or after ``start`` and close by ``end``; see bars_from_trades.

        Raises UnknownSymbolError, and NoPricesError if the recording has no complete bar between ``start`` and ``end``.
        """
        rows = self._symbol_rows(symbol)
        trades = rows.filter(pc.equal(rows["kind"], "trade"))
        until = np.datetime64(min(end, self.last_ts).astimezone(UTC).replace(tzinfo=None), "us")
        bars = bars_from_trades(trades, interval, until)
        bars = bars.filter(pc.greater_equal(bars["ts"], start))
        if not bars.num_rows:
            raise NoPricesError(f"{self._folder} has no whole bar of {symbol} from {start} to {end}")
        return bars

    def _symbol_rows(self, symbol: str) -> pa.Table:
        if symbol not in self.symbols:
            raise UnknownSymbolError(f"{self._folder} has no trade of {symbol}; it has {', '.join(self.symbols)}")
        return self._rows.filter(pc.equal(self._rows["symbol"], symbol))


def _read_files(folder: Path, pattern: str) -> pa.Table:
    """All files of a pattern as one table with the pattern's columns; without rows if there is no file."""
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
    """Each trade once. Files can overlap, and a bar must not count a trade twice."""
    keys = trades.select(["venue", "symbol", "ts_ms", "trade_id"]).to_pandas()
    return trades.filter(pa.array(~keys.duplicated().to_numpy()))


def _refuse_invalid(table: pa.Table, path: Path) -> None:
    """Raises TapeMalformedError for an empty table, or for the first invalid row.

    A row is valid if it has no null, its numbers are positive and finite, and its side is buy or sell.
    """
    is_valid = np.ones(table.num_rows, dtype=bool)
    for name in table.column_names:
        is_valid &= table[name].is_valid().to_numpy()
        if name not in TEXT_COLUMNS[TRADE_FILES]:
            is_positive = pc.and_(pc.greater(table[name], 0), pc.is_finite(table[name]))
            is_valid &= pc.fill_null(is_positive, False).to_numpy()
    if "side" in table.column_names:
        is_valid &= pc.fill_null(pc.is_in(table["side"], pa.array(["buy", "sell"])), False).to_numpy()
    if not table.num_rows or not is_valid.all():
        row = int(np.argmin(is_valid)) if table.num_rows else 0
        raise TapeMalformedError(f"{path}: row {row} is no event: {table.slice(row, 1).to_pylist()}")


def _qualified_symbols(table: pa.Table) -> pa.ChunkedArray:
    """Every row's symbol with its market as prefix, such as usdm:BTCUSDT."""
    market = pc.replace_substring_regex(table["venue"], "^binance_", "")
    return pc.binary_join_element_wise(market, table["symbol"], ":")


def _clock_delays(trades: pa.Table, books: pa.Table) -> np.ndarray:
    """The estimated delay of each book (b,), int64 nanoseconds from the exchange's time to the recorder's receipt.

    It is the smallest delay of the venue's trades received up to the book. Books before the venue's first trade get the
    delay of that trade. Raises TapeMalformedError for books of a venue without trades.
    """
    book_received_ns = books["received_ns"].to_numpy()
    delays_ns = np.zeros(books.num_rows, dtype=np.int64)
    for venue in pc.unique(books["venue"]).to_pylist():
        venue_trades = trades.filter(pc.equal(trades["venue"], venue)).sort_by("received_ns")
        if not venue_trades.num_rows:
            raise TapeMalformedError(f"books of {venue} without one trade: their delay is unknown; remove them")
        trade_received_ns = venue_trades["received_ns"].to_numpy()
        trade_delays_ns = trade_received_ns - venue_trades["ts_ms"].to_numpy() * MILLISECOND_NS
        smallest_delays_ns = np.minimum.accumulate(trade_delays_ns)
        is_venue = pc.equal(books["venue"], venue).to_numpy()
        last_trade = np.searchsorted(trade_received_ns, book_received_ns[is_venue], side="right") - 1
        delays_ns[is_venue] = smallest_delays_ns[np.maximum(last_trade, 0)]
    return delays_ns


def _trade_rows(trades: pa.Table) -> pa.Table:
    return event_columns(
        "trade",
        trades.num_rows,
        symbol=_qualified_symbols(trades),
        ts=_timestamps_from_ns(trades["ts_ms"].to_numpy() * MILLISECOND_NS),
        event_id=trades["trade_id"],
        side=trades["side"],
        price=trades["price"],
        size=trades["size"],
    )


def _book_rows(books: pa.Table, delays_ns: np.ndarray) -> pa.Table:
    return event_columns(
        "book",
        books.num_rows,
        symbol=_qualified_symbols(books),
        ts=_timestamps_from_ns(books["received_ns"].to_numpy() - delays_ns),
        event_id=books["received_ns"].cast(pa.string()),
        **{name: books[name] for name in ("bid", "ask", "bid_size", "ask_size")},
    )


def _timestamps_from_ns(nanoseconds: np.ndarray) -> pa.Array:
    # rounded up to whole microseconds, so that no event is dated before it happened
    microseconds = -(-nanoseconds // MICROSECOND_NS)
    return pa.array(microseconds.astype("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE)
