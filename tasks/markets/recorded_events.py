"""Recorded trades and best prices of Binance's markets in a folder, as events and bars of their symbols.

    <folder>/trades_*.parquet        venue, symbol, ts_ms (exchange), received_ns, side (taker), price, size, trade_id
    <folder>/top_of_book_*.parquet   venue, symbol, received_ns, bid, bid_size, ask, ask_size

BTCUSDT of the venue binance_usdm is here usdm:BTCUSDT. Trades carry the exchange's time. A book carries only the
recorder's, whose clock may be off by seconds: it is moved by the least delay between the two that the venue's trades
had shown by then, so that no later trade changes when a book stood.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.panel import TS_TYPE
from tasks.errors import NoPricesError, TapeMalformedError, TapeMissingError, UnknownSymbolError
from tasks.markets.event_rows import event_columns
from tasks.markets.trade_bars import bars_of_trades

PROVIDER = "binance"
TRADES, BOOKS = "trades_*.parquet", "top_of_book_*.parquet"
NUMBERS = {
    TRADES: {"ts_ms": pa.int64(), "received_ns": pa.int64(), "price": pa.float64(), "size": pa.float64()},
    BOOKS: {"received_ns": pa.int64()} | dict.fromkeys(("bid", "bid_size", "ask", "ask_size"), pa.float64()),
}
NAMES = {TRADES: ("venue", "symbol", "side", "trade_id"), BOOKS: ("venue", "symbol")}
MILLISECOND, MICROSECOND = 1_000_000, 1_000  # in nanoseconds


class RecordedEvents:
    """The recordings in ``folder``. Raises TapeMissingError without trades, TapeMalformedError for a broken file.

    ``symbols``: those that traded, sorted. From the ``first`` event to the ``last`` it is taken to be without a break.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, trades, books = folder, _once(_read(folder, TRADES)), _read(folder, BOOKS)
        if not trades.num_rows:
            raise TapeMissingError(f"no {TRADES} in {folder}: give the folder that holds recorded trades")
        self._rows = pa.concat_tables([_trade_rows(trades), _book_rows(books, _delays(trades, books))]).sort_by("ts")
        self.symbols = tuple(sorted(pc.unique(_names(trades)).to_pylist()))
        self.first, self.last = self._rows["ts"][0].as_py(), self._rows["ts"][-1].as_py()

    def events(self, symbol: str, start: datetime, end: datetime) -> pa.Table:
        """Trades and books of one symbol with start < ts ≤ end as rows of EVENT_ROWS, oldest first."""
        own = self._of(symbol)
        return own.filter(pc.and_(pc.greater(own["ts"], start), pc.less_equal(own["ts"], end)))

    def bars(self, symbol: str, interval: str, start: datetime, end: datetime) -> pa.Table:
        """Bars of one symbol's trades that open at or after ``start`` and have closed by ``end``, see bars_of_trades.

        Raises UnknownSymbolError, and NoPricesError where the recording has none in the span.
        """
        own = self._of(symbol)
        trades = own.filter(pc.equal(own["kind"], "trade"))
        until = np.datetime64(min(end, self.last).astimezone(UTC).replace(tzinfo=None), "us")
        bars = bars_of_trades(trades, interval, until)
        bars = bars.filter(pc.greater_equal(bars["ts"], start))
        if not bars.num_rows:
            raise NoPricesError(f"{self._folder} has no whole bar of {symbol} from {start} to {end}")
        return bars

    def _of(self, symbol: str) -> pa.Table:
        if symbol not in self.symbols:
            raise UnknownSymbolError(f"{self._folder} has no trade of {symbol}; it has {', '.join(self.symbols)}")
        return self._rows.filter(pc.equal(self._rows["symbol"], symbol))


def _read(folder: Path, pattern: str) -> pa.Table:
    """All files of a pattern as one table of known types, empty where there is none."""
    schema = pa.schema([(name, pa.string()) for name in NAMES[pattern]] + list(NUMBERS[pattern].items()))
    tables = [schema.empty_table()]
    for path in sorted(folder.glob(pattern)):
        try:
            tables.append(pq.read_table(path, columns=schema.names).select(schema.names).cast(schema))
        except (pa.ArrowException, OSError, KeyError, ValueError) as exc:
            raise TapeMalformedError(f"{path} cannot be read as {', '.join(schema.names)}: {exc}") from exc
        _refuse_unsound(tables[-1], path)
    return pa.concat_tables(tables)


def _once(trades: pa.Table) -> pa.Table:
    """Those rows without repeats, such as files that overlap have: a bar must not sum a trade twice."""
    keys = trades.select(["venue", "symbol", "ts_ms", "trade_id"]).to_pandas()
    return trades.filter(pa.array(~keys.duplicated().to_numpy()))


def _refuse_unsound(table: pa.Table, path: Path) -> None:
    """Raises TapeMalformedError for the first row with a missing value, or a number that is not positive and finite."""
    sound = np.ones(table.num_rows, dtype=bool)
    for name in table.column_names:
        sound &= table[name].is_valid().to_numpy()
        if name not in ("venue", "symbol", "side", "trade_id"):
            positive = pc.and_(pc.greater(table[name], 0), pc.is_finite(table[name]))
            sound &= pc.fill_null(positive, False).to_numpy()
    if "side" in table.column_names:
        sound &= pc.fill_null(pc.is_in(table["side"], pa.array(["buy", "sell"])), False).to_numpy()
    if not table.num_rows or not sound.all():
        at = int(np.argmin(sound)) if table.num_rows else 0
        raise TapeMalformedError(f"{path}: row {at} is no event: {table.slice(at, 1).to_pylist()}")


def _names(table: pa.Table) -> pa.ChunkedArray:
    """Every row's symbol, named with its market."""
    market = pc.replace_substring_regex(table["venue"], f"^{PROVIDER}_", "")
    return pc.binary_join_element_wise(market, table["symbol"], ":")


def _delays(trades: pa.Table, books: pa.Table) -> np.ndarray:
    """Nanoseconds (b,) that each book came later, by the recorder's clock, than it stood by the exchange's: the least
    of the venue's trades received before it, before the first of them that one's. TapeMalformedError without trades."""
    received, delays = books["received_ns"].to_numpy(), np.zeros(books.num_rows, dtype=np.int64)
    for venue in pc.unique(books["venue"]).to_pylist():
        own = trades.filter(pc.equal(trades["venue"], venue)).sort_by("received_ns")
        if not own.num_rows:
            raise TapeMalformedError(f"books of {venue} without one trade: nothing tells how late they came; drop them")
        came, at = own["received_ns"].to_numpy(), pc.equal(books["venue"], venue).to_numpy()
        least = np.minimum.accumulate(came - own["ts_ms"].to_numpy() * MILLISECOND)
        delays[at] = least[np.maximum(np.searchsorted(came, received[at], side="right") - 1, 0)]
    return delays


def _trade_rows(trades: pa.Table) -> pa.Table:
    return event_columns(
        "trade",
        trades.num_rows,
        symbol=_names(trades),
        ts=_instants(trades["ts_ms"].to_numpy() * MILLISECOND),
        event_id=trades["trade_id"],
        side=trades["side"],
        price=trades["price"],
        size=trades["size"],
    )


def _book_rows(books: pa.Table, delays_ns: np.ndarray) -> pa.Table:
    return event_columns(
        "book",
        books.num_rows,
        symbol=_names(books),
        ts=_instants(books["received_ns"].to_numpy() - delays_ns),
        event_id=books["received_ns"].cast(pa.string()),
        **{name: books[name] for name in ("bid", "ask", "bid_size", "ask_size")},
    )


def _instants(nanoseconds: np.ndarray) -> pa.Array:
    # upwards: a time cut to whole microseconds would be a little too early
    microseconds = -(-nanoseconds // MICROSECOND)
    return pa.array(microseconds.astype("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE)
