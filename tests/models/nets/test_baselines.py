"""Trading rules give hand-computed weights, and none of them reads later bars (HYB-30; ids: .github/sources.md).

Glossary: t bars · n assets.
"""

from collections.abc import Callable

import numpy as np
import pytest

from models.nets.baselines import buy_and_hold, equal_weight, momentum
from models.panel import Panel
from models.zoo import ENTRIES, TradingRule

RULES = {name: entry.compute_weights for name, entry in ENTRIES.items() if isinstance(entry, TradingRule)}


def make_panel(total_return: np.ndarray, mask: np.ndarray | None = None) -> Panel:
    """Daily bars with these total returns (t, n); ``mask`` (t, n) is False at missing bars, None where all exist."""
    t, n = total_return.shape
    mask = np.ones((t, n), dtype=bool) if mask is None else mask
    ts = np.datetime64("2024-01-01", "us") + np.arange(t) * np.timedelta64(1, "D")
    values = np.where(mask, total_return, np.nan)[:, :, None]
    return Panel(ts, tuple("ABCDEFGH"[:n]), ("total_return",), values, mask)


def test_equal_weight_divides_the_weight_among_the_assets_that_have_the_bar() -> None:
    mask = np.array([[True, True, False], [True, True, True], [False, False, False]])
    weights = equal_weight(make_panel(np.zeros((3, 3)), mask))
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]])


def test_buy_and_hold_holds_the_benchmark_through_a_missed_bar() -> None:
    weights = buy_and_hold(make_panel(np.zeros((4, 1)), np.array([[False], [True], [False], [True]])))
    assert weights[:, 0].tolist() == [0, 1, 1, 1]
    entry = ENTRIES["buy_and_hold"]
    assert isinstance(entry, TradingRule) and entry.benchmark_only


def test_momentum_buys_the_assets_with_the_highest_returns_and_holds_them_until_the_next_selection() -> None:
    """Lookback 4, skip 1: bar 4 ranks by the return over bars 1 to 3, bar 6 by the return over bars 3 to 5. Two of the
    four assets can be bought; at bar 6 only the last asset has a positive return."""
    returns = np.zeros((8, 4))
    returns[2] = [0.05, 0.10, -0.10, 0.01]
    returns[4, 3] = 0.20
    returns[5, 0] = -0.50
    weights = momentum(make_panel(returns), lookback_bars=4, skip_bars=1, rebalance_bars=2, share=0.5)
    assert weights[:4].tolist() == [[0, 0, 0, 0]] * 4
    assert weights[4:6].tolist() == [[0.5, 0.5, 0, 0]] * 2
    assert weights[6:].tolist() == [[0, 0, 0, 1.0]] * 2


def test_momentum_ignores_the_skipped_bars() -> None:
    returns = np.zeros((5, 2))
    returns[2] = [0.01, 0.02]
    returns[4] = [0.50, -0.50]
    weights = momentum(make_panel(returns), lookback_bars=4, skip_bars=1, rebalance_bars=4, share=0.5)
    assert weights[4].tolist() == [0, 1]


def test_momentum_ranks_only_assets_with_a_bar_at_both_ends_of_the_window() -> None:
    returns = np.zeros((5, 3))
    mask = np.ones((5, 3), dtype=bool)
    returns[2] = [0.3, 0.2, 0.1]
    mask[0, 0] = False
    mask[4, 1] = False
    weights = momentum(make_panel(returns, mask), lookback_bars=4, skip_bars=1, rebalance_bars=4, share=0.5)
    assert weights[4].tolist() == [0, 0, 1]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("bar", [1, 140, 299])
def test_later_bars_change_no_weight(rule: Callable[[Panel], np.ndarray], bar: int) -> None:
    rng = np.random.default_rng(0)
    returns = rng.normal(0, 0.02, (300, 6))
    mask = rng.random((300, 6)) < 0.95
    whole = make_panel(returns, mask)
    truncated = make_panel(returns[:bar], mask[:bar])
    np.testing.assert_array_equal(rule(whole)[:bar], rule(truncated))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_weights_are_positive_and_sum_to_at_most_one(rule: Callable[[Panel], np.ndarray]) -> None:
    weights = rule(make_panel(np.random.default_rng(0).normal(0, 0.02, (300, 6))))
    assert (weights >= 0).all() and (weights.sum(axis=1) <= 1 + 1e-12).all()
    assert weights[-1].sum() == pytest.approx(1.0)
