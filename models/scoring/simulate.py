"""Simulated equity of target weights, bar by bar, after costs and funding.

Glossary: t bars, n assets, d sessions.
A decision made at the close of bar t is filled at the open of bar t + 1, never at the price it was decided on. A
position is a number of fractional units, sized as its weight times the equity at the fill's open and before its costs;
its weight then drifts with prices. Costs are a fraction of the traded notional, paid in cash at the fill. Funding
settled in (open, close] of a bar is paid on the units held in that bar, at its close: a position decided at the instant
of a settlement is filled at the next bar's open and does not pay it. Longs pay a positive rate, shorts receive it.
An asset without a bar cannot trade: it is marked at its last price, and its order waits for its next bar. An asset that
never trades again stays in the portfolio at its last price to the panel's end. Cash earns nothing. Equity that reaches
zero stays zero. No value at or before bar t depends on a bar after t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from models.scoring.costs import Costs
from models.scoring.metrics import drawdowns


@dataclass(frozen=True, eq=False)
class Simulation:
    """One row per bar, each (t,). ``equity`` at the close, in units of the starting equity.

    ``gross`` and ``net`` are Σ|w| and Σw at the close. ``turnover`` Σ|traded| and ``cost`` are fractions of the equity
    at the bar's open; ``funding`` is received (+) or paid (−), a fraction of the equity at the close before it.
    ``flat`` is True where the drawdown limit replaced the bar's decision by an all-cash portfolio.
    """

    equity: np.ndarray
    gross: np.ndarray
    net: np.ndarray
    turnover: np.ndarray
    cost: np.ndarray
    funding: np.ndarray
    flat: np.ndarray


def simulate(
    opens: np.ndarray,
    closes: np.ndarray,
    target: np.ndarray,
    *,
    costs: Costs,
    funding: np.ndarray | None = None,
    drawdown_trigger: float | None = None,
    cooldown_bars: int = 0,
) -> Simulation:
    """The simulation of ``target`` (t, n): the weights decided at each close, a row of NaN where none are decided.

    ``opens`` and ``closes`` (t, n) adjusted prices, both NaN where an asset has no bar. ``funding`` (t, n) sum of the
    rates settled in the bar; NaN or None charges nothing (the caller must report unknown rates). With
    ``drawdown_trigger``, a close that far below the peak moves the portfolio to cash for ``cooldown_bars`` bars; after
    them the peak is reset to the equity at that time. Raises ValueError for shapes that differ, an open without a close
    or the reverse, or a decision with NaN for some assets.
    """
    rates = np.zeros((0, closes.shape[1])) if funding is None else np.ascontiguousarray(funding, dtype=np.float64)
    if not opens.shape == closes.shape == target.shape or (len(rates) and rates.shape != closes.shape):
        raise ValueError(f"shapes differ: opens {opens.shape}, closes {closes.shape}, target {target.shape}")
    opens, closes, target = (np.ascontiguousarray(a, dtype=np.float64) for a in (opens, closes, target))
    path = np.zeros((6, len(closes)))
    flat = np.zeros(len(closes), dtype=np.bool_)
    faulty_bar = _run(opens, closes, target, rates, costs.rate, drawdown_trigger or 0.0, cooldown_bars, path, flat)
    if faulty_bar >= 0:
        raise ValueError(
            f"bar {faulty_bar}: an asset has an open without a close, or a decision with NaN for some assets"
        )
    equity, gross, net, turnover, cost, received = path
    return Simulation(equity, gross, net, turnover, cost, received, flat)


@dataclass(frozen=True, eq=False)
class Sessions:
    """A simulation by session, each (d,): marks at the session's last bar, flows summed over the session's bars.

    ``returns`` of the first session is relative to the starting equity; ``drawdown`` ≤ 0 is relative to the highest
    mark so far.
    """

    equity: np.ndarray
    returns: np.ndarray
    drawdown: np.ndarray
    gross: np.ndarray
    net: np.ndarray
    turnover: np.ndarray
    cost: np.ndarray
    funding: np.ndarray


def by_session(path: Simulation, last_bars: np.ndarray) -> Sessions:
    """Sessions that end at ``last_bars`` (d,), ascending bar positions; bars after the last of them are ignored."""
    starts = np.concatenate(([0], last_bars[:-1] + 1))
    flows = (np.add.reduceat(f[: last_bars[-1] + 1], starts) for f in (path.turnover, path.cost, path.funding))
    equity = path.equity[last_bars]
    previous = np.concatenate(([1.0], equity[:-1]))
    returns = np.divide(equity, previous, out=np.ones_like(equity), where=previous > 0) - 1.0
    return Sessions(equity, returns, drawdowns(equity), path.gross[last_bars], path.net[last_bars], *flows)


@njit(cache=True)
def _run(opens, closes, target, rates, cost_rate, trigger, cooldown, path, flat):
    """Fills ``path`` (equity, gross, net, turnover, cost, funding) and ``flat``; returns the first faulty bar, or −1.

    ``decided`` is the bar whose targets the waiting orders follow, −1 for cash. ``resume`` is the bar at which a
    cooldown ends. ``x == x`` is False for NaN alone.
    """
    bars, assets = closes.shape
    units = np.zeros(assets)
    last = np.zeros(assets)
    waiting = np.zeros(assets, dtype=np.bool_)
    cash = 1.0
    peak = 1.0
    decided = -1
    orders = 0
    resume = 0
    for t in range(bars):
        open_equity = cash
        for i in range(assets):
            price = opens[t, i]
            if price == price:
                last[i] = price
            open_equity += units[i] * last[i]
        if open_equity <= 0.0:
            return -1
        traded = 0.0
        if orders > 0:
            for i in range(assets):
                if waiting[i] and opens[t, i] == opens[t, i]:
                    target_units = target[decided, i] * open_equity / last[i] if decided >= 0 else 0.0
                    change = (target_units - units[i]) * last[i]
                    traded += abs(change)
                    cash -= change
                    units[i] = target_units
                    waiting[i] = False
                    orders -= 1
            cash -= cost_rate * traded
        net = 0.0
        gross = 0.0
        received = 0.0
        for i in range(assets):
            price = closes[t, i]
            if (price == price) != (opens[t, i] == opens[t, i]):
                return t
            if price == price:
                last[i] = price
            value = units[i] * last[i]
            net += value
            gross += abs(value)
            if len(rates) > 0 and rates[t, i] == rates[t, i]:
                received -= value * rates[t, i]
        equity_before_funding = cash + net
        cash += received
        equity = cash + net
        if equity <= 0.0:
            return -1
        path[0, t] = equity
        path[1, t] = gross / equity
        path[2, t] = net / equity
        path[3, t] = traded / open_equity
        path[4, t] = cost_rate * traded / open_equity
        path[5, t] = received / equity_before_funding
        if t == resume:
            peak = equity
        peak = max(peak, equity)
        if trigger > 0.0 and t >= resume and equity <= peak * (1.0 - trigger):
            resume = t + cooldown
        if t < resume:
            decided = -1
            orders = assets
            flat[t] = True
            waiting[:] = True
        elif target[t, 0] == target[t, 0]:
            for i in range(assets):
                if target[t, i] != target[t, i]:
                    return t
            decided = t
            orders = assets
            waiting[:] = True
    return -1
