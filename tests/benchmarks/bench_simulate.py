"""Speed of the simulation of target weights of 500 assets over 2,500 days, compared with vectorbt; and of nine metrics
of a series of returns, compared with empyrical.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from models.scoring import metrics
from models.scoring.costs import Costs
from models.scoring.simulate import simulate
from tests.benchmarks.contest import contest

pytestmark = pytest.mark.benchmark
BARS = 2500
ASSETS = 500
ROUNDS = 5
COSTS = Costs.from_bps(10, 5)


def random_market() -> tuple[np.ndarray, np.ndarray]:
    """Closing prices (t, n), and daily target weights (t, n) that change slowly and sum to 0.9."""
    rng = np.random.default_rng(0)
    closes = 100 * np.exp(np.cumsum(rng.normal(0.0002, 0.02, (BARS, ASSETS)), axis=0))
    preference = np.exp(np.cumsum(rng.normal(0, 0.02, (BARS, ASSETS)), axis=0))
    return closes, 0.9 * preference / preference.sum(axis=1, keepdims=True)


def test_the_simulation_has_vectorbts_equity_and_its_time_is_reported() -> None:
    closes, weights = random_market()
    opens = np.vstack([closes[:1], closes[:-1]])  # each bar opens at the close before it
    start = time.perf_counter()
    equity = simulate(opens, closes, weights, costs=COSTS).equity
    print(f"\nsimulate: first call {time.perf_counter() - start:.2f} s (loads or compiles the kernel)", end="")
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: simulate(opens, closes, weights, costs=COSTS)}
    try:
        import vectorbt
    except ImportError:
        print("; vectorbt is not installed", end="")
    else:
        # vectorbt fills an order at the close of the bar that decides it; our next open equals that close

        def peer() -> object:
            return vectorbt.Portfolio.from_orders(
                closes,
                weights,
                size_type="targetpercent",
                fees=0.001,
                slippage=0.0005,
                group_by=True,
                cash_sharing=True,
                call_seq="auto",
            )

        value = np.asarray(peer().value())  # type: ignore[attr-defined]
        assert equity[-1] == pytest.approx(value[-1] / value[0], rel=0.005)
        contenders["vectorbt"] = peer
    contest(contenders, ROUNDS).report("simulate 500 x 2500", "ours")


def test_nine_metrics_are_finite_and_their_time_is_reported() -> None:
    returns = np.random.default_rng(1).normal(0.0004, 0.01, BARS)
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: metrics.summary(returns, 252)}
    assert np.isfinite(list(metrics.summary(returns, 252).values())).all()
    try:
        import empyrical
    except ImportError:
        print("\nempyrical is not installed", end="")
    else:

        def peer() -> object:
            return (
                empyrical.sharpe_ratio(returns),
                empyrical.sortino_ratio(returns),
                empyrical.calmar_ratio(returns),
                empyrical.annual_return(returns),
                empyrical.annual_volatility(returns),
                empyrical.max_drawdown(returns),
                empyrical.cum_returns_final(returns),
                empyrical.stability_of_timeseries(returns),
                empyrical.tail_ratio(returns),
            )

        contenders["empyrical"] = peer
    contest(contenders, ROUNDS).report("nine metrics", "ours")
