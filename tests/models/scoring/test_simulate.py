"""Simulated equity equals numbers computed by hand and the result of a plain loop.

Tests TRAP-03 (ids: .github/sources.md): fees are paid, and a decision is never filled in its own bar.

Series of one asset list one price or target weight per bar; the first bar is bar 0.
"""

from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.scoring.costs import Costs
from models.scoring.simulate import Simulation, aggregate_by_session, simulate

NO_COSTS = Costs()
NAN = np.nan


class RandomMarket(NamedTuple):
    """The arguments of ``simulate``, each (t, n)."""

    open_prices: np.ndarray
    close_prices: np.ndarray
    target: np.ndarray
    funding: np.ndarray


def one_asset(*values: float) -> np.ndarray:
    """The values of a single asset, one per bar, (t, 1)."""
    return np.array(values, dtype=float)[:, None]


def equity_by_plain_loop(market: RandomMarket, cost_rate: float) -> np.ndarray:
    """Equity at each close, (t,), by the rules of the simulation in a plain loop, with positions in a dictionary."""
    open_prices, close_prices, target, funding = market
    cash = 1.0
    units = {}
    price = {}
    orders = {}
    equity = []
    for t in range(len(close_prices)):
        traded_assets = [i for i in range(close_prices.shape[1]) if not np.isnan(open_prices[t, i])]
        price.update({i: open_prices[t, i] for i in traded_assets})
        open_equity = cash + sum(units[i] * price[i] for i in units)
        for i in [i for i in traded_assets if i in orders]:
            target_units = orders.pop(i) * open_equity / price[i]
            bought = (target_units - units.get(i, 0.0)) * price[i]
            cash -= bought + cost_rate * abs(bought)
            units[i] = target_units
        price.update({i: close_prices[t, i] for i in traded_assets})
        for i in units:
            if not np.isnan(funding[t, i]):
                cash -= units[i] * price[i] * funding[t, i]
        equity.append(cash + sum(units[i] * price[i] for i in units))
        if not np.isnan(target[t, 0]):
            orders = dict(enumerate(target[t]))
    return np.array(equity)


@st.composite
def markets(draw: st.DrawFn, min_bars: int = 2) -> RandomMarket:
    """A market of random prices with missing bars, bars without a decision, and unknown funding rates."""
    t = draw(st.integers(min_bars, 30))
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    close_prices = 100 * np.exp(np.cumsum(rng.normal(0, 0.03, (t, n)), axis=0))
    open_prices = close_prices * np.exp(rng.normal(0, 0.01, (t, n)))
    is_missing = rng.random((t, n)) < 0.2
    open_prices[is_missing] = NAN
    close_prices[is_missing] = NAN
    target = rng.uniform(-1, 1, (t, n)) / n
    target[rng.random(t) < 0.3] = NAN
    funding = np.where(rng.random((t, n)) < 0.3, rng.normal(0, 1e-3, (t, n)), NAN)
    return RandomMarket(open_prices, close_prices, target, funding)


@given(market=markets(), bps=st.floats(0, 50))
def test_equity_equals_the_equity_of_a_plain_loop(market: RandomMarket, bps: float) -> None:
    costs = Costs.from_bps(bps, 0)
    simulation = simulate(market.open_prices, market.close_prices, market.target, costs=costs, funding=market.funding)
    np.testing.assert_allclose(simulation.equity, equity_by_plain_loop(market, bps * 1e-4), rtol=1e-12)


def test_equity_turnover_cost_and_exposure_of_a_purchase_and_a_sale() -> None:
    """MAM-25, HYB-28: bought and sold again, with commission and slippage."""
    # decided at bar 0's close; bought at bar 1's open of 100, at costs of 1 %; worth 110 at its close; decided again at
    # bar 2's close; sold at bar 3's open of 120, at costs of 1 % of 1.2
    open_prices = one_asset(90, 100, 112, 120)
    close_prices = one_asset(95, 110, 115, 90)
    simulation = simulate(open_prices, close_prices, one_asset(1.0, NAN, 0.0, NAN), costs=Costs(0.007, 0.003))
    np.testing.assert_allclose(simulation.equity, [1.0, 1.1 - 0.01, 1.15 - 0.01, 1.2 - 0.01 - 0.012])
    np.testing.assert_allclose(simulation.turnover, [0, 1, 0, 1.2 / 1.19])
    np.testing.assert_allclose(simulation.cost, [0, 0.01, 0, 0.012 / 1.19])
    np.testing.assert_allclose(simulation.gross_exposure, [0, 1.1 / 1.09, 1.15 / 1.14, 0])


def test_a_short_earns_what_the_price_loses() -> None:
    # sold at 100 for half of the equity; the closes of 90 and 70 are gains of 10 % and 30 % on that half
    simulation = simulate(one_asset(50, 100, 80), one_asset(50, 90, 70), one_asset(-0.5, NAN, NAN), costs=NO_COSTS)
    np.testing.assert_allclose(simulation.equity, [1.0, 1.05, 1.15])
    assert simulation.net_exposure[2] == pytest.approx(-0.5 * 0.7 / 1.15)


def test_a_decision_is_never_filled_in_its_own_bar() -> None:
    # the price jumps inside the bar of the decision and between its close and the next open: neither jump is earned
    open_prices = one_asset(100, 200, 200)
    close_prices = one_asset(150, 200, 200)
    simulation = simulate(open_prices, close_prices, one_asset(1.0, NAN, NAN), costs=NO_COSTS)
    assert simulation.equity.tolist() == [1.0, 1.0, 1.0]


def test_weights_drift_between_decisions() -> None:
    open_prices = close_prices = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    target = np.array([[0.5, 0.5], [NAN, NAN], [NAN, NAN]])
    simulation = simulate(open_prices, close_prices, target, costs=NO_COSTS)
    assert simulation.equity[2] == 1.5
    assert simulation.turnover.tolist() == [0, 1, 0]


@given(market=markets())
def test_zero_weights_leave_equity_at_exactly_one(market: RandomMarket) -> None:
    open_prices, close_prices, target, funding = market
    zero_target = np.where(np.isnan(target), NAN, 0.0)
    simulation = simulate(open_prices, close_prices, zero_target, costs=Costs(0.01, 0.01), funding=funding)
    assert (simulation.equity == 1.0).all()
    assert not simulation.turnover.any()


@given(market=markets(), bps=st.floats(0, 20), extra_bps=st.floats(1, 20))
def test_higher_costs_lower_equity_from_the_first_fill_on(market: RandomMarket, bps: float, extra_bps: float) -> None:
    prices_and_target = (market.open_prices, market.close_prices, market.target)
    low_costs = Costs.from_bps(bps, 0)
    high_costs = Costs.from_bps(bps + extra_bps, 0)
    cheap = simulate(*prices_and_target, costs=low_costs, funding=market.funding)
    expensive = simulate(*prices_and_target, costs=high_costs, funding=market.funding)
    has_traded = np.cumsum(cheap.turnover) > 0
    assert (expensive.equity[has_traded] < cheap.equity[has_traded]).all()
    assert (expensive.equity[~has_traded] == cheap.equity[~has_traded]).all()


@pytest.mark.parametrize(("weight", "expected_equity"), [(0.5, 1 - 0.5 * 0.01), (-0.5, 1 + 0.5 * 0.01)])
def test_longs_pay_a_positive_funding_rate_and_shorts_receive_it(weight: float, expected_equity: float) -> None:
    prices = one_asset(100, 100, 100)
    simulation = simulate(
        prices, prices, one_asset(weight, NAN, NAN), costs=NO_COSTS, funding=one_asset(NAN, NAN, 0.01)
    )
    assert simulation.equity[2] == pytest.approx(expected_equity)
    assert simulation.funding[2] == pytest.approx(expected_equity - 1)


def test_a_position_opened_at_a_settlement_does_not_pay_it() -> None:
    # bar 0 ends at the instant at which bar 1 opens: the rate of bar 0 settles at the open that fills the order
    prices = one_asset(100, 100, 100)
    simulation = simulate(prices, prices, one_asset(1.0, NAN, NAN), costs=NO_COSTS, funding=one_asset(0.01, NAN, NAN))
    assert (simulation.equity == 1.0).all()


def test_a_position_closed_at_a_settlement_pays_it() -> None:
    prices = one_asset(100, 100, 100)
    simulation = simulate(prices, prices, one_asset(1.0, 0.0, NAN), costs=NO_COSTS, funding=one_asset(NAN, 0.01, NAN))
    np.testing.assert_allclose(simulation.equity, [1.0, 0.99, 0.99])


def test_an_asset_without_a_bar_keeps_its_last_price_and_its_order_waits() -> None:
    # the second asset is ordered at bar 0's close, has no bar 1, is bought in bar 2 at 20 and stays at 40 in bar 4
    open_prices = close_prices = np.array([[10.0, 10.0], [10.0, NAN], [10.0, 20.0], [10.0, 40.0], [10.0, NAN]])
    target = np.full((5, 2), NAN)
    target[0] = [0.0, 0.5]
    simulation = simulate(open_prices, close_prices, target, costs=NO_COSTS)
    np.testing.assert_allclose(simulation.equity, [1, 1, 1, 1.5, 1.5])
    assert simulation.turnover.tolist() == [0, 0, 0.5, 0, 0]


def test_an_asset_that_never_trades_again_stays_at_its_last_price() -> None:
    # bought at 10 at costs of 1 %, then doubled; the sale ordered at bar 2's close is never filled
    open_prices = close_prices = one_asset(10, 10, 20, NAN, NAN)
    simulation = simulate(open_prices, close_prices, one_asset(1.0, NAN, 0.0, 0.0, 0.0), costs=Costs(0.01))
    np.testing.assert_allclose(simulation.equity[2:], 2 - 0.01)


@settings(max_examples=50)
@given(market=markets(min_bars=3), data=st.data())
def test_later_bars_change_no_earlier_value(market: RandomMarket, data: st.DataObject) -> None:
    first_changed = data.draw(st.integers(1, len(market.close_prices) - 1))
    changed_market = RandomMarket(*(array.copy() for array in market))
    changed_market.open_prices[first_changed:] *= 3.0
    changed_market.close_prices[first_changed:] *= 3.0
    changed_market.target[first_changed:] = 0.1
    changed_market.funding[first_changed:] = 0.05
    truncated_market = RandomMarket(*(array[:first_changed] for array in market))

    def simulate_market(market: RandomMarket) -> Simulation:
        return simulate(
            market.open_prices,
            market.close_prices,
            market.target,
            costs=Costs(0.001),
            funding=market.funding,
            drawdown_trigger=0.05,
            cooldown_bars=3,
        )

    whole = simulate_market(market)
    changed = simulate_market(changed_market)
    truncated = simulate_market(truncated_market)
    for field in fields(Simulation):
        before = getattr(whole, field.name)[:first_changed]
        assert (before == getattr(changed, field.name)[:first_changed]).all()
        assert (before == getattr(truncated, field.name)).all()


def test_after_a_drawdown_the_portfolio_is_cash_until_the_cooldown_ends() -> None:
    # bought at 100; the close of 89 in bar 2 is more than 10 % below the peak, so bars 2 and 3 decide on cash; sold at
    # the open of 88 in bar 3; bar 4 decides to buy again; bought at the open of 44 in bar 5
    prices = one_asset(100, 100, 89, 88, 44, 44, 88, 88)
    simulation = simulate(prices, prices, np.ones((8, 1)), costs=NO_COSTS, drawdown_trigger=0.10, cooldown_bars=2)
    np.testing.assert_allclose(simulation.equity, [1, 1, 0.89, 0.88, 0.88, 0.88, 1.76, 1.76])
    assert simulation.is_flat.tolist() == [False, False, True, True, False, False, False, False]


def test_the_peak_is_reset_after_a_cooldown() -> None:
    # invested again with an equity of 0.88: a fall to 0.80 is less than 10 % below this new peak, not below the old 1.0
    prices = one_asset(100, 100, 89, 88, 88, 88, 80, 80)
    simulation = simulate(prices, prices, np.ones((8, 1)), costs=NO_COSTS, drawdown_trigger=0.10, cooldown_bars=2)
    assert simulation.equity[6] == pytest.approx(0.80)
    assert not simulation.is_flat[4:].any()


def test_after_a_drawdown_between_decisions_the_portfolio_is_sold_at_the_next_open() -> None:
    prices = one_asset(100, 100, 80, 80, 40, 40)
    simulation = simulate(
        prices, prices, one_asset(1, NAN, NAN, NAN, NAN, NAN), costs=NO_COSTS, drawdown_trigger=0.1, cooldown_bars=9
    )
    np.testing.assert_allclose(simulation.equity[2:], 0.8)


def test_equity_stays_zero_after_everything_is_lost() -> None:
    prices = one_asset(100, 100, 250, 10)
    simulation = simulate(prices, prices, one_asset(-1, NAN, NAN, NAN), costs=NO_COSTS)
    assert simulation.equity.tolist() == [1, 1, 0, 0]


def test_a_decision_with_nan_for_some_assets_is_refused() -> None:
    prices = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"bar 1: .*decision"):
        simulate(prices, prices, np.array([[0, 0], [0.5, NAN], [0, 0]]), costs=NO_COSTS)


def test_an_open_without_a_close_is_refused() -> None:
    with pytest.raises(ValueError, match="bar 1"):
        simulate(one_asset(1, 1, 1), one_asset(1, NAN, 1), one_asset(0, 0, 0), costs=NO_COSTS)


def test_negative_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Costs.from_bps(-1, 0)


def test_a_session_has_the_equity_of_its_last_bar_and_the_turnover_of_all_its_bars() -> None:
    open_prices = one_asset(90, 100, 112, 120, 90, 90)
    close_prices = one_asset(95, 110, 115, 90, 90, 90)
    simulation = simulate(open_prices, close_prices, one_asset(1.0, NAN, 0.0, NAN, NAN, NAN), costs=Costs(0.01))
    last_bars = np.array([0, 2, 4])
    sessions = aggregate_by_session(simulation, last_bars)
    equity_held = 1.15 - 0.01  # bought at 100 at costs of 1 %, worth 115 at the close of bar 2
    equity_sold = 1.2 - 0.01 - 0.012  # sold at 120 at costs of 1 % of 1.2
    np.testing.assert_allclose(sessions.equity, simulation.equity[last_bars])
    np.testing.assert_allclose(sessions.equity, [1, equity_held, equity_sold])
    np.testing.assert_allclose(sessions.returns, [0, equity_held - 1, equity_sold / equity_held - 1])
    np.testing.assert_allclose(sessions.turnover, [0, 1, 1.2 / 1.19])
    assert sessions.drawdown.tolist() == [0, 0, 0]
