"""Recorded trades and best prices of any exchange in a folder, as rows of events by venue.

    <folder>/trades_*.parquet        venue, symbol, ts_ms (exchange), received_ns, side (taker), price, size, trade_id
    <folder>/top_of_book_*.parquet   venue, symbol, received_ns, bid, bid_size, ask, ask_size

Trades carry the exchange's time. A book carries only the recorder's, whose clock may be off by seconds: it is moved by
the least delay between the two that the venue's trades show, so that no book is dated before it stood.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.panel import TS_TYPE
from tasks.errors import TapeMalformedError, TapeMissingError
from tasks.markets.event_rows import event_columns

TRADES, BOOKS = "trades_*.parquet", "top_of_book_*.parquet"
NUMBERS = {
    TRADES: {"ts_ms": pa.int64(), "received_ns": pa.int64(), "price": pa.float64(), "size": pa.float64()},
    BOOKS: {"received_ns": pa.int64()} | dict.fromkeys(("bid", "bid_size", "ask", "ask_size"), pa.float64()),
}
NAMES = {TRADES: ("venue", "symbol", "side", "trade_id"), BOOKS: ("venue", "symbol")}
MILLISECOND, MICROSECOND = 1_000_000, 1_000  # in nanoseconds


class RecordedEvents:
    """The recordings in ``folder``. Raises TapeMissingError without trades, TapeMalformedError for a broken file.

    ``received``: when the last of them was, by the recorder's clock, datetime64[us].
    """

    def __init__(self, folder: Path) -> None:
        self._trades, self._books = _read(folder, TRADES), _read(folder, BOOKS)
        if not self._trades.num_rows:
            raise TapeMissingError(f"no {TRADES} in {folder}: give the folder that holds recorded trades")
        received = pa.chunked_array([*self._trades["received_ns"].chunks, *self._books["received_ns"].chunks])
        self.received = np.datetime64(pc.max(received).as_py() // MICROSECOND, "us")

    def venues(self) -> dict[str, tuple[str, ...]]:
        """Symbols traded at each venue, both sorted."""
        pairs = self._trades.group_by(["venue", "symbol"]).aggregate([]).to_pylist()
        found: dict[str, tuple[str, ...]] = {}
        for pair in sorted(pairs, key=lambda pair: (pair["venue"], pair["symbol"])):
            found[pair["venue"]] = (*found.get(pair["venue"], ()), pair["symbol"])
        return found

    def events(self, venue: str) -> pa.Table:
        """Trades and books of one venue as rows of EVENT_ROWS, in the order of the files."""
        trades = self._trades.filter(pc.equal(self._trades["venue"], venue))
        books = self._books.filter(pc.equal(self._books["venue"], venue))
        least = (trades["received_ns"].to_numpy() - trades["ts_ms"].to_numpy() * MILLISECOND).min()
        return pa.concat_tables([_trade_rows(trades), _book_rows(books, int(least))])


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


def _refuse_unsound(table: pa.Table, path: Path) -> None:
    """Raises TapeMalformedError for the first row with a missing value, or a number that is not positive."""
    sound = np.ones(table.num_rows, dtype=bool)
    for name in table.column_names:
        sound &= table[name].is_valid().to_numpy()
        if name not in ("venue", "symbol", "side", "trade_id"):
            sound &= pc.fill_null(pc.greater(table[name], 0), False).to_numpy()
    if "side" in table.column_names:
        sound &= pc.fill_null(pc.is_in(table["side"], pa.array(["buy", "sell"])), False).to_numpy()
    if not table.num_rows or not sound.all():
        at = int(np.argmin(sound)) if table.num_rows else 0
        raise TapeMalformedError(f"{path}: row {at} is no event: {table.slice(at, 1).to_pylist()}")


def _trade_rows(trades: pa.Table) -> pa.Table:
    return event_columns(
        "trade",
        trades.num_rows,
        symbol=trades["symbol"],
        ts=_instants(trades["ts_ms"].to_numpy() * MILLISECOND),
        event_id=trades["trade_id"],
        side=trades["side"],
        price=trades["price"],
        size=trades["size"],
    )


def _book_rows(books: pa.Table, delay_ns: int) -> pa.Table:
    return event_columns(
        "book",
        books.num_rows,
        symbol=books["symbol"],
        ts=_instants(books["received_ns"].to_numpy() - delay_ns),
        event_id=books["received_ns"].cast(pa.string()),
        **{name: books[name] for name in ("bid", "ask", "bid_size", "ask_size")},
    )


def _instants(nanoseconds: np.ndarray) -> pa.Array:
    # upwards: a time cut to whole microseconds would be a little too early
    microseconds = -(-nanoseconds // MICROSECOND)
    return pa.array(microseconds.astype("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE)
