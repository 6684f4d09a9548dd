"""Trading rules without fitted parameters: the baselines of every model.

Each rule maps the bars of a universe (its panel) to target weights (t, n) float64, decided at the close of every bar.

Glossary: t bars · n assets.
"""

from __future__ import annotations

import numpy as np

from models.panel import Panel


def equal_weight(bars: Panel) -> np.ndarray:
    """Weights (t, n): equal at each bar for the assets that have it, 0 for the others. A row sums to 1, or to 0 at a
    bar that no asset has."""
    n_with_bar = bars.mask.sum(axis=1, keepdims=True)
    return np.where(bars.mask, 1.0 / np.maximum(n_with_bar, 1), 0.0)


def buy_and_hold(bars: Panel) -> np.ndarray:
    """Weights (t, n): equal for all assets that have had a bar so far, also at bars that they miss; 0 for the others.

    The panel should contain the benchmark alone.
    """
    is_held = np.maximum.accumulate(bars.mask, axis=0)
    return np.where(is_held, 1.0 / np.maximum(is_held.sum(axis=1, keepdims=True), 1), 0.0)


def momentum(
    bars: Panel, lookback_bars: int = 120, skip_bars: int = 5, rebalance_bars: int = 20, share: float = 0.25
) -> np.ndarray:
    """Weights (t, n): equal for the ``share`` of the ranked assets with the highest total return, 0 for the others.

    Assets are selected at the bars whose position is a multiple of ``rebalance_bars`` and at least ``lookback_bars``,
    and held until the next selection; all weights are 0 before the first one. A selection at bar t ranks by the total
    return over the bars (t − lookback_bars, t − skip_bars], in which a missing bar counts as a return of 0. It ranks
    the assets that have bar t and bar t − lookback_bars. At least one asset is eligible, ties go to the first in the
    panel, and an asset without a positive total return is not bought.
    """
    growth = np.log1p(np.where(bars.mask, np.nan_to_num(bars.column("total_return")), 0.0)).cumsum(axis=0)
    weights = np.zeros(bars.mask.shape)
    first_selection = -(-lookback_bars // rebalance_bars) * rebalance_bars  # lookback_bars, rounded up
    for t in range(first_selection, len(bars), rebalance_bars):
        is_ranked = bars.mask[t] & bars.mask[t - lookback_bars]
        log_return = np.where(is_ranked, growth[t - skip_bars] - growth[t - lookback_bars], -np.inf)
        n_best = max(1, round(share * is_ranked.sum()))
        best = np.argsort(-log_return, kind="stable")[:n_best]
        bought = best[log_return[best] > 0]
        if len(bought):
            weights[t : t + rebalance_bars, bought] = 1.0 / len(bought)
    return weights
