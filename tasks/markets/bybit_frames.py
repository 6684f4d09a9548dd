"""Reads frames of Bybit's public websocket into event rows: trades, liquidations, books, funding and open interest.

Bybit sends a book or a ticker as a snapshot followed by changes, so the reader keeps its current state. The changes of
a book are numbered consecutively (``u``). After a missing number the book is invalid until the next snapshot, and
``take_gaps`` returns its topic. An unreadable frame changes nothing; it is counted and logged, and the stream goes on.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.markets.bybit import TAKER_SIDES

logger = logging.getLogger(__name__)

BOOK_TOPIC = "orderbook.50"
TRADE_TOPIC = "publicTrade"
TICKER_TOPIC = "tickers"
LIQUIDATION_TOPIC = "allLiquidation"
TOPICS = (TRADE_TOPIC, BOOK_TOPIC, TICKER_TOPIC, LIQUIDATION_TOPIC)
# Bybit gives the side of the liquidated position: a long (Buy) is closed by a sale
LIQUIDATION_TAKER_SIDES = {"Buy": "sell", "Sell": "buy"}
RESET_UPDATE_ID = 1  # the update id of the first change after the exchange has reset a book
US_PER_MS = 1000
MAX_TIME_MS = 4_102_444_800_000  # 2100-01-01: this time and later ones are refused
# prices and quantities outside (MIN_VALUE, MAX_VALUE) are refused, because features computed from them could overflow
MIN_VALUE = 1e-15
MAX_VALUE = 1e15
MAX_ABS_FUNDING_RATE = 1.0  # the whole value of a position, paid at one settlement
MAX_LOGGED_CHARACTERS = 120
FRAME_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
Row = dict[str, Any]


def topics_for(symbols: tuple[str, ...]) -> list[str]:
    """The topics to subscribe to for a stream of these symbols."""
    return [f"{topic}.{symbol}" for symbol in symbols for topic in TOPICS]


@dataclass
class OrderBook:
    """One symbol's current order book: size by price for bids and asks, and the id of the last change (0: none)."""

    bids: dict[float, float] = field(default_factory=dict)
    asks: dict[float, float] = field(default_factory=dict)
    update_id: int = 0

    def apply(self, bids: list[tuple[float, float]], asks: list[tuple[float, float]], update_id: int) -> None:
        """Sets the size at each (price, size); a size of 0 removes the price."""
        for size_by_price, levels in ((self.bids, bids), (self.asks, asks)):
            for price, size in levels:
                if size:
                    size_by_price[price] = size
                else:
                    size_by_price.pop(price, None)
        self.update_id = update_id

    def best_prices_and_depth(self) -> Row:
        """The values of a book event: the best bid and ask, and the total sizes of bids and asks.

        Raises ValueError if there are no bids or no asks.
        """
        sizes = {"bid_size": math.fsum(self.bids.values()), "ask_size": math.fsum(self.asks.values())}
        return {"bid": max(self.bids), "ask": min(self.asks), **sizes}


class FrameReader:
    """Reads the frames of ``symbols`` in the order of their arrival.

    ``counts`` counts by kind: frames, malformed, repeated, gaps, rejected, pongs, other. ``rejected`` maps each topic
    that Bybit refused to the error message.

    The exchange's time is divided into slots of ``book_every_us`` microseconds; a book gives one row per slot, for its
    first change in it. Funding and open interest give a row when they change.
    """

    def __init__(self, symbols: Sequence[str], book_every_us: int = 1_000_000) -> None:
        self.symbols = frozenset(symbols)
        self.counts: Counter[str] = Counter()
        self.rejected: dict[str, str] = {}
        self._book_every_us = book_every_us
        self._books: dict[str, OrderBook] = {}
        self._tickers: dict[str, Row] = {}
        self._last_slots: dict[str, int] = {}
        self._last_values: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._gaps: list[str] = []
        self._readers: dict[str, Callable[[str, Row], list[Row]]] = {
            TRADE_TOPIC: self._read_trades,
            BOOK_TOPIC: self._read_book,
            TICKER_TOPIC: self._read_ticker,
            LIQUIDATION_TOPIC: self._read_liquidations,
        }

    def forget_snapshots(self) -> None:
        """Drops all books, tickers and gaps: after a reconnection Bybit sends new snapshots."""
        self._books.clear()
        self._tickers.clear()
        self._gaps.clear()

    def update_value(self, kind: str, symbol: str, *values: Any) -> bool:
        """Stores the symbol's current values of this kind and returns whether they differ from the values before."""
        has_changed = self._last_values.get((kind, symbol)) != values
        self._last_values[kind, symbol] = values
        return has_changed

    def take_gaps(self) -> list[str]:
        """Returns the topics that need a new snapshot, and clears the list."""
        gaps = self._gaps
        self._gaps = []
        return gaps

    def read(self, text: str | bytes) -> list[Row]:
        """The events of a frame, as dicts for ``event_rows``; an empty list for an unreadable frame."""
        self.counts["frames"] += 1
        try:
            frame = json.loads(text)
            topic = frame.get("topic")
            if topic is None:
                return self._read_control(frame)
            name, _, symbol = topic.rpartition(".")
            if name not in self._readers or symbol not in self.symbols:
                self.counts["other"] += 1
                return []
            return self._readers[name](symbol, frame)
        except FRAME_ERRORS as exc:
            self.counts["malformed"] += 1
            logger.warning("unreadable frame (%r): %.*s", exc, MAX_LOGGED_CHARACTERS, text)
            return []

    def book(self, symbol: str) -> OrderBook | None:
        """The symbol's current book; None before its first snapshot, and between a gap and the next snapshot."""
        return self._books.get(symbol)

    def _read_control(self, frame: Row) -> list[Row]:
        """Reads a frame without a topic: counts pongs and rejections, ignores acknowledgements. Returns no rows."""
        if "pong" in (frame.get("ret_msg"), frame["op"]):
            self.counts["pongs"] += 1
        elif frame["success"] is False:
            topic = str(frame.get("req_id", ""))
            message = str(frame.get("ret_msg", ""))
            self.counts["rejected"] += 1
            self.rejected[topic] = message
            logger.warning(
                "Bybit does not accept %s: %s; the other topics are not affected", topic or "a request", message
            )
        return []

    def _read_trades(self, symbol: str, frame: Row) -> list[Row]:
        return [_trade_row("trade", symbol, trade, trade["i"], TAKER_SIDES[trade["S"]]) for trade in frame["data"]]

    def _read_liquidations(self, symbol: str, frame: Row) -> list[Row]:
        return [
            _trade_row(
                "liquidation",
                symbol,
                order,
                f"{order['S']} {order['v']} {order['p']}",
                LIQUIDATION_TAKER_SIDES[order["S"]],
            )
            for order in frame["data"]
        ]

    def _read_book(self, symbol: str, frame: Row) -> list[Row]:
        """At most one book row. A gap or a crossed book makes the book invalid and requests a new snapshot."""
        data = frame["data"]
        update_id = int(data["u"])
        ts = _to_epoch_us(frame["cts"] if "cts" in frame else frame["ts"])
        bids = _levels(data["b"])
        asks = _levels(data["a"])
        if frame["type"] == "snapshot" or update_id == RESET_UPDATE_ID:
            self._books[symbol] = OrderBook()
        book = self._books.get(symbol)
        if book is None or update_id <= book.update_id:
            self.counts["repeated"] += 1  # sent before the snapshot, or sent twice
            return []
        if book.update_id and update_id != book.update_id + 1:
            self._record_gap(f"{BOOK_TOPIC}.{symbol}", f"from change {book.update_id} to {update_id}")
            return []
        book.apply(bids, asks, update_id)
        slot = ts // self._book_every_us
        if self._last_slots.get(symbol) == slot or not (book.bids and book.asks):
            return []
        values = book.best_prices_and_depth()
        if values["bid"] >= values["ask"]:
            self._record_gap(f"{BOOK_TOPIC}.{symbol}", f"bid {values['bid']} is not below ask {values['ask']}")
            return []
        self._last_slots[symbol] = slot
        return [{"kind": "book", "symbol": symbol, "ts": ts, "event_id": str(update_id), **values}]

    def _record_gap(self, topic: str, reason: str) -> None:
        """Drops the topic's book, and counts, logs and records the gap."""
        self.counts["gaps"] += 1
        logger.warning("%s: %s; requesting a new snapshot", topic, reason)
        self._books.pop(topic.rpartition(".")[2], None)
        self._gaps.append(topic)

    def _read_ticker(self, symbol: str, frame: Row) -> list[Row]:
        """A funding row and an open interest row, each if its values have changed.

        A change before the ticker's first snapshot is counted as repeated and gives no rows.
        """
        data = frame["data"]
        ts = _to_epoch_us(frame["ts"])
        if frame["type"] != "snapshot" and symbol not in self._tickers:
            self.counts["repeated"] += 1
            return []
        ticker = data if frame["type"] == "snapshot" else self._tickers[symbol] | data
        rate = _optional_number(ticker, "fundingRate")
        open_interest = _optional_number(ticker, "openInterest")
        is_valid_interest = open_interest is None or MIN_VALUE < open_interest < MAX_VALUE
        if abs(rate or 0.0) > MAX_ABS_FUNDING_RATE or not is_valid_interest:
            raise ValueError(f"funding rate {rate}, open interest {open_interest}")
        settles_us = _to_epoch_us(ticker["nextFundingTime"]) if ticker.get("nextFundingTime") else None
        row = {"symbol": symbol, "ts": ts, "event_id": _event_id(str(frame.get("cs", frame["ts"])))}
        self._tickers[symbol] = ticker
        rows = []
        if rate is not None and self.update_value("funding", symbol, rate, settles_us):
            rows.append({**row, "kind": "funding", "rate": rate, "next_ts": settles_us})
        if open_interest is not None and self.update_value("open_interest", symbol, open_interest):
            rows.append({**row, "kind": "open_interest", "open_interest": open_interest})
        return rows


def _trade_row(kind: str, symbol: str, trade: Row, event_id: object, side: str) -> Row:
    """The row of a trade or liquidation. Raises ValueError for a price or size outside (MIN_VALUE, MAX_VALUE)."""
    price = float(trade["p"])
    size = float(trade["v"])
    if not (MIN_VALUE < price < MAX_VALUE and MIN_VALUE < size < MAX_VALUE):
        raise ValueError(f"price {price}, size {size}")
    row = {"kind": kind, "symbol": symbol, "ts": _to_epoch_us(trade["T"]), "event_id": _event_id(event_id)}
    return {**row, "side": side, "price": price, "size": size}


def _event_id(event_id: object) -> str:
    """The id itself. Raises TypeError if it is no text, UnicodeEncodeError if UTF-8 cannot encode it."""
    if not isinstance(event_id, str):
        raise TypeError(f"the id is {event_id!r}")
    event_id.encode()  # JSON may contain half a surrogate pair, which is not valid text
    return event_id


def _to_epoch_us(milliseconds: Any) -> int:
    """Microseconds since 1970, UTC, from milliseconds. Raises ValueError for a time outside (1970, 2100)."""
    time_ms = int(milliseconds)
    if not 0 < time_ms < MAX_TIME_MS:
        raise ValueError(f"{milliseconds} is not a time in milliseconds")
    return time_ms * US_PER_MS


def _levels(levels: list[list[str]]) -> list[tuple[float, float]]:
    """The (price, size) of each level of a book. Raises ValueError for an invalid price or size; a size may be 0."""
    prices_and_sizes = [(float(price), float(size)) for price, size in levels]
    if not all(MIN_VALUE < price < MAX_VALUE and 0 <= size < MAX_VALUE for price, size in prices_and_sizes):
        raise ValueError("a level has an invalid price or size")
    return prices_and_sizes


def _optional_number(values: Row, name: str) -> float | None:
    """A field as a number; None if it is missing or empty. Raises ValueError for NaN and infinity."""
    value = float(values[name]) if values.get(name) else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} {value}")
    return value
