"""Trade graphs: links between assets from their trades, bar by bar.

Glossary: t bars, n assets, w bars of the window, f = 4 columns of a bar's trades · v value of a trade, price · size ·
q_b,i signed flow: value bought less value sold by takers in bar b of asset i.

order_flow     correlation of q: assets that are bought and sold at the same times.
flow_between   directed, from the assets sold in a bar to those bought in it: the share of all value that moved so.
liquidity      correlation of the change of log illiquidity: assets whose liquidity falls together (Chordia, Roll and
               Subrahmanyam 2000, Commonality in liquidity).
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
    "last_s",  # time of the bar's last trade, seconds since 1970
)
SIGNED_VALUE, VALUE, PRICE, LAST_S = range(len(TRADE_COLUMNS))


@dataclass(frozen=True)
class TradeRule:
    """Edges of the kind ``link``, a name in LINKS: the pairs of at least ``min_weight``, by absolute value, that are
    among the ``top_k`` strongest of either asset."""

    link: str
    window_bars: int
    min_weight: float
    top_k: int
    every_bars: int

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, least=3)
        if self.link not in LINKS:
            raise GraphError(f"link is {self.link!r}; choose one of: {', '.join(LINKS)}")
        if not self.min_weight >= 0 or self.top_k < 1:
            raise GraphError(
                f"min_weight is {self.min_weight} and top_k {self.top_k}; they must be at least 0 and at least 1"
            )

    @property
    def directed(self) -> bool:
        """True for "flow_between", whose edges run from the asset sold to the asset bought."""
        return self.link == "flow_between"

    def inputs(self, trades: Panel) -> np.ndarray:
        """TRADE_COLUMNS of every bar (t, n, 4), NaN in bars without a trade. Raises GraphError for other columns."""
        if trades.columns != TRADE_COLUMNS:
            raise GraphError(f"{self.link} is made of {', '.join(TRADE_COLUMNS)}, not of {', '.join(trades.columns)}")
        return trades.values

    def edges(self, inputs: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """The edges of each window, see ``windowed.GraphRule``."""
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

    In each bar, value moves from the assets sold on balance to those bought on balance: the smaller of the two totals,
    from and to each asset in proportion to its signed flow.
    """
    q = signed_flow(window)
    sold = np.maximum(-q, 0.0)
    bought = np.maximum(q, 0.0)
    larger = np.maximum(sold.sum(axis=1), bought.sum(axis=1))
    moved = (sold / np.where(larger > 0, larger, 1.0)[:, None]).T @ bought
    total = moved.sum()
    return np.round(moved / total, DECIMALS) if total > 0 else moved


def liquidity(window: np.ndarray) -> np.ndarray:
    """Correlation of the changes of log illiquidity (n, n) from (w, n, 4)."""
    return correlation(np.diff(np.log(illiquidity(window)), axis=0))


def proximity(window: np.ndarray) -> np.ndarray:
    """1 / (1 + Δt) (n, n) from (w, n, 4), Δt between the last trades in seconds; NaN for an asset without one."""
    last = np.fmax.reduce(window[:, :, LAST_S], axis=0)
    return np.round(1.0 / (1.0 + np.abs(last[:, None] - last[None, :])), DECIMALS)


LINKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    link.__name__: link for link in (order_flow, flow_between, liquidity, proximity)
}


def signed_flow(window: np.ndarray) -> np.ndarray:
    """q (w, n); 0 in bars without a trade."""
    return np.nan_to_num(window[:, :, SIGNED_VALUE], nan=0.0)


def illiquidity(window: np.ndarray) -> np.ndarray:
    """|log price change| per value traded (w, n), after Amihud 2002, since the asset's last trade in the window.

    NaN where a bar has no trade, no trade before it, no change of price, or a value so small that it is 0.
    """
    log_price = np.log(window[:, :, PRICE])
    value = window[:, :, VALUE]
    bar = np.where(np.isnan(log_price), 0, np.arange(len(log_price))[:, None])
    filled = np.take_along_axis(log_price, np.maximum.accumulate(bar, axis=0), axis=0)
    change = np.abs(np.diff(filled, axis=0, prepend=np.nan))
    is_known = (change > 0) & (value > 0)
    return np.where(is_known, change / np.where(is_known, value, 1.0), np.nan)
