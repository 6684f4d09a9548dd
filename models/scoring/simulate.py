"""Simulated equity of target weights, bar by bar, after costs and funding.

Glossary: t bars, n assets, d sessions, w weight (value of a position ÷ equity).

Orders. A decision made at the close of bar t is filled at the open of bar t + 1. A position is a fractional number of
units. Its value at the fill is the target weight times the equity at that open, before costs; then its weight drifts
with prices. An asset without a bar cannot trade: it is valued at its last price, and its order waits for its next bar.
An asset that never trades again stays in the portfolio at its last price.

Cash. Costs are a fraction of the traded notional and are paid at the fill. Funding that is settled in (open, close] of
a bar is paid at that bar's close on the units held then. So a position that is decided at the instant of a settlement
does not pay it: it is filled at the next open. Longs pay a positive rate, shorts receive it. Cash earns no interest.
Equity that reaches zero stays zero.

No value at or before bar t depends on a bar after t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from models.scoring.costs import Costs
from models.scoring.metrics import drawdowns


@dataclass(frozen=True, eq=False)
class Simulation:
    """The simulated portfolio, one value per bar, each (t,). All values are 0 from the bar on that ruins the portfolio.

    ``equity``: at the close, in units of the starting equity. ``gross_exposure`` Σ|w| and ``net_exposure`` Σw: at the
    close. ``turnover``: traded notional, both sides counted, as a fraction of the equity at the bar's open. ``cost``:
    also a fraction of that equity, ≥ 0. ``funding``: received (+) or paid (−), as a fraction of the equity at the close
    before funding. ``is_flat`` bool: the drawdown limit replaced the bar's decision by an all-cash portfolio.
    """

    equity: np.ndarray
    gross_exposure: np.ndarray
    net_exposure: np.ndarray
    turnover: np.ndarray
    cost: np.ndarray
    funding: np.ndarray
    is_flat: np.ndarray


def simulate(
    open_prices: np.ndarray,
    close_prices: np.ndarray,
    target: np.ndarray,
    *,
    costs: Costs,
    funding: np.ndarray | None = None,
    drawdown_trigger: float | None = None,
    cooldown_bars: int = 0,
) -> Simulation:
    """The portfolio that follows ``target`` (t, n): the weights decided at each close, all NaN without a decision.

    ``open_prices`` and ``close_prices`` (t, n) are adjusted prices, both NaN where an asset has no bar. ``funding``
    (t, n) is the sum of the rates settled in each bar. NaN or None charges nothing: the caller must report unknown
    rates.

    ``drawdown_trigger`` is a fraction of the peak equity, None for no limit. A close at least that far below the peak
    starts a cooldown: the decisions of this bar and of the following ``cooldown_bars`` − 1 bars are replaced by cash.
    Then the peak is reset to the equity at that time.

    Raises ValueError for shapes that differ, for an open without a close or the reverse, and for a decision that is NaN
    for some assets only.
    """
    rates = np.zeros((0, close_prices.shape[1]))
    if funding is not None:
        rates = np.ascontiguousarray(funding, dtype=np.float64)
    is_same_shape = open_prices.shape == close_prices.shape == target.shape
    if not is_same_shape or (len(rates) and rates.shape != close_prices.shape):
        raise ValueError(
            f"shapes differ: opens {open_prices.shape}, closes {close_prices.shape}, target {target.shape}"
        )
    n_bars = len(close_prices)
    values = np.zeros((6, n_bars))
    is_flat = np.zeros(n_bars, dtype=np.bool_)
    faulty_bar = _run(
        np.ascontiguousarray(open_prices, dtype=np.float64),
        np.ascontiguousarray(close_prices, dtype=np.float64),
        np.ascontiguousarray(target, dtype=np.float64),
        rates,
        costs.rate,
        drawdown_trigger or 0.0,
        cooldown_bars,
        values,
        is_flat,
    )
    if faulty_bar >= 0:
        raise ValueError(
            f"bar {faulty_bar}: an asset has an open without a close, or a decision with NaN for some assets"
        )
    equity, gross_exposure, net_exposure, turnover, cost, received = values
    return Simulation(equity, gross_exposure, net_exposure, turnover, cost, received, is_flat)


@dataclass(frozen=True, eq=False)
class SessionResults:
    """A simulation aggregated by session, one value per session, each (d,).

    ``equity``, ``gross_exposure`` and ``net_exposure``: at the close of the session's last bar. ``turnover``, ``cost``
    and ``funding``: the sums over the session's bars. ``returns``: simple return of the equity since the session
    before, for the first session since the start. ``drawdown``: fraction below the highest session-end equity so far,
    ≤ 0.
    """

    equity: np.ndarray
    returns: np.ndarray
    drawdown: np.ndarray
    gross_exposure: np.ndarray
    net_exposure: np.ndarray
    turnover: np.ndarray
    cost: np.ndarray
    funding: np.ndarray


def aggregate_by_session(simulation: Simulation, last_bars: np.ndarray) -> SessionResults:
    """The simulation by session; ``last_bars`` (d,) are the positions of the sessions' last bars, ascending.

    The bars after the last session's end are ignored.
    """
    stop = last_bars[-1] + 1
    first_bars = np.concatenate(([0], last_bars[:-1] + 1))
    equity = simulation.equity[last_bars]
    previous_equity = np.concatenate(([1.0], equity[:-1]))
    growth = np.divide(equity, previous_equity, out=np.ones_like(equity), where=previous_equity > 0)
    return SessionResults(
        equity=equity,
        returns=growth - 1.0,
        drawdown=drawdowns(equity),
        gross_exposure=simulation.gross_exposure[last_bars],
        net_exposure=simulation.net_exposure[last_bars],
        turnover=np.add.reduceat(simulation.turnover[:stop], first_bars),
        cost=np.add.reduceat(simulation.cost[:stop], first_bars),
        funding=np.add.reduceat(simulation.funding[:stop], first_bars),
    )


@njit(cache=True)
def _run(open_prices, close_prices, target, rates, cost_rate, trigger, cooldown_bars, values, is_flat):
    """Fills ``values`` (6, t) and ``is_flat`` (t,); returns the first faulty bar, or −1 if there is none.

    The rows of ``values`` are equity, gross exposure, net exposure, turnover, cost and funding. They stay 0 from the
    bar on at which the equity is not positive. ``decision_bar`` is the bar whose targets the waiting orders follow, −1
    for orders to sell everything. ``cooldown_end`` is the first bar after a cooldown. ``x == x`` is False only for NaN.
    """
    n_bars, n_assets = close_prices.shape
    units = np.zeros(n_assets)
    last_price = np.zeros(n_assets)
    has_order = np.zeros(n_assets, dtype=np.bool_)
    n_orders = 0
    decision_bar = -1
    cash = 1.0
    peak_equity = 1.0
    cooldown_end = 0
    for t in range(n_bars):
        open_equity = cash
        for i in range(n_assets):
            price = open_prices[t, i]
            if price == price:
                last_price[i] = price
            open_equity += units[i] * last_price[i]
        if open_equity <= 0.0:
            return -1
        traded = 0.0
        if n_orders > 0:
            for i in range(n_assets):
                if has_order[i] and open_prices[t, i] == open_prices[t, i]:
                    target_units = target[decision_bar, i] * open_equity / last_price[i] if decision_bar >= 0 else 0.0
                    bought = (target_units - units[i]) * last_price[i]  # negative for a sale
                    traded += abs(bought)
                    cash -= bought
                    units[i] = target_units
                    has_order[i] = False
                    n_orders -= 1
            cash -= cost_rate * traded
        net_value = 0.0
        gross_value = 0.0
        received = 0.0
        for i in range(n_assets):
            price = close_prices[t, i]
            if (price == price) != (open_prices[t, i] == open_prices[t, i]):
                return t
            if price == price:
                last_price[i] = price
            value = units[i] * last_price[i]
            net_value += value
            gross_value += abs(value)
            if len(rates) > 0 and rates[t, i] == rates[t, i]:
                received -= value * rates[t, i]
        equity_before_funding = cash + net_value
        cash += received
        equity = cash + net_value
        if equity <= 0.0:
            return -1
        values[0, t] = equity
        values[1, t] = gross_value / equity
        values[2, t] = net_value / equity
        values[3, t] = traded / open_equity
        values[4, t] = cost_rate * traded / open_equity
        values[5, t] = received / equity_before_funding
        if t == cooldown_end:
            peak_equity = equity
        peak_equity = max(peak_equity, equity)
        if trigger > 0.0 and t >= cooldown_end and equity <= peak_equity * (1.0 - trigger):
            cooldown_end = t + cooldown_bars
        if t < cooldown_end:
            decision_bar = -1
            n_orders = n_assets
            is_flat[t] = True
            has_order[:] = True
        elif target[t, 0] == target[t, 0]:
            for i in range(n_assets):
                if target[t, i] != target[t, i]:
                    return t
            decision_bar = t
            n_orders = n_assets
            has_order[:] = True
    return -1
