"""What target weights would have earned, bar by bar, after costs and funding.

Glossary: t bars, n assets, d sessions.
A decision made at the close of bar t is filled at the open of bar t + 1 (never at the price it was decided on) and
then drifts: a position is a number of fractional units, sized as its weight times the equity at the fill's open and
before its costs. Costs are a fraction of the traded notional, paid in cash at the fill. Funding settled in
(open, close] of a bar is paid on the units held in that bar at its close: a position opened at the very instant of a
settlement is filled at the next bar's open and does not pay it. Longs pay a positive rate, shorts receive it.
Where an asset has no bar it cannot trade: it is marked at its last price, its order waits for its next bar, and one
that never trades again stays in the book at its last price to the panel's end. Cash earns nothing. Equity that reaches
zero ends there. Nothing at or before bar t depends on a bar after t.
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
    ``flat`` is True where the drawdown limit overrode the bar's decision with an empty book.
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
    """The path of equity under ``target`` (t, n): weights decided at each close, a row of NaN where none is decided.

    ``opens`` and ``closes`` (t, n) adjusted prices, both NaN where an asset has no bar. ``funding`` (t, n) sum of the
    rates settled in the bar; NaN or None charges nothing (unknown is the caller's to report). With
    ``drawdown_trigger``, a close that far below the peak empties the book for ``cooldown_bars`` bars, after which the
    peak starts anew at the equity of that moment. Raises ValueError for shapes that differ, a price without its twin,
    or a decision with holes.
    """
    rates = np.zeros((0, closes.shape[1])) if funding is None else np.ascontiguousarray(funding, dtype=np.float64)
    if not opens.shape == closes.shape == target.shape or (len(rates) and rates.shape != closes.shape):
        raise ValueError(f"shapes differ: opens {opens.shape}, closes {closes.shape}, target {target.shape}")
    opens, closes, target = (np.ascontiguousarray(a, dtype=np.float64) for a in (opens, closes, target))
    path, flat = np.zeros((6, len(closes))), np.zeros(len(closes), dtype=np.bool_)
    fault = _run(opens, closes, target, rates, costs.rate, drawdown_trigger or 0.0, cooldown_bars, path, flat)
    if fault >= 0:
        raise ValueError(f"bar {fault}: an asset has an open without a close, or a decision with NaN for some assets")
    equity, gross, net, turnover, cost, received = path
    return Simulation(equity, gross, net, turnover, cost, received, flat)


@dataclass(frozen=True, eq=False)
class Sessions:
    """A simulation by session, each (d,): marks at the session's last bar, flows summed over the session's bars.

    ``returns`` of the first session is its equity over the starting one; ``drawdown`` ≤ 0 from the highest mark so far.
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
    """Sessions ending at ``last_bars`` (d,), ascending bar positions; bars after the last of them are left out."""
    starts = np.concatenate(([0], last_bars[:-1] + 1))
    flows = (np.add.reduceat(f[: last_bars[-1] + 1], starts) for f in (path.turnover, path.cost, path.funding))
    equity = path.equity[last_bars]
    before = np.concatenate(([1.0], equity[:-1]))
    returns = np.divide(equity, before, out=np.ones_like(equity), where=before > 0) - 1.0
    return Sessions(equity, returns, drawdowns(equity), path.gross[last_bars], path.net[last_bars], *flows)


@njit(cache=True)
def _run(opens, closes, target, rates, cost_rate, trigger, cooldown, path, flat):
    """Fills ``path`` (equity, gross, net, turnover, cost, funding) and ``flat``; the first faulty bar, or −1."""
    bars, assets = closes.shape
    units, last = np.zeros(assets), np.zeros(assets)
    waiting = np.zeros(assets, dtype=np.bool_)
    cash, peak = 1.0, 1.0
    decided, orders, resume = -1, 0, 0
    for t in range(bars):
        worth = cash
        for i in range(assets):
            price = opens[t, i]
            if price == price:
                last[i] = price
            worth += units[i] * last[i]
        if worth <= 0.0:
            return -1
        traded = 0.0
        if orders > 0:
            for i in range(assets):
                if waiting[i] and opens[t, i] == opens[t, i]:
                    wanted = target[decided, i] * worth / last[i] if decided >= 0 else 0.0
                    change = (wanted - units[i]) * last[i]
                    traded += abs(change)
                    cash -= change
                    units[i] = wanted
                    waiting[i] = False
                    orders -= 1
            cash -= cost_rate * traded
        held, gross, received = 0.0, 0.0, 0.0
        for i in range(assets):
            price = closes[t, i]
            if (price == price) != (opens[t, i] == opens[t, i]):
                return t
            if price == price:
                last[i] = price
            value = units[i] * last[i]
            held += value
            gross += abs(value)
            if len(rates) > 0 and rates[t, i] == rates[t, i]:
                received -= value * rates[t, i]
        before = cash + held
        cash += received
        equity = cash + held
        if equity <= 0.0:
            return -1
        path[0, t], path[1, t], path[2, t] = equity, gross / equity, held / equity
        path[3, t], path[4, t], path[5, t] = traded / worth, cost_rate * traded / worth, received / before
        if t == resume:
            peak = equity
        peak = max(peak, equity)
        if trigger > 0.0 and t >= resume and equity <= peak * (1.0 - trigger):
            resume = t + cooldown
        if t < resume:
            decided, orders, flat[t] = -1, assets, True
            waiting[:] = True
        elif target[t, 0] == target[t, 0]:
            for i in range(assets):
                if target[t, i] != target[t, i]:
                    return t
            decided, orders = t, assets
            waiting[:] = True
    return -1
