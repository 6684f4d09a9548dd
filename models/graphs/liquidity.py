"""Trade graphs: edges between assets whose trades are related, computed from the sums of trades per bar.

Glossary: t bars, n assets, w bars of the window · value of a trade: price · size, in the quote currency · q signed
flow: the value that takers bought in a bar less the value that they sold. A window (w, n, 4) has TRADE_COLUMNS.

order_flow     correlation of q: assets that takers buy and sell at the same times.
flow_between   directed, from assets sold in a bar to assets bought in the same bar. The weight is the share of all
               moved value that moved between the two assets.
liquidity      correlation of the changes of log illiquidity: assets whose liquidity falls and rises together (Chordia,
               Roll and Subrahmanyam 2000, Commonality in liquidity).
proximity      1 / (1 + Δt), where Δt is the time in seconds between the last trades of two assets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from models.graphs.edge_selection import Edges, strongest_directed_edges, strongest_edges
from models.graphs.measures import DECIMALS, correlation
from models.graphs.snapshot import GraphError
from models.graphs.windowed import check_window
from models.panel import Panel

TRADE_COLUMNS = (
    "signed_value",  # value bought less value sold, in the quote currency
    "value",  # value bought plus value sold, in the quote currency
    "price",  # of the bar's last trade
    "last_s",  # time of the bar's last trade, seconds since 1970 in UTC
)
SIGNED_VALUE, VALUE, PRICE, LAST_S = range(len(TRADE_COLUMNS))  # positions in TRADE_COLUMNS


@dataclass(frozen=True)
class TradeRule:
    """Edges between assets by the weight ``link``, a name in LINK_WEIGHTS.

    A pair is an edge if the absolute value of its weight is at least ``min_weight`` and among the ``top_k`` greatest of
    either asset. A weight of 0 is no edge.
    """

    link: str
    window_bars: int
    min_weight: float
    top_k: int
    every_bars: int

    def __post_init__(self) -> None:
        check_window(self.window_bars, self.every_bars, min_bars=3)
        if self.link not in LINK_WEIGHTS:
            raise GraphError(f"link is {self.link!r}; choose one of: {', '.join(LINK_WEIGHTS)}")
        if not self.min_weight >= 0 or self.top_k < 1:
            raise GraphError(
                f"min_weight is {self.min_weight} and top_k {self.top_k}; they must be at least 0 and at least 1"
            )

    @property
    def directed(self) -> bool:
        """True for "flow_between" only: its edges run from the asset sold to the asset bought."""
        return self.link == "flow_between"

    def inputs(self, trades: Panel) -> np.ndarray:
        """TRADE_COLUMNS of every bar (t, n, 4), NaN in bars without a trade.

        Raises GraphError for a panel of other columns.
        """
        if trades.columns != TRADE_COLUMNS:
            raise GraphError(
                f"{self.link} needs the columns {', '.join(TRADE_COLUMNS)}, got {', '.join(trades.columns)}"
            )
        return trades.values

    def edges(self, inputs: np.ndarray, ends: np.ndarray) -> Iterator[Edges]:
        """Yields the edges of each window, see ``windowed.GraphRule``."""
        for end in ends:
            weight = LINK_WEIGHTS[self.link](inputs[end - self.window_bars + 1 : end + 1])
            if self.directed:
                yield strongest_directed_edges(weight, (weight > 0) & (weight >= self.min_weight), self.top_k)
            else:
                yield strongest_edges(weight, self.min_weight, self.top_k)


def order_flow(window: np.ndarray) -> np.ndarray:
    """Correlation (n, n) of the assets' signed flows in a window (w, n, 4); NaN as in ``measures.correlation``."""
    return correlation(signed_flow(window))


def flow_between(window: np.ndarray) -> np.ndarray:
    """Share of the moved value that moved from asset i to asset j, entry [i, j] of (n, n), from a window (w, n, 4).

    In each bar, value moves from the assets with q < 0 to the assets with q > 0. The moved value of a bar is the lesser
    of two totals: the sum of |q| of the sold assets and that of the bought assets. Each asset gives or receives in
    proportion to its |q|. All entries are 0 if no value moved in the window; otherwise their sum is 1 up to rounding.
    """
    q = signed_flow(window)
    sold = np.maximum(-q, 0.0)
    bought = np.maximum(q, 0.0)
    larger_total = np.maximum(sold.sum(axis=1), bought.sum(axis=1))
    moved = (sold / np.where(larger_total > 0, larger_total, 1.0)[:, None]).T @ bought
    moved_total = moved.sum()
    return np.round(moved / moved_total, DECIMALS) if moved_total > 0 else moved


def liquidity(window: np.ndarray) -> np.ndarray:
    """Correlation (n, n) of the changes of log illiquidity from bar to bar of a window (w, n, 4)."""
    return correlation(np.diff(np.log(illiquidity(window)), axis=0))


def proximity(window: np.ndarray) -> np.ndarray:
    """1 / (1 + Δt), (n, n), from a window (w, n, 4): Δt seconds lie between the last trades of two assets.

    It is 1 on the diagonal, and NaN for an asset without a trade in the window.
    """
    last_trade_s = np.fmax.reduce(window[:, :, LAST_S], axis=0)
    return np.round(1.0 / (1.0 + np.abs(last_trade_s[:, None] - last_trade_s[None, :])), DECIMALS)


LINK_WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    link.__name__: link for link in (order_flow, flow_between, liquidity, proximity)
}


def signed_flow(window: np.ndarray) -> np.ndarray:
    """The signed flow q (w, n) of a window (w, n, 4); 0 in bars without a trade."""
    return np.nan_to_num(window[:, :, SIGNED_VALUE], nan=0.0)


def illiquidity(window: np.ndarray) -> np.ndarray:
    """Absolute log price change of a bar divided by the value traded in it, (w, n), from a window (w, n, 4).

    After Amihud 2002. The change counts from the asset's last trade in an earlier bar of the window. NaN in a bar
    without a trade, in the asset's first bar with a trade, where the price did not change, and where the value is 0.
    """
    log_price = np.log(window[:, :, PRICE])
    value = window[:, :, VALUE]
    traded_bar_index = np.where(np.isnan(log_price), 0, np.arange(len(log_price))[:, None])
    last_log_price = np.take_along_axis(log_price, np.maximum.accumulate(traded_bar_index, axis=0), axis=0)
    change = np.abs(np.diff(last_log_price, axis=0, prepend=np.nan))
    is_known = (change > 0) & (value > 0)
    return np.where(is_known, change / np.where(is_known, value, 1.0), np.nan)
