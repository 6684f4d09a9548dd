"""Trading rules without fitted parameters: the baselines of every model.

Each rule maps a panel, the bars of a universe, to target weights (t, n) float64, decided at the close of every bar.

Glossary: t bars · n assets.
"""

from __future__ import annotations

import numpy as np

from models.panel import Panel


def equal_weight(panel: Panel) -> np.ndarray:
    """Weights (t, n): at each bar equal for the assets that have the bar, 0 for the others. A row sums to 1, or to 0 if
    no asset has the bar."""
    n_with_bar = panel.mask.sum(axis=1, keepdims=True)
    return np.where(panel.mask, 1.0 / np.maximum(n_with_bar, 1), 0.0)


def buy_and_hold(panel: Panel) -> np.ndarray:
    """Weights (t, n): equal for all assets that have had a bar so far, also at bars that they miss; 0 for the others.

    The panel should contain the benchmark alone.
    """
    is_held = np.maximum.accumulate(panel.mask, axis=0)
    return np.where(is_held, 1.0 / np.maximum(is_held.sum(axis=1, keepdims=True), 1), 0.0)


def momentum(
    panel: Panel, lookback_bars: int = 120, skip_bars: int = 5, rebalance_bars: int = 20, share: float = 0.25
) -> np.ndarray:
    """Weights (t, n): equal for the ``share`` of the ranked assets with the highest total return, 0 for the others.

    Assets are selected at the bars whose position is a multiple of ``rebalance_bars`` and at least ``lookback_bars``,
    and held until the next selection; all weights are 0 before the first one. A selection at bar t ranks by the total
    return over the bars (t − lookback_bars, t − skip_bars], in which a missing bar counts as a return of 0. Only assets
    that have both bar t and bar t − lookback_bars are ranked. At least one ranked asset is selected; among equal
    returns, the first in the panel. A selected asset is bought only if its total return is positive.
    """
    cumulative_log_return = np.log1p(np.where(panel.mask, np.nan_to_num(panel.column("total_return")), 0.0)).cumsum(
        axis=0
    )
    weights = np.zeros(panel.mask.shape)
    first_selection = -(-lookback_bars // rebalance_bars) * rebalance_bars  # lookback_bars, rounded up
    for t in range(first_selection, len(panel), rebalance_bars):
        is_ranked = panel.mask[t] & panel.mask[t - lookback_bars]
        log_return = cumulative_log_return[t - skip_bars] - cumulative_log_return[t - lookback_bars]
        log_return = np.where(is_ranked, log_return, -np.inf)
        n_best = max(1, round(share * is_ranked.sum()))
        best = np.argsort(-log_return, kind="stable")[:n_best]
        bought = best[log_return[best] > 0]
        if len(bought):
            weights[t : t + rebalance_bars, bought] = 1.0 / len(bought)
    return weights
