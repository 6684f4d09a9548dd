"""Rows of a market's stream as Events, batch by batch, with the features they would have in one whole table.

A feature looks back, to the last price, the last settlement, the trades of the last minute, but never to another
symbol. So of each symbol those rows are kept that may be looked back to, and a batch is built with those of its own
symbols: the work follows the batch and not the market.
Glossary: e events · n symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.graphs import market_events as market
from models.graphs.events import EVENT_KINDS, Events, concatenate
from models.graphs.snapshot import GraphError

BUILDERS = {
    "trade": market.trade_events,
    "book": market.book_events,
    "funding": market.funding_events,
    "open_interest": market.open_interest_events,
    "liquidation": market.liquidation_events,
}
EVENT_VALUES = ("price", "size", "side", "bid", "ask", "bid_size", "ask_size", "rate", "open_interest")
# one event: positions in KINDS and in the symbols, the measures of its kind, when its next settlement is
MARKET_ROW = np.dtype(
    [("t", np.int64), ("key", np.uint64), ("kind", np.int8), ("symbol", np.int64), ("next_t", np.int64)]
    + [(name, np.float64) for name in EVENT_VALUES]
)
WHEN = np.dtype([("t", np.int64), ("symbol", np.int64)])
TRADE = EVENT_KINDS.index("trade")
CLOCKS = (TRADE, EVENT_KINDS.index("funding"))  # whose times every kind of event is told


class MarketEvents:
    """Makes Events of rows of MARKET_ROW, in the order of time, none simultaneous with one of an earlier call."""

    def __init__(self, symbols: Sequence[str], large_value: float = 100_000.0) -> None:
        self.symbols, self.large_value = tuple(symbols), large_value
        self.nodes = market.market_nodes(self.symbols)
        self.past = np.empty(0, MARKET_ROW)  # what may still be looked back to; the first row of all is its first
        self.traded = np.empty(0, WHEN)  # the trades of the last minute

    def __call__(self, rows: np.ndarray) -> Events:
        """The events of these rows between ``market_nodes(symbols)``. Raises GraphError."""
        own = np.union1d(rows["symbol"], self.past["symbol"][:1])
        needed = np.isin(self.past["symbol"], own) & np.isin(self.past["kind"], [*np.unique(rows["kind"]), *CLOCKS])
        needed[:1] = True
        known = np.concatenate([self.past[needed], rows])
        events = self._among(own, known)[len(known) - len(rows) :]
        events.features[:, market.COLUMN["log_trade_rate"]] = np.log1p(self._trades_of_last_minute(events, rows))
        self.past = self._looked_back_to(np.concatenate([self.past, rows]))
        return events

    def state(self) -> dict[str, np.ndarray]:
        """Everything ``restore`` needs, as plain arrays that later calls do not alter."""
        return {"past": self.past, "traded": self.traded, "symbols": np.array(self.symbols)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken. Raises GraphError for other symbols."""
        if arrays["symbols"].tolist() != list(self.symbols):
            raise GraphError(
                f"the state is of {', '.join(arrays['symbols'].tolist())}, this stream of {', '.join(self.symbols)}; "
                "stream the same symbols, or begin without the state"
            )
        self.past, self.traded = arrays["past"], arrays["traded"]

    def _among(self, own: np.ndarray, rows: np.ndarray) -> Events:
        """Events of rows whose symbols are all in ``own``, positions in the symbols, ascending."""
        names = [self.symbols[i] for i in own]
        parts = []
        for kind in [kind for kind in BUILDERS if EVENT_KINDS.index(kind) in rows["kind"]] or ["trade"]:
            of_kind = rows[rows["kind"] == EVENT_KINDS.index(kind)]
            columns = {name: of_kind[name] for name in ("t", "next_t", *EVENT_VALUES)}
            columns["symbol"] = np.array(names)[np.searchsorted(own, of_kind["symbol"])]
            parts.append(BUILDERS[kind](names, columns))
        told, n = market.with_clocks(concatenate(parts), self.large_value), len(self.symbols)
        types, outside = len(market.NODE_TYPES), np.arange(len(market.EXTERNAL))
        place = np.concatenate([*(kind * n + own for kind in range(types)), types * n + outside])
        return Events(place[told.src], place[told.dst], told.t, told.kind, told.features, self.nodes)

    def _trades_of_last_minute(self, events: Events, rows: np.ndarray) -> np.ndarray:
        """How many trades (e,) each event's asset had in the minute before it, those of its own time not counted."""
        traded = np.empty(int((rows["kind"] == TRADE).sum()), WHEN)
        for name in WHEN.names or ():
            traded[name] = rows[name][rows["kind"] == TRADE]
        began = events.t - market.MINUTE
        left = self.traded[: np.searchsorted(self.traded["t"], began.max(initial=0))]
        count = np.bincount(self.traded["symbol"], minlength=len(self.symbols))[events.dst]
        count += _before(traded, events.dst, events.t) - _before(traded, events.dst, began)
        count -= _before(left, events.dst, began)
        known = np.concatenate([self.traded, traded])
        self.traded = known[known["t"] >= known["t"].max(initial=0) - market.MINUTE]
        return count

    def _looked_back_to(self, known: np.ndarray) -> np.ndarray:
        """The first row, the last one of each kind and symbol, and each symbol's last large trade."""
        kept = np.zeros(len(known), dtype=bool)
        kept[:1] = True
        of = known["kind"].astype(np.int64) * len(self.symbols) + known["symbol"]
        large = (known["kind"] == TRADE) & (known["size"] * known["price"] >= self.large_value)
        for rows in (np.arange(len(known)), np.flatnonzero(large)):
            kept[rows[::-1][np.unique(of[rows[::-1]], return_index=True)[1]]] = True
        return known[kept]


def _before(traded: np.ndarray, symbol: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How many of ``traded`` have the symbol (e,) and came before the time t (e,)."""
    if not len(traded):
        return np.zeros(len(t), dtype=np.int64)
    first, span = traded["t"].min(), np.ptp(traded["t"]) + 2
    keys = np.sort(traded["symbol"] * span + traded["t"] - first)
    start = symbol * span
    return np.searchsorted(keys, start + np.clip(t - first, 0, span - 1)) - np.searchsorted(keys, start)
