"""Reads frames of Bybit's public websocket into event rows: trades, liquidations, books, funding and open interest.

Books and tickers arrive as a snapshot and then as changes to it, so their current state is kept here. A book's changes
are numbered (``u``) one by one: after a missing number the book is unusable until the next snapshot, and ``take_gaps``
returns its topic. A frame that cannot be read changes nothing; it is counted and logged, and the stream continues.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.markets.bybit import TAKERS

logger = logging.getLogger(__name__)

BOOK = "orderbook.50"
TRADES = "publicTrade"
TICKERS = "tickers"
LIQUIDATIONS = "allLiquidation"
TOPICS = (TRADES, BOOK, TICKERS, LIQUIDATIONS)
CLOSING_TAKER = {"Buy": "sell", "Sell": "buy"}  # Bybit names the position's side: a liquidated long is sold
RESTARTED = 1  # the update id of the first change after the exchange has reset a book
US_PER_MS = 1000
MAX_TIME_MS = 4_102_444_800_000  # 2100-01-01: a later time is refused
MIN_VALUE, MAX_VALUE = 1e-15, 1e15  # of a price or a quantity: values outside are refused, features could overflow
MAX_RATE = 1.0  # absolute funding rate: a whole position paid at one settlement
SHOWN_CHARACTERS = 120
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
Row = dict[str, Any]


def topics_for(symbols: tuple[str, ...]) -> list[str]:
    """The topics to subscribe to for a stream of these symbols."""
    return [f"{topic}.{symbol}" for symbol in symbols for topic in TOPICS]


@dataclass
class OrderBook:
    """One symbol's current book: size by price, and the number of the last change."""

    bids: dict[float, float] = field(default_factory=dict)
    asks: dict[float, float] = field(default_factory=dict)
    update: int = 0

    def apply(self, bids: list[tuple[float, float]], asks: list[tuple[float, float]], update: int) -> None:
        """Sets the size at each price; a size of 0 removes the price."""
        for side, levels in ((self.bids, bids), (self.asks, asks)):
            for price, size in levels:
                if size:
                    side[price] = size
                else:
                    side.pop(price, None)
        self.update = update

    def best_prices_and_depth(self) -> Row:
        """The values of a book event: best prices, and the total size of each side. Neither side may be empty."""
        sizes = {"bid_size": math.fsum(self.bids.values()), "ask_size": math.fsum(self.asks.values())}
        return {"bid": max(self.bids), "ask": min(self.asks), **sizes}


class FrameReader:
    """Reads the frames of ``symbols`` in the order of arrival. ``counts``: frames, malformed, repeated, gaps, rejected,
    pongs, other; ``rejected``: the error message of each topic that Bybit refused.

    A book gives a row for its first change in each ``book_every_us`` of the exchange's time; funding and open interest
    give a row when they change.
    """

    def __init__(self, symbols: Sequence[str], book_every_us: int = 1_000_000) -> None:
        self.symbols = frozenset(symbols)
        self.counts: Counter[str] = Counter()
        self.rejected: dict[str, str] = {}
        self._book_every_us = book_every_us
        self._books: dict[str, OrderBook] = {}
        self._tickers: dict[str, Row] = {}
        self._book_slots: dict[str, int] = {}
        self._last_values: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._gaps: list[str] = []
        self._readers: dict[str, Callable[[str, Row], list[Row]]] = {
            TRADES: self._read_trades,
            BOOK: self._read_book,
            TICKERS: self._read_ticker,
            LIQUIDATIONS: self._read_liquidations,
        }

    def forget_snapshots(self) -> None:
        """Forgets books and tickers: after a reconnection Bybit sends their snapshots again."""
        self._books.clear()
        self._tickers.clear()
        self._gaps.clear()

    def update_value(self, kind: str, symbol: str, *values: Any) -> bool:
        """Stores the symbol's current values of this kind; returns True if they differ from the stored ones."""
        is_new = self._last_values.get((kind, symbol)) != values
        self._last_values[kind, symbol] = values
        return is_new

    def take_gaps(self) -> list[str]:
        """Topics that need a new snapshot; each is returned once."""
        gaps = self._gaps
        self._gaps = []
        return gaps

    def read(self, text: str | bytes) -> list[Row]:
        """The frame's events with the names of EVENT_ROWS, ``ts`` in microseconds UTC; none for an unreadable frame."""
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
        except UNREADABLE as exc:
            self.counts["malformed"] += 1
            logger.warning("frame not understood (%r): %.*s", exc, SHOWN_CHARACTERS, text)
            return []

    def book(self, symbol: str) -> OrderBook | None:
        """The current book; None between a gap and the next snapshot."""
        return self._books.get(symbol)

    def _read_control(self, frame: Row) -> list[Row]:
        """Counts pongs and rejections, ignores acknowledgements; no rows."""
        if "pong" in (frame.get("ret_msg"), frame["op"]):
            self.counts["pongs"] += 1
        elif frame["success"] is False:
            topic = str(frame.get("req_id", ""))
            message = str(frame.get("ret_msg", ""))
            self.counts["rejected"] += 1
            self.rejected[topic] = message
            logger.warning("Bybit does not accept %s: %s; the other topics go on", topic or "a request", message)
        return []

    def _read_trades(self, symbol: str, frame: Row) -> list[Row]:
        return [_trade_row("trade", symbol, trade, trade["i"], TAKERS[trade["S"]]) for trade in frame["data"]]

    def _read_liquidations(self, symbol: str, frame: Row) -> list[Row]:
        return [
            _trade_row(
                "liquidation", symbol, order, f"{order['S']} {order['v']} {order['p']}", CLOSING_TAKER[order["S"]]
            )
            for order in frame["data"]
        ]

    def _read_book(self, symbol: str, frame: Row) -> list[Row]:
        data = frame["data"]
        update = int(data["u"])
        ts = _microseconds(frame["cts"] if "cts" in frame else frame["ts"])
        bids = _levels(data["b"])
        asks = _levels(data["a"])
        if frame["type"] == "snapshot" or update == RESTARTED:
            self._books[symbol] = OrderBook()
        book = self._books.get(symbol)
        if book is None or update <= book.update:
            self.counts["repeated"] += 1  # from before the gap, or sent twice
            return []
        if book.update and update != book.update + 1:
            return self._record_gap(f"{BOOK}.{symbol}", f"from change {book.update} to {update}")
        book.apply(bids, asks, update)
        if self._book_slots.get(symbol) == ts // self._book_every_us or not (book.bids and book.asks):
            return []
        values = book.best_prices_and_depth()
        if values["bid"] >= values["ask"]:
            return self._record_gap(f"{BOOK}.{symbol}", f"bid {values['bid']} is not below ask {values['ask']}")
        self._book_slots[symbol] = ts // self._book_every_us
        return [{"kind": "book", "symbol": symbol, "ts": ts, "event_id": str(update), **values}]

    def _record_gap(self, topic: str, reason: str) -> list[Row]:
        self.counts["gaps"] += 1
        logger.warning("%s: %s; asking for a new snapshot", topic, reason)
        self._books.pop(topic.rpartition(".")[2], None)
        self._gaps.append(topic)
        return []

    def _read_ticker(self, symbol: str, frame: Row) -> list[Row]:
        data = frame["data"]
        ts = _microseconds(frame["ts"])
        if frame["type"] != "snapshot" and symbol not in self._tickers:
            self.counts["repeated"] += 1
            return []
        ticker = data if frame["type"] == "snapshot" else self._tickers[symbol] | data
        rate = _number(ticker, "fundingRate")
        interest = _number(ticker, "openInterest")
        if abs(rate or 0.0) > MAX_RATE or not (interest is None or MIN_VALUE < interest < MAX_VALUE):
            raise ValueError(f"funding rate {rate}, open interest {interest}")
        settles = _microseconds(ticker["nextFundingTime"]) if ticker.get("nextFundingTime") else None
        row = {"symbol": symbol, "ts": ts, "event_id": _event_id(str(frame.get("cs", frame["ts"])))}
        self._tickers[symbol] = ticker
        rows = []
        if rate is not None and self.update_value("funding", symbol, rate, settles):
            rows.append({**row, "kind": "funding", "rate": rate, "next_ts": settles})
        if interest is not None and self.update_value("open_interest", symbol, interest):
            rows.append({**row, "kind": "open_interest", "open_interest": interest})
        return rows


def _trade_row(kind: str, symbol: str, trade: Row, event_id: object, side: str) -> Row:
    price = float(trade["p"])
    size = float(trade["v"])
    if not (MIN_VALUE < price < MAX_VALUE and MIN_VALUE < size < MAX_VALUE):
        raise ValueError(f"price {price}, size {size}")
    row = {"kind": kind, "symbol": symbol, "ts": _microseconds(trade["T"]), "event_id": _event_id(event_id)}
    return {**row, "side": side, "price": price, "size": size}


def _event_id(event_id: object) -> str:
    """The id, checked to be text that UTF-8 can encode. Raises TypeError or UnicodeEncodeError."""
    if not isinstance(event_id, str):
        raise TypeError(f"the id is {event_id!r}")
    event_id.encode()  # JSON may contain half a surrogate pair, which is not valid text
    return event_id


def _microseconds(milliseconds: Any) -> int:
    """A time in milliseconds as microseconds UTC. Raises ValueError for one outside (1970, 2100)."""
    stamp = int(milliseconds)
    if not 0 < stamp < MAX_TIME_MS:
        raise ValueError(f"{milliseconds} is not a time in milliseconds")
    return stamp * US_PER_MS


def _levels(levels: list[list[str]]) -> list[tuple[float, float]]:
    numbers = [(float(price), float(size)) for price, size in levels]
    if not all(MIN_VALUE < price < MAX_VALUE and 0 <= size < MAX_VALUE for price, size in numbers):
        raise ValueError("a level has an impossible price or size")
    return numbers


def _number(values: Row, name: str) -> float | None:
    """A field as a number; None where it is missing or empty."""
    value = float(values[name]) if values.get(name) else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} {value}")
    return value
