"""Rows of a market's stream as Events, batch by batch, with the features they would have in one whole table.

A feature looks back: to the last price, the last settlement, the trades of the last minute. So those rows that the
coming batch may look back to are kept, and each batch is built together with them.
Glossary: e events · n symbols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.graphs import market_events as market
from models.graphs.events import KINDS, Events, concatenate
from models.graphs.snapshot import GraphError

BUILDERS = {
    "trade": market.trade_events,
    "book": market.book_events,
    "funding": market.funding_events,
    "open_interest": market.open_interest_events,
    "liquidation": market.liquidation_events,
}
MEASURES = ("price", "size", "side", "bid", "ask", "bid_size", "ask_size", "rate", "open_interest")
# one event: positions in KINDS and in the symbols, the measures of its kind, when its next settlement is
MARKET_ROW = np.dtype(
    [("t", np.int64), ("key", np.uint64), ("kind", np.int8), ("symbol", np.int64), ("next_t", np.int64)]
    + [(name, np.float64) for name in MEASURES]
)
TRADE = KINDS.index("trade")


class MarketEvents:
    """Makes Events of rows of MARKET_ROW, in the order of time, none simultaneous with one of an earlier call."""

    def __init__(self, symbols: Sequence[str], large_value: float = 100_000.0) -> None:
        self.symbols, self.large_value = tuple(symbols), large_value
        self.past = np.empty(0, MARKET_ROW)  # what may still be looked back to; the first row of all is its first

    def __call__(self, rows: np.ndarray) -> Events:
        """The events of these rows between ``market_nodes(symbols)``. Raises GraphError."""
        known = np.concatenate([self.past, rows])
        parts = [self._of_kind(name, known[known["kind"] == KINDS.index(name)]) for name in BUILDERS]
        events = market.with_clocks(concatenate(parts), self.large_value)
        self.past = self._looked_back_to(known)
        return events[len(events) - len(rows) :]

    def state(self) -> dict[str, np.ndarray]:
        """Everything ``restore`` needs, as plain arrays that later calls do not alter."""
        return {"past": self.past, "symbols": np.array(self.symbols)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken. Raises GraphError for other symbols."""
        if arrays["symbols"].tolist() != list(self.symbols):
            raise GraphError(
                f"the state is of {', '.join(arrays['symbols'].tolist())}, this stream of {', '.join(self.symbols)}; "
                "stream the same symbols, or begin without the state"
            )
        self.past = arrays["past"]

    def _of_kind(self, kind: str, rows: np.ndarray) -> Events:
        columns = {name: rows[name] for name in ("t", "next_t", *MEASURES)}
        return BUILDERS[kind](self.symbols, columns | {"symbol": np.array(self.symbols)[rows["symbol"]]})

    def _looked_back_to(self, known: np.ndarray) -> np.ndarray:
        """The first row, the last of each kind and symbol, each symbol's last large trade, the last minute's trades."""
        kept = np.zeros(len(known), dtype=bool)
        kept[:1] = True
        of = known["kind"].astype(np.int64) * len(self.symbols) + known["symbol"]
        large = (known["kind"] == TRADE) & (known["size"] * known["price"] >= self.large_value)
        for rows in (np.arange(len(known)), np.flatnonzero(large)):
            kept[rows[::-1][np.unique(of[rows[::-1]], return_index=True)[1]]] = True
        kept |= (known["kind"] == TRADE) & (known["t"] >= known["t"].max(initial=0) - market.MINUTE)
        return known[kept]
