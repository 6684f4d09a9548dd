"""What Bybit's public websocket says, frame by frame, as rows of events: trades, liquidations, books, funding and open
interest.

Books and tickers come as a snapshot and then as changes to it, so each is kept here as it stands. A book's changes are
numbered (``u``) one by one: a missing number makes it unusable until the next snapshot, which is what ``take_gaps``
asks for. A frame that cannot be read changes nothing, is counted and logged, and the stream goes on.
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

BOOK, TRADES, TICKERS, LIQUIDATIONS = "orderbook.50", "publicTrade", "tickers", "allLiquidation"
TOPICS = (TRADES, BOOK, TICKERS, LIQUIDATIONS)
CLOSING_TAKER = {"Buy": "sell", "Sell": "buy"}  # Bybit gives the side of the position: a liquidated long is sold
RESTARTED = 1  # the update id with which the exchange itself begins a book anew
US = 1000  # microseconds in a millisecond
LAST_MS = 4_102_444_800_000  # 2100-01-01: a time beyond it is none
LEAST, MOST = 1e-15, 1e15  # of a price or a quantity: what is beyond them is none, and no feature could hold it
MOST_RATE = 1.0  # of a funding rate, either way: all of a position at one settlement
SHOWN_CHARACTERS = 120
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
Row = dict[str, Any]


def topics_of(symbols: tuple[str, ...]) -> list[str]:
    """The topics that a stream of these symbols listens to."""
    return [f"{topic}.{symbol}" for symbol in symbols for topic in TOPICS]


@dataclass
class OrderBook:
    """One symbol's book as it stands: size by price, and the number of the last change."""

    bids: dict[float, float] = field(default_factory=dict)
    asks: dict[float, float] = field(default_factory=dict)
    update: int = 0

    def apply(self, bids: list[tuple[float, float]], asks: list[tuple[float, float]], update: int) -> None:
        """Sets the size at each price; a size of 0 takes the price out."""
        for side, levels in ((self.bids, bids), (self.asks, asks)):
            for price, size in levels:
                if size:
                    side[price] = size
                else:
                    side.pop(price, None)
        self.update = update

    def measures(self) -> Row:
        """Best prices and the depth of each side, neither of which is empty."""
        sizes = {"bid_size": math.fsum(self.bids.values()), "ask_size": math.fsum(self.asks.values())}
        return {"bid": max(self.bids), "ask": min(self.asks), **sizes}


class Frames:
    """Reads frames of ``symbols`` in the order in which they come. ``counts``: frames, malformed, repeated, gaps,
    rejected, pongs, other.

    A book gives a row for its first change in each ``book_every_us`` of the exchange's time; funding and open interest
    give one when they change.
    """

    def __init__(self, symbols: Sequence[str], book_every_us: int = 1_000_000) -> None:
        self.symbols = frozenset(symbols)
        self.counts: Counter[str] = Counter()
        self.rejected: dict[str, str] = {}
        self._book_every_us = book_every_us
        self._books: dict[str, OrderBook] = {}
        self._tickers: dict[str, Row] = {}
        self._slots: dict[str, int] = {}
        self._told: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._gaps: list[str] = []
        self._readers: dict[str, Callable[[str, Row], list[Row]]] = {
            TRADES: self._trades,
            BOOK: self._book,
            TICKERS: self._ticker,
            LIQUIDATIONS: self._liquidations,
        }

    def connected(self) -> None:
        """Forgets books and tickers: a new connection begins with their snapshots."""
        self._books.clear()
        self._tickers.clear()
        self._gaps.clear()

    def tell(self, kind: str, symbol: str, *values: Any) -> bool:
        """True when the values of this kind differ from the last ones told, which they become."""
        new = self._told.get((kind, symbol)) != values
        self._told[kind, symbol] = values
        return new

    def take_gaps(self) -> list[str]:
        """Topics that need a new snapshot, each once."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def read(self, text: str | bytes) -> list[Row]:
        """The frame's events as EVENT_ROWS names them, ``ts`` in microseconds UTC; none of one not understood."""
        self.counts["frames"] += 1
        try:
            frame = json.loads(text)
            topic = frame.get("topic")
            if topic is None:
                return self._control(frame)
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
        """The book as it stands; None between a gap and the next snapshot."""
        return self._books.get(symbol)

    def _control(self, frame: Row) -> list[Row]:
        """Acknowledgements, rejections and pongs."""
        if "pong" in (frame.get("ret_msg"), frame["op"]):
            self.counts["pongs"] += 1
        elif frame["success"] is False:
            topic, message = str(frame.get("req_id", "")), str(frame.get("ret_msg", ""))
            self.counts["rejected"] += 1
            self.rejected[topic] = message
            logger.warning("Bybit does not accept %s: %s; the other topics go on", topic or "a request", message)
        return []

    def _trades(self, symbol: str, frame: Row) -> list[Row]:
        return [_trade("trade", symbol, one, one["i"], TAKERS[one["S"]]) for one in frame["data"]]

    def _liquidations(self, symbol: str, frame: Row) -> list[Row]:
        return [
            _trade("liquidation", symbol, one, f"{one['S']} {one['v']} {one['p']}", CLOSING_TAKER[one["S"]])
            for one in frame["data"]
        ]

    def _book(self, symbol: str, frame: Row) -> list[Row]:
        data = frame["data"]
        update, ts = int(data["u"]), _instant(frame["cts"] if "cts" in frame else frame["ts"])
        bids, asks = _levels(data["b"]), _levels(data["a"])
        if frame["type"] == "snapshot" or update == RESTARTED:
            self._books[symbol] = OrderBook()
        book = self._books.get(symbol)
        if book is None or update <= book.update:
            self.counts["repeated"] += 1  # of before the gap, or sent twice
            return []
        if book.update and update != book.update + 1:
            return self._gap(f"{BOOK}.{symbol}", f"from change {book.update} to {update}")
        book.apply(bids, asks, update)
        if self._slots.get(symbol) == ts // self._book_every_us or not (book.bids and book.asks):
            return []
        measures = book.measures()
        if measures["bid"] >= measures["ask"]:
            return self._gap(f"{BOOK}.{symbol}", f"bid {measures['bid']} is not below ask {measures['ask']}")
        self._slots[symbol] = ts // self._book_every_us
        return [{"kind": "book", "symbol": symbol, "ts": ts, "event_id": str(update), **measures}]

    def _gap(self, topic: str, why: str) -> list[Row]:
        self.counts["gaps"] += 1
        logger.warning("%s: %s; asking for a new snapshot", topic, why)
        self._books.pop(topic.rpartition(".")[2], None)
        self._gaps.append(topic)
        return []

    def _ticker(self, symbol: str, frame: Row) -> list[Row]:
        data, ts = frame["data"], _instant(frame["ts"])
        if frame["type"] != "snapshot" and symbol not in self._tickers:
            self.counts["repeated"] += 1
            return []
        known = data if frame["type"] == "snapshot" else self._tickers[symbol] | data
        rate, interest = _number(known, "fundingRate"), _number(known, "openInterest")
        if abs(rate or 0.0) > MOST_RATE or not (interest is None or LEAST < interest < MOST):
            raise ValueError(f"funding rate {rate}, open interest {interest}")
        settles = _instant(known["nextFundingTime"]) if known.get("nextFundingTime") else None
        row = {"symbol": symbol, "ts": ts, "event_id": _known_by(str(frame.get("cs", frame["ts"])))}
        self._tickers[symbol] = known
        rows = []
        if rate is not None and self.tell("funding", symbol, rate, settles):
            rows.append({**row, "kind": "funding", "rate": rate, "next_ts": settles})
        if interest is not None and self.tell("open_interest", symbol, interest):
            rows.append({**row, "kind": "open_interest", "open_interest": interest})
        return rows


def _trade(kind: str, symbol: str, one: Row, event_id: object, side: str) -> Row:
    price, size = float(one["p"]), float(one["v"])
    if not (LEAST < price < MOST and LEAST < size < MOST):
        raise ValueError(f"price {price}, size {size}")
    row = {"kind": kind, "symbol": symbol, "ts": _instant(one["T"]), "event_id": _known_by(event_id)}
    return {**row, "side": side, "price": price, "size": size}


def _known_by(event_id: object) -> str:
    """An event's id, which UTF-8 can hold: half a surrogate pair is valid JSON and no text."""
    if not isinstance(event_id, str):
        raise TypeError(f"the id is {event_id!r}")
    event_id.encode()
    return event_id


def _instant(milliseconds: Any) -> int:
    """Microseconds UTC."""
    stamp = int(milliseconds)
    if not 0 < stamp < LAST_MS:
        raise ValueError(f"{milliseconds} is no time in milliseconds")
    return stamp * US


def _levels(levels: list[list[str]]) -> list[tuple[float, float]]:
    read = [(float(price), float(size)) for price, size in levels]
    if not all(LEAST < price < MOST and 0 <= size < MOST for price, size in read):
        raise ValueError("a level without a price or size, or with an absurd one")
    return read


def _number(values: Row, name: str) -> float | None:
    """A field as a number; None where it is missing or empty."""
    value = float(values[name]) if values.get(name) else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} {value}")
    return value
