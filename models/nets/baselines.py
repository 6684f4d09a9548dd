"""Rules without parameters that every model has to beat.

Each takes the bars of a universe and gives target weights decided at the close of every bar.

Glossary: t bars, n assets.
"""

from __future__ import annotations

import numpy as np

from models.panel import Panel


def equal_weight(bars: Panel) -> np.ndarray:
    """1/n of every asset that has a bar, (t, n); rows sum to 1, or to 0 where nothing trades."""
    count = bars.mask.sum(axis=1, keepdims=True)
    return np.where(bars.mask, 1.0 / np.maximum(count, 1), 0.0)


def buy_and_hold(bars: Panel) -> np.ndarray:
    """All of it in what the panel holds, (t, n), from each asset's first bar on, also through bars it missed.

    Meant for a panel of the benchmark alone.
    """
    held = np.maximum.accumulate(bars.mask, axis=0)
    return np.where(held, 1.0 / np.maximum(held.sum(axis=1, keepdims=True), 1), 0.0)


def momentum(
    bars: Panel, lookback_bars: int = 120, skip_bars: int = 5, rebalance_bars: int = 20, share: float = 0.25
) -> np.ndarray:
    """Equal weights in the best ``share`` of the assets by total return over bars (t − lookback, t − skip], (t, n).

    Only assets that rose are bought. Chosen at every ``rebalance_bars``-th bar counted from the panel's first, held
    between; zeros until then. An asset without a bar then, or at the start of the window, is not ranked.
    """
    growth = np.log1p(np.where(bars.mask, np.nan_to_num(bars.column("total_return")), 0.0)).cumsum(axis=0)
    weights = np.zeros(bars.mask.shape)
    for t in range(-(-lookback_bars // rebalance_bars) * rebalance_bars, len(bars), rebalance_bars):
        ranked = bars.mask[t] & bars.mask[t - lookback_bars]
        score = np.where(ranked, growth[t - skip_bars] - growth[t - lookback_bars], -np.inf)
        best = np.argsort(-score, kind="stable")[: max(1, round(share * ranked.sum()))]
        chosen = best[score[best] > 0]
        if len(chosen):
            weights[t : t + rebalance_bars, chosen] = 1.0 / len(chosen)
    return weights
