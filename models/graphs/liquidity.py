"""Who is traded together: links between assets from their trades.

Glossary: e trades, n assets, k buckets of time, b a bucket · v price · size, the value of a trade · q_b,i signed flow:
value bought less value sold by those who took the price, in bucket b of asset i.

All links are of the buckets in (as_of − buckets · bucket_us, as_of]; a later trade is not looked at. Times are
microseconds UTC; values are in the currency of the price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.keeping import Edges, strongest, strongest_directed
from models.graphs.measures import DECIMALS, correlation
from models.graphs.snapshot import GraphError, Snapshot

BUY, SELL = 1, -1
SECOND_US = 1_000_000


@dataclass(frozen=True, eq=False)
class Trades:
    """Trades in the order of their time: ``t`` (e,) int64 µs, ``symbol`` (e,) int64 position in ``nodes``, ``price``
    and ``size`` (e,) above 0, ``side`` (e,) BUY or SELL, of the one who took the price.

    Raises GraphError naming the first trade that is none.
    """

    t: np.ndarray
    symbol: np.ndarray
    price: np.ndarray
    size: np.ndarray
    side: np.ndarray
    nodes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len({len(a) for a in (self.t, self.symbol, self.price, self.size, self.side)}) > 1:
            raise GraphError("trades have columns of different lengths")
        for wrong, what in (
            (np.diff(self.t, prepend=self.t[:1]) < 0, "is before the one it follows; sort trades by time"),
            ((self.symbol < 0) | (self.symbol >= len(self.nodes)), f"has a symbol outside 0 … {len(self.nodes) - 1}"),
            (~((self.price > 0) & (self.size > 0)), "has no positive price and size"),
            (~np.isin(self.side, (BUY, SELL)), "has a side other than 1, bought, or -1, sold"),
        ):
            if wrong.any():
                k = int(wrong.argmax())
                raise GraphError(f"trade {k} at {self.t[k]} µs of symbol {self.symbol[k]} {what}")


@dataclass(frozen=True)
class TradeRule:
    """Which links become edges: over the last ``buckets`` buckets of ``bucket_us``, at least ``min_weight`` by absolute
    value, among the ``top_k`` strongest of either end."""

    bucket_us: int
    buckets: int
    min_weight: float
    top_k: int

    def __post_init__(self) -> None:
        if self.bucket_us < 1 or self.buckets < 3:
            raise GraphError(
                f"bucket_us is {self.bucket_us} and buckets {self.buckets}; they must be at least 1 and at least 3"
            )
        if not self.min_weight >= 0 or self.top_k < 1:
            raise GraphError(
                f"min_weight is {self.min_weight} and top_k {self.top_k}; they must be at least 0 and at least 1"
            )


def order_flow_snapshot(trades: Trades, as_of: int, rule: TradeRule) -> Snapshot:
    """Links between assets bought and sold at the same times: correlation of their signed flow q."""
    return _snapshot("order_flow", trades, as_of, rule, _kept(correlation(signed_flow(trades, as_of, rule)), rule))


def flow_between_snapshot(trades: Trades, as_of: int, rule: TradeRule) -> Snapshot:
    """Directed edges from assets sold to those bought meanwhile, weighing their share of all such value."""
    share = flow_between(signed_flow(trades, as_of, rule))
    edges = strongest_directed(share, (share > 0) & (share >= rule.min_weight), rule.top_k)
    return _snapshot("flow_between", trades, as_of, rule, edges, directed=True)


def liquidity_snapshot(trades: Trades, as_of: int, rule: TradeRule) -> Snapshot:
    """Links between assets that become illiquid together: correlation of the change of their log illiquidity.

    Chordia, Roll and Subrahmanyam 2000, Commonality in liquidity.
    """
    moves = np.diff(np.log(illiquidity(trades, as_of, rule)), axis=0)
    return _snapshot("liquidity", trades, as_of, rule, _kept(correlation(moves), rule))


def proximity_snapshot(t: np.ndarray, symbol: np.ndarray, as_of: int, nodes: Sequence[str], top_k: int) -> Snapshot:
    """Links by how close in time the last events of two assets were: 1 / (1 + Δt), Δt in seconds.

    ``t`` (e,) µs and ``symbol`` (e,) of any kind of event; an asset without one by ``as_of`` stays alone. Raises
    GraphError naming the first event whose symbol is no position in ``nodes``.
    """
    unknown = (symbol < 0) | (symbol >= len(nodes))
    if unknown.any():
        k = int(unknown.argmax())
        raise GraphError(f"event {k} at {t[k]} µs has symbol {symbol[k]}, outside 0 … {len(nodes) - 1}; add its node")
    seen = t <= as_of
    last = np.full(len(nodes), -np.inf)
    np.maximum.at(last, symbol[seen], t[seen])
    with np.errstate(invalid="ignore"):
        weight = np.round(proximity(np.abs(last[:, None] - last[None, :]) / SECOND_US), DECIMALS)
    weight[~np.isfinite(last), :] = weight[:, ~np.isfinite(last)] = np.nan
    start = np.datetime64("NaT", "us") if not seen.any() else np.datetime64(int(t[seen].min()), "us")
    edges = strongest(weight, 0.0, top_k)
    return Snapshot("proximity", np.datetime64(int(as_of), "us"), start, *edges, tuple(nodes))


def proximity(seconds: np.ndarray) -> np.ndarray:
    """1 / (1 + Δt): 1 for two events at once, a half for two a second apart."""
    return 1.0 / (1.0 + seconds)


def signed_flow(trades: Trades, as_of: int, rule: TradeRule) -> np.ndarray:
    """q (k, n), oldest bucket first; 0 where nothing was traded."""
    return _per_bucket(trades, as_of, rule, trades.side * trades.price * trades.size)


def flow_between(q: np.ndarray) -> np.ndarray:
    """Share [i, j] of the value that left i and entered j, (n, n) from (k, n); 0 everywhere if none moved.

    In each bucket, what the assets sold on balance raised is taken to have gone to those bought on balance, in
    proportion, as far as the smaller of the two totals reaches.
    """
    sold, bought = np.maximum(-q, 0.0), np.maximum(q, 0.0)
    larger = np.maximum(sold.sum(axis=1), bought.sum(axis=1))
    moved = (sold / np.where(larger > 0, larger, 1.0)[:, None]).T @ bought
    total = moved.sum()
    return np.round(moved / total, DECIMALS) if total > 0 else moved


def illiquidity(trades: Trades, as_of: int, rule: TradeRule) -> np.ndarray:
    """|log price change| per value traded (k, n), after Amihud 2002.

    NaN where a bucket has no trade, none before it, or no change of price.
    """
    value = _per_bucket(trades, as_of, rule, trades.price * trades.size)
    bucket, inside = _bucket(trades, as_of, rule)
    last = np.full((rule.buckets, len(trades.nodes)), np.nan)
    last[bucket[inside], trades.symbol[inside]] = np.log(trades.price[inside])  # the later trade is written over
    filled = last.copy()
    for k in range(1, rule.buckets):
        filled[k] = np.where(np.isnan(last[k]), filled[k - 1], last[k])
    change = np.abs(np.diff(filled, axis=0, prepend=np.nan))
    return np.where((value > 0) & (change > 0), change / np.where(value > 0, value, 1.0), np.nan)


def _bucket(trades: Trades, as_of: int, rule: TradeRule) -> tuple[np.ndarray, np.ndarray]:
    """Bucket of each trade, the last one ending with ``as_of``, and whether it is in the window, (e,) each."""
    bucket = rule.buckets - 1 - (as_of - trades.t) // rule.bucket_us
    return bucket, (bucket >= 0) & (trades.t <= as_of)


def _per_bucket(trades: Trades, as_of: int, rule: TradeRule, value: np.ndarray) -> np.ndarray:
    """Sums of ``value`` (e,) by bucket and asset, (k, n)."""
    bucket, inside = _bucket(trades, as_of, rule)
    n = len(trades.nodes)
    place = bucket[inside] * n + trades.symbol[inside]
    return np.bincount(place, weights=value[inside], minlength=rule.buckets * n).reshape(rule.buckets, n)


def _kept(matrix: np.ndarray, rule: TradeRule) -> Edges:
    return strongest(matrix, rule.min_weight, rule.top_k)


def _snapshot(
    graph: str, trades: Trades, as_of: int, rule: TradeRule, edges: Edges, directed: bool = False
) -> Snapshot:
    start = np.datetime64(int(as_of) - rule.buckets * rule.bucket_us, "us")
    return Snapshot(graph, np.datetime64(int(as_of), "us"), start, *edges, trades.nodes, directed)
