"""Who is traded together: links between assets from their trades, bar by bar.

Glossary: t bars, n assets, w bars of the window, f = 4 columns of a bar's trades · v value of a trade, price · size ·
q_b,i signed flow: value bought less value sold by those who took the price, in bar b of asset i.

order_flow     correlation of q: assets that are bought and sold at the same times.
flow_between   directed, from the assets sold to those bought meanwhile, their share of all such value.
liquidity      correlation of the change of log illiquidity: assets that dry up together (Chordia, Roll and Subrahmanyam
               2000, Commonality in liquidity).
proximity      1 / (1 + Δt), Δt seconds between the last trades of two assets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from models.graphs.edge_selection import Edges, strongest, strongest_directed
from models.graphs.measures import DECIMALS, correlation
from models.graphs.snapshot import GraphError
from models.graphs.windowed import check_window
from models.panel import Panel

TRADE_COLUMNS = (
    "signed_value",  # value bought less value sold, in the quote currency
    "value",
    "price",  # of the bar's last trade
    "last_s",  # when that was, seconds since 1970
)
SIGNED, VALUE, PRICE, LAST = range(len(TRADE_COLUMNS))


@dataclass(frozen=True)
class TradeRule:
    """Which links become edges, of the ``link`` named: at least ``min_weight`` by absolute value, among the ``top_k``
    strongest of either end."""

    link: str
    window_bars: int
    min_weight: float
    top_k: int
    every_bars: int

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, least=3)
        if self.link not in LINKS:
            raise GraphError(f"link is {self.link!r}; those there are: {', '.join(LINKS)}")
        if not self.min_weight >= 0 or self.top_k < 1:
            raise GraphError(
                f"min_weight is {self.min_weight} and top_k {self.top_k}; they must be at least 0 and at least 1"
            )

    @property
    def directed(self) -> bool:
        """True where an edge runs from the one sold to the one bought."""
        return self.link == "flow_between"

    def inputs(self, trades: Panel) -> np.ndarray:
        """TRADE_COLUMNS of every bar (t, n, 4), NaN where nothing was traded. Raises GraphError for other columns."""
        if trades.columns != TRADE_COLUMNS:
            raise GraphError(f"{self.link} is made of {', '.join(TRADE_COLUMNS)}, not of {', '.join(trades.columns)}")
        return trades.values

    def edges(self, inputs: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Edges of each window, see ``windowed.Rule``."""
        for end in ends:
            weight = LINKS[self.link](inputs[end - self.window_bars + 1 : end + 1])
            if self.directed:
                yield strongest_directed(weight, (weight > 0) & (weight >= self.min_weight), self.top_k)
            else:
                yield strongest(weight, self.min_weight, self.top_k)


def order_flow(window: np.ndarray) -> np.ndarray:
    """Correlation of signed flow (n, n) from (w, n, 4)."""
    return correlation(signed_flow(window))


def flow_between(window: np.ndarray) -> np.ndarray:
    """Share [i, j] of the value that left i and entered j, (n, n) from (w, n, 4); 0 everywhere if none moved.

    In each bar, what the assets sold on balance raised is taken to have gone to those bought on balance, in proportion,
    as far as the smaller of the two totals reaches.
    """
    q = signed_flow(window)
    sold, bought = np.maximum(-q, 0.0), np.maximum(q, 0.0)
    larger = np.maximum(sold.sum(axis=1), bought.sum(axis=1))
    moved = (sold / np.where(larger > 0, larger, 1.0)[:, None]).T @ bought
    total = moved.sum()
    return np.round(moved / total, DECIMALS) if total > 0 else moved


def liquidity(window: np.ndarray) -> np.ndarray:
    """Correlation of the changes of log illiquidity (n, n) from (w, n, 4)."""
    return correlation(np.diff(np.log(illiquidity(window)), axis=0))


def proximity(window: np.ndarray) -> np.ndarray:
    """1 / (1 + Δt) (n, n) from (w, n, 4), Δt between the last trades in seconds; NaN for an asset without one."""
    last = np.fmax.reduce(window[:, :, LAST], axis=0)
    return np.round(1.0 / (1.0 + np.abs(last[:, None] - last[None, :])), DECIMALS)


LINKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    link.__name__: link for link in (order_flow, flow_between, liquidity, proximity)
}


def signed_flow(window: np.ndarray) -> np.ndarray:
    """q (w, n); 0 where nothing was traded."""
    return np.nan_to_num(window[:, :, SIGNED], nan=0.0)


def illiquidity(window: np.ndarray) -> np.ndarray:
    """|log price change| per value traded (w, n), after Amihud 2002, since the asset's last trade in the window.

    NaN where a bar has no trade, none before it, no change of price, or so little value that it is 0.
    """
    price, value = np.log(window[:, :, PRICE]), window[:, :, VALUE]
    bar = np.where(np.isnan(price), 0, np.arange(len(price))[:, None])
    filled = np.take_along_axis(price, np.maximum.accumulate(bar, axis=0), axis=0)
    change = np.abs(np.diff(filled, axis=0, prepend=np.nan))
    known = (change > 0) & (value > 0)
    return np.where(known, change / np.where(known, value, 1.0), np.nan)
