"""Simulated equity against numbers by hand and a plain loop (TRAP-03: fees are paid, no fill in the deciding bar)."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.scoring.costs import Costs
from models.scoring.simulate import Simulation, by_session, simulate

FREE = Costs()
NAN = np.nan


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def equity_by_plain_loop(opens, closes, target, rate, funding):
    """The simulation's rules as a plain loop over dictionaries: the position of each asset in units."""
    cash = 1.0
    units = {}
    price = {}
    orders = {}
    equity = []
    for t in range(len(closes)):
        trading = [i for i in range(closes.shape[1]) if not np.isnan(opens[t, i])]
        price.update({i: opens[t, i] for i in trading})
        open_equity = cash + sum(units[i] * price[i] for i in units)
        for i in [i for i in trading if i in orders]:
            target_units = orders.pop(i) * open_equity / price[i]
            bought = (target_units - units.get(i, 0.0)) * price[i]
            cash -= bought + rate * abs(bought)
            units[i] = target_units
        price.update({i: closes[t, i] for i in trading})
        for i in units:
            if not np.isnan(funding[t, i]):
                cash -= units[i] * price[i] * funding[t, i]
        equity.append(cash + sum(units[i] * price[i] for i in units))
        if not np.isnan(target[t, 0]):
            orders = dict(enumerate(target[t]))
    return np.array(equity)


@st.composite
def markets(draw, fewest_bars=2):
    """Random prices with missing bars, weights with rows without a decision, and funding with unknown rates."""
    t = draw(st.integers(fewest_bars, 30))
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    closes = 100 * np.exp(np.cumsum(rng.normal(0, 0.03, (t, n)), axis=0))
    opens = closes * np.exp(rng.normal(0, 0.01, (t, n)))
    is_missing = rng.random((t, n)) < 0.2
    opens[is_missing] = NAN
    closes[is_missing] = NAN
    target = rng.uniform(-1, 1, (t, n)) / n
    target[rng.random(t) < 0.3] = NAN
    funding = np.where(rng.random((t, n)) < 0.3, rng.normal(0, 1e-3, (t, n)), NAN)
    return opens, closes, target, funding


@given(market=markets(), bps=st.floats(0, 50))
def test_equity_equals_that_of_a_plain_loop(market, bps):
    opens, closes, target, funding = market
    path = simulate(opens, closes, target, costs=Costs.from_bps(bps, 0), funding=funding)
    expected = equity_by_plain_loop(opens, closes, target, bps * 1e-4, funding)
    np.testing.assert_allclose(path.equity, expected, rtol=1e-12)


def test_one_asset_by_hand():
    """MAM-25, HYB-28: bought and sold again, with commission and slippage."""
    # decided at bar 0's close, bought at bar 1's open of 100 for 1 % of costs, marked at 110, sold at bar 3's 120
    opens = column(90, 100, 112, 120)
    closes = column(95, 110, 115, 90)
    path = simulate(opens, closes, column(1.0, NAN, 0.0, NAN), costs=Costs(0.007, 0.003))
    np.testing.assert_allclose(path.equity, [1.0, 1.1 - 0.01, 1.15 - 0.01, 1.2 - 0.01 - 0.012])
    np.testing.assert_allclose(path.turnover, [0, 1, 0, 1.2 / 1.19])
    np.testing.assert_allclose(path.cost, [0, 0.01, 0, 0.012 / 1.19])
    np.testing.assert_allclose(path.gross, [0, 1.1 / 1.09, 1.15 / 1.14, 0])


def test_a_short_earns_what_the_price_loses():
    path = simulate(column(50, 100, 80), column(50, 90, 70), column(-0.5, NAN, NAN), costs=FREE)
    np.testing.assert_allclose(path.equity, [1.0, 1.05, 1.15])
    assert path.net[2] == pytest.approx(-0.5 * 0.7 / 1.15)


def test_a_decision_is_never_filled_in_its_own_bar():
    # the price jumps inside the deciding bar and between its close and the next open: neither is earned
    opens = column(100, 200, 200)
    closes = column(150, 200, 200)
    assert simulate(opens, closes, column(1.0, NAN, NAN), costs=FREE).equity.tolist() == [1.0, 1.0, 1.0]


def test_weights_drift_between_decisions():
    opens = closes = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    target = np.array([[0.5, 0.5], [NAN, NAN], [NAN, NAN]])
    path = simulate(opens, closes, target, costs=FREE)
    assert path.equity[2] == 1.5
    assert path.turnover.tolist() == [0, 1, 0]


@given(market=markets())
def test_zero_weights_leave_equity_at_exactly_one(market):
    opens, closes, target, funding = market
    path = simulate(opens, closes, np.where(np.isnan(target), NAN, 0.0), costs=Costs(0.01, 0.01), funding=funding)
    assert (path.equity == 1.0).all()
    assert not path.turnover.any()


@given(market=markets(), bps=st.floats(0, 20), extra_bps=st.floats(1, 20))
def test_higher_costs_lower_equity_from_the_first_fill_on(market, bps, extra_bps):
    opens, closes, target, funding = market
    cheap, expensive = (
        simulate(opens, closes, target, costs=Costs.from_bps(b, 0), funding=funding) for b in (bps, bps + extra_bps)
    )
    has_traded = np.cumsum(cheap.turnover) > 0
    assert (expensive.equity[has_traded] < cheap.equity[has_traded]).all()
    assert (expensive.equity[~has_traded] == cheap.equity[~has_traded]).all()


@pytest.mark.parametrize(("weight", "expected"), [(0.5, 1 - 0.5 * 0.01), (-0.5, 1 + 0.5 * 0.01)])
def test_longs_pay_a_positive_funding_rate_and_shorts_receive_it(weight, expected):
    flat = column(100, 100, 100)
    path = simulate(flat, flat, column(weight, NAN, NAN), costs=FREE, funding=column(NAN, NAN, 0.01))
    assert path.equity[2] == pytest.approx(expected)
    assert path.funding[2] == pytest.approx(expected - 1)


def test_a_position_opened_at_a_settlement_does_not_pay_it():
    # bar 0 closes at the instant at which bar 1 opens: the rate of bar 0 settles at the open that fills the order
    flat = column(100, 100, 100)
    path = simulate(flat, flat, column(1.0, NAN, NAN), costs=FREE, funding=column(0.01, NAN, NAN))
    assert (path.equity == 1.0).all()


def test_a_position_closed_at_a_settlement_pays_it():
    flat = column(100, 100, 100)
    path = simulate(flat, flat, column(1.0, 0.0, NAN), costs=FREE, funding=column(NAN, 0.01, NAN))
    np.testing.assert_allclose(path.equity, [1.0, 0.99, 0.99])


def test_an_asset_without_a_bar_keeps_its_last_price_and_its_order_waits():
    opens = closes = np.array([[10.0, 10.0], [10.0, NAN], [10.0, 20.0], [10.0, 40.0], [10.0, NAN]])
    target = np.full((5, 2), NAN)
    target[0] = [0.0, 0.5]
    path = simulate(opens, closes, target, costs=FREE)
    np.testing.assert_allclose(path.equity, [1, 1, 1, 1.5, 1.5])
    assert path.turnover.tolist() == [0, 0, 0.5, 0, 0]


def test_an_asset_that_never_trades_again_stays_at_its_last_price():
    opens = closes = column(10, 10, 20, NAN, NAN)
    path = simulate(opens, closes, column(1.0, NAN, 0.0, 0.0, 0.0), costs=Costs(0.01))
    np.testing.assert_allclose(path.equity[2:], 1.99)


@settings(max_examples=50)
@given(market=markets(fewest_bars=3), data=st.data())
def test_later_bars_change_no_equity_before_them(market, data):
    opens, closes, target, funding = market
    cut = data.draw(st.integers(1, len(closes) - 1))
    changed_market = [array.copy() for array in market]
    for prices in changed_market[:2]:
        prices[cut:] *= 3.0
    changed_market[2][cut:] = 0.1
    changed_market[3][cut:] = 0.05
    options = {"costs": Costs(0.001), "drawdown_trigger": 0.05, "cooldown_bars": 3}
    whole = simulate(opens, closes, target, funding=funding, **options)
    changed = simulate(*changed_market[:3], funding=changed_market[3], **options)
    truncated = simulate(opens[:cut], closes[:cut], target[:cut], funding=funding[:cut], **options)
    for field in fields(Simulation):
        before = getattr(whole, field.name)[:cut]
        assert (before == getattr(changed, field.name)[:cut]).all()
        assert (before == getattr(truncated, field.name)).all()


def test_after_a_drawdown_the_portfolio_is_cash_until_the_cooldown_ends():
    # bought at 100, falls to 89: over 10 % below the peak at bar 2's close, sold at bar 3's open of 88, bought at bar 5
    prices = column(100, 100, 89, 88, 44, 44, 88, 88)
    path = simulate(prices, prices, np.ones((8, 1)), costs=FREE, drawdown_trigger=0.10, cooldown_bars=2)
    np.testing.assert_allclose(path.equity, [1, 1, 0.89, 0.88, 0.88, 0.88, 1.76, 1.76])
    assert path.flat.tolist() == [False, False, True, True, False, False, False, False]


def test_the_peak_is_reset_after_a_cooldown():
    # invested again with 0.88: a fall of less than 10 % from there triggers nothing, although the old peak was 1.0
    prices = column(100, 100, 89, 88, 88, 88, 80, 80)
    path = simulate(prices, prices, np.ones((8, 1)), costs=FREE, drawdown_trigger=0.10, cooldown_bars=2)
    assert path.equity[6] == pytest.approx(0.80)
    assert not path.flat[4:].any()


def test_a_drawdown_between_decisions_is_acted_on_at_the_next_open():
    prices = column(100, 100, 80, 80, 40, 40)
    path = simulate(
        prices, prices, column(1, NAN, NAN, NAN, NAN, NAN), costs=FREE, drawdown_trigger=0.1, cooldown_bars=9
    )
    np.testing.assert_allclose(path.equity[2:], 0.8)


def test_equity_stays_zero_after_everything_is_lost():
    prices = column(100, 100, 250, 10)
    path = simulate(prices, prices, column(-1, NAN, NAN, NAN), costs=FREE)
    assert path.equity.tolist() == [1, 1, 0, 0]


def test_a_decision_with_nan_for_some_assets_is_refused():
    flat = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"bar 1: .*decision"):
        simulate(flat, flat, np.array([[0, 0], [0.5, NAN], [0, 0]]), costs=FREE)


def test_an_open_without_a_close_is_refused():
    with pytest.raises(ValueError, match="bar 1"):
        simulate(column(1, 1, 1), column(1, NAN, 1), column(0, 0, 0), costs=FREE)


def test_negative_costs_are_refused():
    with pytest.raises(ValueError, match="negative"):
        Costs.from_bps(-1, 0)


def test_sessions_sum_flows_and_mark_at_their_last_bar():
    opens = column(90, 100, 112, 120, 90, 90)
    closes = column(95, 110, 115, 90, 90, 90)
    path = simulate(opens, closes, column(1.0, NAN, 0.0, NAN, NAN, NAN), costs=Costs(0.01))
    sessions = by_session(path, np.array([0, 2, 4]))
    np.testing.assert_allclose(sessions.equity, path.equity[[0, 2, 4]])
    np.testing.assert_allclose(sessions.returns, [0, 0.14, path.equity[4] / 1.14 - 1])
    np.testing.assert_allclose(sessions.turnover, [0, 1, 1.2 / 1.19])
    np.testing.assert_allclose(np.prod(1 + sessions.returns), path.equity[4])
    assert sessions.drawdown.tolist() == [0, 0, 0]
