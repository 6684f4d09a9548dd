"""Events of a market built batch by batch, with the same features as if all rows were one table.

A feature depends on earlier rows (the last price, the last settlement, the trades of the last minute), but never on
those of another symbol. So the rows that a later feature may read are kept for each symbol, and a batch is built with
the kept rows of its own symbols: the cost depends on the size of the batch and not on that of the market.
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
# one event: ``kind`` is a position in EVENT_KINDS, ``symbol`` one in the symbols; ``next_t`` is the time of its next
# settlement; of EVENT_VALUES a row has those of its kind
MARKET_ROW = np.dtype(
    [("t", np.int64), ("key", np.uint64), ("kind", np.int8), ("symbol", np.int64), ("next_t", np.int64)]
    + [(name, np.float64) for name in EVENT_VALUES]
)
TRADE_TIME = np.dtype([("t", np.int64), ("symbol", np.int64)])
TRADE = EVENT_KINDS.index("trade")
CLOCK_KINDS = (TRADE, EVENT_KINDS.index("funding"))  # events of every kind have features that count from these


class MarketEvents:
    """Builds Events from rows of MARKET_ROW, batch by batch.

    Rows are ordered by time, within a batch and from one batch to the next; rows of two batches are never simultaneous.
    """

    def __init__(self, symbols: Sequence[str], large_value: float = 100_000.0) -> None:
        self.symbols = tuple(symbols)
        self.large_value = large_value
        self.nodes = market.market_nodes(self.symbols)
        self.past = np.empty(0, MARKET_ROW)  # rows that later features may read, the first row of all in front
        self.recent_trades = np.empty(0, TRADE_TIME)  # the trades of the last minute

    def __call__(self, rows: np.ndarray) -> Events:
        """The events of these rows between ``market_nodes(symbols)``. Raises GraphError for rows that no event can be
        made of."""
        symbols = np.union1d(rows["symbol"], self.past["symbol"][:1])
        kinds = [*np.unique(rows["kind"]), *CLOCK_KINDS]
        is_needed = np.isin(self.past["symbol"], symbols) & np.isin(self.past["kind"], kinds)
        is_needed[:1] = True
        with_past = np.concatenate([self.past[is_needed], rows])
        events = self._build(symbols, with_past)[len(with_past) - len(rows) :]
        events.features[:, market.COLUMN["log_trade_rate"]] = np.log1p(self._trades_of_last_minute(events, rows))
        self.past = self._needed_later(np.concatenate([self.past, rows]))
        return events

    def state(self) -> dict[str, np.ndarray]:
        """Everything that ``restore`` needs, as plain arrays that later calls do not change."""
        return {"past": self.past, "traded": self.recent_trades, "symbols": np.array(self.symbols)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continues from the arrays of an earlier ``state``. Raises GraphError if they are of other symbols."""
        if arrays["symbols"].tolist() != list(self.symbols):
            raise GraphError(
                f"the state is of {', '.join(arrays['symbols'].tolist())}, this stream of {', '.join(self.symbols)}; "
                "stream the same symbols, or begin without the state"
            )
        self.past = arrays["past"]
        self.recent_trades = arrays["traded"]

    def _build(self, symbols: np.ndarray, rows: np.ndarray) -> Events:
        """Events of ``rows`` between the nodes of the whole market, by the builders of their kinds.

        ``symbols``, ascending positions in ``self.symbols``, contains the symbols of all rows.
        """
        names = [self.symbols[i] for i in symbols]
        parts = []
        for kind in [kind for kind in BUILDERS if EVENT_KINDS.index(kind) in rows["kind"]] or ["trade"]:
            kind_rows = rows[rows["kind"] == EVENT_KINDS.index(kind)]
            columns = {name: kind_rows[name] for name in ("t", "next_t", *EVENT_VALUES)}
            columns["symbol"] = np.array(names)[np.searchsorted(symbols, kind_rows["symbol"])]
            parts.append(BUILDERS[kind](names, columns))
        events = market.with_clocks(concatenate(parts), self.large_value)
        n = len(self.symbols)
        node_types = len(market.NODE_TYPES)
        external = node_types * n + np.arange(len(market.EXTERNAL))
        position = np.concatenate([*(node_type * n + symbols for node_type in range(node_types)), external])
        return Events(position[events.src], position[events.dst], events.t, events.kind, events.features, self.nodes)

    def _trades_of_last_minute(self, events: Events, rows: np.ndarray) -> np.ndarray:
        """How many trades (e,) each event's asset had in the minute before the event; simultaneous trades do not
        count. Also moves ``recent_trades`` on to the last minute of ``rows``."""
        trades = np.empty(int((rows["kind"] == TRADE).sum()), TRADE_TIME)
        for name in TRADE_TIME.names or ():
            trades[name] = rows[name][rows["kind"] == TRADE]
        start = events.t - market.MINUTE_US
        expired = self.recent_trades[: np.searchsorted(self.recent_trades["t"], start.max(initial=0))]
        count = np.bincount(self.recent_trades["symbol"], minlength=len(self.symbols))[events.dst]
        count += _count_before(trades, events.dst, events.t) - _count_before(trades, events.dst, start)
        count -= _count_before(expired, events.dst, start)
        all_trades = np.concatenate([self.recent_trades, trades])
        self.recent_trades = all_trades[all_trades["t"] >= all_trades["t"].max(initial=0) - market.MINUTE_US]
        return count

    def _needed_later(self, rows: np.ndarray) -> np.ndarray:
        """The rows that later features may read: the first of all, the last of each kind and symbol, and each symbol's
        last large trade."""
        is_needed = np.zeros(len(rows), dtype=bool)
        is_needed[:1] = True
        kind_and_symbol = rows["kind"].astype(np.int64) * len(self.symbols) + rows["symbol"]
        is_large = (rows["kind"] == TRADE) & (rows["size"] * rows["price"] >= self.large_value)
        for positions in (np.arange(len(rows)), np.flatnonzero(is_large)):
            newest_first = positions[::-1]
            is_needed[newest_first[np.unique(kind_and_symbol[newest_first], return_index=True)[1]]] = True
        return rows[is_needed]


def _count_before(trades: np.ndarray, symbol: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How many of ``trades`` (TRADE_TIME) are of each ``symbol`` (e,) and came before the time ``t`` (e,)."""
    if not len(trades):
        return np.zeros(len(t), dtype=np.int64)
    first = trades["t"].min()
    span = np.ptp(trades["t"]) + 2
    keys = np.sort(trades["symbol"] * span + trades["t"] - first)
    start = symbol * span
    return np.searchsorted(keys, start + np.clip(t - first, 0, span - 1)) - np.searchsorted(keys, start)
