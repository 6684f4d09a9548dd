"""Events of a market built batch by batch, with the same features as if all rows were one table.

A feature depends on earlier rows of the same symbol (the last price, the last settlement, the trades of the last
minute), and never on rows of another symbol. So the rows that later features depend on are kept for each symbol, and a
batch is built together with the kept rows of its symbols. The cost depends on the size of the batch, not on the number
of symbols of the market.
Glossary: e events of a batch · n symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
# One event. ``t`` is its time and ``next_t`` the time of the next funding settlement, microseconds since 1970 in UTC.
# ``key`` identifies the event. ``kind`` is a position in EVENT_KINDS, ``symbol`` a position in the symbols. Of
# EVENT_VALUES, only the values of its kind have a meaning.
MARKET_ROW = np.dtype(
    [("t", np.int64), ("key", np.uint64), ("kind", np.int8), ("symbol", np.int64), ("next_t", np.int64)]
    + [(name, np.float64) for name in EVENT_VALUES]
)
# time and symbol of a trade, see MARKET_ROW
RECENT_TRADE_ROW = np.dtype([("t", np.int64), ("symbol", np.int64)])
TRADE_KIND = EVENT_KINDS.index("trade")
CLOCK_KINDS = (TRADE_KIND, EVENT_KINDS.index("funding"))  # the clock features of all kinds count from these kinds


class MarketEvents:
    """Builds Events from arrays of MARKET_ROW, batch by batch.

    Rows must be in ascending order of time, within a batch and from one batch to the next. Rows of two batches must not
    be simultaneous. ``min_large_value`` is the value of the smallest large trade, see ``with_clock_features``.
    """

    def __init__(self, symbols: Sequence[str], min_large_value: float = 100_000.0) -> None:
        self.symbols = tuple(symbols)
        self.min_large_value = min_large_value
        self.nodes = market.market_nodes(self.symbols)
        self.past = np.empty(0, MARKET_ROW)  # the first of all rows, then the rows that later features can depend on
        self.recent_trades = np.empty(0, RECENT_TRADE_ROW)  # the trades of the last minute

    def __call__(self, rows: np.ndarray) -> Events:
        """The events of ``rows`` (e,) between ``market_nodes(symbols)``, in the same order of time.

        Raises GraphError for rows that no valid event can be built from.
        """
        symbol_positions = np.union1d(rows["symbol"], self.past["symbol"][:1])
        kinds = [*np.unique(rows["kind"]), *CLOCK_KINDS]
        is_needed = np.isin(self.past["symbol"], symbol_positions) & np.isin(self.past["kind"], kinds)
        is_needed[:1] = True
        with_past = np.concatenate([self.past[is_needed], rows])
        events = self._build(symbol_positions, with_past)[len(with_past) - len(rows) :]
        # the kept rows lack most trades of the last minute, so this feature is counted separately
        n_recent = self._count_trades_of_last_minute(events, rows)
        events.features[:, market.FEATURE_COLUMN["log_trade_rate"]] = np.log1p(n_recent)
        self.past = self._select_rows_for_later(np.concatenate([self.past, rows]))
        return events

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that ``restore`` needs; later calls do not change them."""
        return {"past": self.past, "traded": self.recent_trades, "symbols": np.array(self.symbols)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continues from the arrays that ``state`` returned. Raises GraphError if they belong to other symbols."""
        if arrays["symbols"].tolist() != list(self.symbols):
            raise GraphError(
                f"the state is of {', '.join(arrays['symbols'].tolist())}, this stream of {', '.join(self.symbols)}; "
                "stream the same symbols, or begin without the state"
            )
        self.past = arrays["past"]
        self.recent_trades = arrays["traded"]

    def _build(self, symbol_positions: np.ndarray, rows: np.ndarray) -> Events:
        """Events of ``rows`` between the nodes of the whole market, from the builders of their kinds.

        ``symbol_positions`` are ascending positions in ``self.symbols``; they include the symbols of all rows.
        """
        symbol_names = [self.symbols[i] for i in symbol_positions]
        # without rows, one builder still has to make the empty Events
        kinds = [kind for kind in BUILDERS if EVENT_KINDS.index(kind) in rows["kind"]] or ["trade"]
        parts = []
        for kind in kinds:
            kind_rows = rows[rows["kind"] == EVENT_KINDS.index(kind)]
            columns = {name: kind_rows[name] for name in ("t", "next_t", *EVENT_VALUES)}
            columns["symbol"] = np.array(symbol_names)[np.searchsorted(symbol_positions, kind_rows["symbol"])]
            parts.append(BUILDERS[kind](symbol_names, columns))
        events = market.with_clock_features(concatenate(parts), self.min_large_value)
        n = len(self.symbols)
        n_types = len(market.NODE_TYPES)
        external = n_types * n + np.arange(len(market.EXTERNAL_NODES))
        # position in the whole market's nodes of each node of the market of ``symbol_names``
        position = np.concatenate([*(node_type * n + symbol_positions for node_type in range(n_types)), external])
        return replace(events, src=position[events.src], dst=position[events.dst], nodes=self.nodes)

    def _count_trades_of_last_minute(self, events: Events, rows: np.ndarray) -> np.ndarray:
        """Number (e,) of trades of each event's asset in the minute before the event, without simultaneous trades.

        It also sets ``recent_trades`` to the trades of the minute up to the last trade.
        """
        trades = np.empty(int((rows["kind"] == TRADE_KIND).sum()), RECENT_TRADE_ROW)
        for name in RECENT_TRADE_ROW.names or ():
            trades[name] = rows[name][rows["kind"] == TRADE_KIND]
        minute_start = events.t - market.MINUTE_US
        expired = self.recent_trades[: np.searchsorted(self.recent_trades["t"], minute_start.max(initial=0))]
        n_trades = np.bincount(self.recent_trades["symbol"], minlength=len(self.symbols))[events.dst]
        n_trades += _count_before(trades, events.dst, events.t) - _count_before(trades, events.dst, minute_start)
        n_trades -= _count_before(expired, events.dst, minute_start)
        all_trades = np.concatenate([self.recent_trades, trades])
        self.recent_trades = all_trades[all_trades["t"] >= all_trades["t"].max(initial=0) - market.MINUTE_US]
        return n_trades

    def _select_rows_for_later(self, rows: np.ndarray) -> np.ndarray:
        """The ``rows`` that the features of later events can depend on, in the same order.

        These are the first row, the last row of each kind and symbol, and each symbol's last large trade.
        """
        is_needed = np.zeros(len(rows), dtype=bool)
        is_needed[:1] = True
        kind_and_symbol = rows["kind"].astype(np.int64) * len(self.symbols) + rows["symbol"]
        is_large = (rows["kind"] == TRADE_KIND) & (rows["size"] * rows["price"] >= self.min_large_value)
        for positions in (np.arange(len(rows)), np.flatnonzero(is_large)):
            newest_first = positions[::-1]
            _, first_index = np.unique(kind_and_symbol[newest_first], return_index=True)
            is_needed[newest_first[first_index]] = True
        return rows[is_needed]


def _count_before(trades: np.ndarray, symbol: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Number (e,) of ``trades`` (RECENT_TRADE_ROW) of each ``symbol`` (e,) at a time strictly before ``t`` (e,)."""
    if not len(trades):
        return np.zeros(len(t), dtype=np.int64)
    first_t = trades["t"].min()
    keys_per_symbol = np.ptp(trades["t"]) + 2  # the last of them belongs to all times after the last trade
    keys = np.sort(trades["symbol"] * keys_per_symbol + trades["t"] - first_t)
    first_key = symbol * keys_per_symbol
    last_key = first_key + np.clip(t - first_t, 0, keys_per_symbol - 1)
    return np.searchsorted(keys, last_key) - np.searchsorted(keys, first_key)
