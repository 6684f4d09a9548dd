"""Who moved with whom lately: rolling correlation of log total returns, thresholded.

Glossary: t bars, n assets, w bars of the window.

Snapshots sit at every k-th bar counted from the panel's first, so that more bars never move them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from models.graphs.snapshot import GraphError, Snapshot
from models.panel import Panel

GRAPH = "correlation"
MIN_OBSERVED = 0.8  # share of the window that both assets of a pair must have returns for
FLAT = 1e-12  # a standard deviation of returns below this is rounding
DECIMALS = 6  # of a weight: BLAS sums in another order with another number of threads, and edges must not show it


@dataclass(frozen=True)
class CorrelationRule:
    """Which pairs become edges: |correlation| over ``window_bars`` at least ``min_correlation``, and among the
    ``top_k`` strongest of either end; one snapshot every ``every_bars``.
    """

    window_bars: int
    min_correlation: float
    top_k: int
    every_bars: int

    def __post_init__(self) -> None:
        if self.window_bars < 3:
            raise GraphError(f"window_bars is {self.window_bars}; a correlation needs at least 3 bars")
        if not 0 < self.min_correlation <= 1:
            raise GraphError(f"min_correlation is {self.min_correlation}; it must be above 0 and at most 1")
        if self.top_k < 1 or self.every_bars < 1:
            raise GraphError(f"top_k is {self.top_k} and every_bars {self.every_bars}; both must be at least 1")


def due_snapshots(ts: np.ndarray, every_bars: int, window_bars: int) -> np.ndarray:
    """Positions in ``ts`` (t,) of the snapshots: multiples of ``every_bars`` with ``window_bars`` returns up to them.

    The first bar has no return, so the first full window ends at position ``window_bars``.
    """
    every = np.arange(0, len(ts), every_bars)
    return every[every >= window_bars]


def correlation_snapshots(bars: Panel, rule: CorrelationRule, due: Iterable[int] | None = None) -> list[Snapshot]:
    """Correlation graphs at the positions ``due`` of ``bars`` (default: all that are), oldest first.

    Each is made of the log total returns of the ``window_bars`` bars up to and including its own. Raises GraphError for
    fewer than two assets or bars without any return.
    """
    returns = window_returns(bars)
    at = due_snapshots(bars.ts, rule.every_bars, rule.window_bars) if due is None else np.fromiter(due, dtype=np.int64)
    snapshots = []
    for i in at:
        start = i - rule.window_bars + 1
        src, dst, weight = _strongest(correlation(returns[start : i + 1]), rule)
        snapshots.append(Snapshot(GRAPH, bars.ts[i], bars.ts[start], src, dst, weight, bars.symbols))
    return snapshots


def window_returns(bars: Panel) -> np.ndarray:
    """Log total returns (t, n), NaN where an asset has no bar or no earlier one; the only input of the correlations."""
    if len(bars.symbols) < 2:
        raise GraphError(f"a graph needs at least two assets, the bars have {len(bars.symbols)}")
    has_return = bars.mask & (np.cumsum(bars.mask, axis=0) > 1)
    returns = np.log1p(bars.column("total_return"), where=has_return, out=np.full(bars.mask.shape, np.nan))
    if len(bars) and not np.isfinite(returns).any():
        raise GraphError(f"no asset has a return in the {len(bars)} bars up to {bars.ts[-1]}; load bars first")
    return returns


def correlation(returns: np.ndarray) -> np.ndarray:
    """Pearson correlation of every pair over the bars both have, (n, n) from (w, n), to six decimals.

    NaN where they share less than 80% of the window or one of them does not move.
    """
    observed = np.isfinite(returns)
    count = np.maximum(observed.sum(axis=0), 1)
    centred = np.where(observed, returns, 0.0)
    centred -= np.where(observed, centred.sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    observed &= deviation > FLAT
    z = np.where(observed, centred / np.where(deviation > FLAT, deviation, 1.0), 0.0)
    seen = observed.astype(np.float64)
    # z has mean 0 and variance 1 over an asset's own bars; over the bars it shares with another it may not, so the sums
    # of each pair are corrected for the bars that one of the two lacks
    pairs, sums, squares = seen.T @ seen, z.T @ seen, (z**2).T @ seen
    covariance = pairs * (z.T @ z) - sums * sums.T
    variance = pairs * squares - sums**2
    with np.errstate(invalid="ignore", divide="ignore"):
        result = covariance / np.sqrt(variance * variance.T)
    known = (pairs >= MIN_OBSERVED * len(returns)) & (np.minimum(variance, variance.T) > FLAT)
    return np.where(known, np.clip(np.round(result, DECIMALS), -1.0, 1.0), np.nan)


def _strongest(matrix: np.ndarray, rule: CorrelationRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (src, dst, weight) of a correlation matrix (n, n) under the rule, src < dst, in that order.

    Pairs that tie with a node's k-th strongest are kept too, so the order of the assets does not matter.
    """
    strength = np.nan_to_num(np.abs(matrix), nan=0.0)
    np.fill_diagonal(strength, 0.0)
    n = len(strength)
    kth = np.partition(strength, n - min(rule.top_k, n), axis=1)[:, n - min(rule.top_k, n)]
    kept = (strength >= rule.min_correlation) & (strength >= np.minimum(kth[:, None], kth[None, :]))
    src, dst = np.nonzero(np.triu(kept, k=1))
    return src, dst, matrix[src, dst]
