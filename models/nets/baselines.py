"""Trading rules without parameters that every model has to beat.

Each maps the bars of a universe to target weights, decided at the close of every bar.

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
    """Equal weights in all assets of the panel, (t, n), each from its first bar on, also through missed bars.

    Meant for a panel of the benchmark alone.
    """
    is_held = np.maximum.accumulate(bars.mask, axis=0)
    return np.where(is_held, 1.0 / np.maximum(is_held.sum(axis=1, keepdims=True), 1), 0.0)


def momentum(
    bars: Panel, lookback_bars: int = 120, skip_bars: int = 5, rebalance_bars: int = 20, share: float = 0.25
) -> np.ndarray:
    """Equal weights in the best ``share`` of the assets by total return over bars (t − lookback, t − skip], (t, n).

    Only assets that rose are bought. Assets are selected at every ``rebalance_bars``-th bar of the panel and held until
    the next selection; zeros before the first. An asset without a bar at the selection, or at the start of the window,
    is not ranked.
    """
    growth = np.log1p(np.where(bars.mask, np.nan_to_num(bars.column("total_return")), 0.0)).cumsum(axis=0)
    weights = np.zeros(bars.mask.shape)
    for t in range(-(-lookback_bars // rebalance_bars) * rebalance_bars, len(bars), rebalance_bars):
        is_ranked = bars.mask[t] & bars.mask[t - lookback_bars]
        score = np.where(is_ranked, growth[t - skip_bars] - growth[t - lookback_bars], -np.inf)
        best = np.argsort(-score, kind="stable")[: max(1, round(share * is_ranked.sum()))]
        bought = best[score[best] > 0]
        if len(bought):
            weights[t : t + rebalance_bars, bought] = 1.0 / len(bought)
    return weights
