"""Backtests of a night (the run for one as-of date): all models over one out-of-sample window, and their leaderboard.

Glossary: t bars, n assets, d decisions. A decision is made at the close of the bar that ends a session.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from models import zoo
from models.hashing import short_hash
from models.panel import Panel
from models.scoring.costs import Costs
from models.scoring.portfolio import Limits
from models.scoring.simulate import aggregate_by_session, simulate
from models.sessions import bars_per_session
from tasks.forecasts import Contender, load_forecasts, networks
from tasks.leaderboard import FILL, BacktestRun, Row, leaderboard, store_runs
from tasks.night import Night
from tasks.panels import PERPETUAL_CALENDAR
from tasks.portfolio_inputs import (
    Asset,
    PortfolioInputs,
    forecast_weights,
    funding_by_bar,
    funding_coverage,
    load_portfolio_inputs,
    session_bars,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BacktestReport:
    """Numbers of models and of sessions scored, dates of the first and last session, best-ranked model."""

    models: int
    sessions: int
    first_session: date
    last_session: date
    leader: str


@dataclass(frozen=True, eq=False)
class TargetPortfolio:
    """Target portfolio of one model: ``weights`` (d, n) of the n assets of ``asset``, as fractions of equity.

    The d rows are the decisions from the first scored one on; a row of NaN means no order. ``terms`` are the settings,
    such as limits, that tell the portfolio from others of the same model. ``risk_options`` are the arguments of
    ``simulate`` for the drawdown limit.
    """

    contender: Contender
    asset: Asset
    weights: np.ndarray
    terms: Row = field(default_factory=dict)
    risk_options: Row = field(default_factory=dict)


@task(name="run backtests", cache_policy=NO_CACHE, persist_result=False)
def run_backtests(
    night: Night, models: Sequence[Contender], limits: Limits, class_horizon: int, risk_free: float = 0.0
) -> BacktestReport:
    """Simulates ``models`` from the first decision that all networks forecast, and writes the results.

    The results are equity curves, positions, metrics and the leaderboard. The weights of a network are computed from
    its forecasts ``class_horizon`` bars ahead under ``limits``, those of a rule from session returns. Rows of earlier
    nights stay unchanged unless a bar was restated. ``risk_free`` is a rate per year; the default is 0 because cash
    earns nothing in the simulation. Raises NoForecastsError for a network without predictions.
    """
    contenders = [Contender(*fields) for fields in models]
    inputs = load_portfolio_inputs(night)
    forecasts = {c.model: load_forecasts(night, c, class_horizon, inputs.ts) for c in networks(contenders)}
    first_decision = _first_decision(inputs, list(forecasts.values()), limits)
    runs = []
    for contender in contenders:
        if contender.model in forecasts:
            portfolio = _network_portfolio(night, inputs, contender, forecasts[contender.model], limits, first_decision)
            portfolio.terms["class_horizon"] = class_horizon
        else:
            portfolio = _rule_portfolio(inputs, contender, first_decision)
        runs.append(_simulate(night, inputs, portfolio, first_decision))
    board = leaderboard(night, runs, risk_free)
    store_runs(night, runs, board)
    best = board[0]
    report = BacktestReport(len(runs), best["sessions"], best["first_session"], best["last_session"], best["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _first_decision(inputs: PortfolioInputs, forecasts: Sequence[Panel], limits: Limits) -> int:
    """Position in ``inputs.decisions`` of the first decision that every network forecasts.

    Without networks it is the first decision after a correlation window, or the last one if the history is shorter.
    """
    last_decision = len(inputs.decisions) - 1
    if not forecasts:
        return min(limits.correlation_sessions, last_decision)
    first_bar = max(int(f.mask.any(axis=1).argmax()) for f in forecasts)
    return min(int(np.searchsorted(inputs.decisions, first_bar)), last_decision)


def _network_portfolio(
    night: Night, inputs: PortfolioInputs, contender: Contender, forecast: Panel, limits: Limits, first: int
) -> TargetPortfolio:
    """The portfolio of a network's forecast, from decision ``first`` on."""
    cooldown_bars = limits.cooldown_sessions * bars_per_session(night.universe.interval)
    return TargetPortfolio(
        contender=contender,
        asset=inputs.members,
        weights=forecast_weights(inputs, forecast, limits, first),
        terms={"limits": asdict(limits)},
        risk_options={"drawdown_trigger": limits.drawdown_trigger, "cooldown_bars": cooldown_bars},
    )


def _rule_portfolio(inputs: PortfolioInputs, contender: Contender, first: int) -> TargetPortfolio:
    """The portfolio of a trading rule, from decision ``first`` on."""
    rule = zoo.find_rule(contender.model)
    asset = inputs.benchmark if rule.benchmark_only else inputs.members
    weights = rule.compute_weights(session_bars(asset, inputs.decisions))[first:]
    if rule.benchmark_only:  # bought once: rebalancing a single asset would only cost fees
        weights[1:] = np.nan
    return TargetPortfolio(contender, asset, weights)


def _simulate(night: Night, inputs: PortfolioInputs, portfolio: TargetPortfolio, first: int) -> BacktestRun:
    """The simulated portfolio from decision ``first`` on, aggregated by session.

    While the drawdown limit keeps the portfolio in cash, its target weights are 0.
    """
    universe = night.universe
    asset = portfolio.asset
    contender = portfolio.contender
    start = inputs.decisions[first]
    decisions = inputs.decisions[first:]
    target = np.full(asset.bars.mask.shape, np.nan)
    target[decisions] = portfolio.weights
    funding = None
    coverage = math.nan
    if universe.calendar == PERPETUAL_CALENDAR:
        funding = funding_by_bar(night, inputs, asset.bars.symbols)[start:]
        coverage = funding_coverage(funding[1:], asset.bars.mask[start + 1 :], inputs.close_times[start + 1 :])
    simulation = simulate(
        asset.open_index[start:],
        asset.close_index[start:],
        target[start:],
        costs=Costs.from_bps(universe.commission_bps, universe.slippage_bps),
        funding=funding,
        **portfolio.risk_options,
    )
    identity = {
        **night.slice,
        **portfolio.terms,
        "model": contender.model,
        "trial_ids": sorted(contender.trial_ids),
        "costs_bps": [universe.commission_bps, universe.slippage_bps],
        "fill": FILL,
        "start": str(inputs.ts[start]),
    }
    backtest_id = short_hash(json.dumps(identity, sort_keys=True))
    session_end_bars = decisions - start
    is_in_cash = simulation.is_flat[session_end_bars]
    return BacktestRun(
        contender=contender,
        backtest_id=backtest_id,
        limits=portfolio.terms.get("limits", {}),
        ts=inputs.ts[decisions],
        sessions=aggregate_by_session(simulation, session_end_bars),
        symbols=asset.bars.symbols,
        weights=np.where(is_in_cash[:, None], 0.0, portfolio.weights),
        funding_coverage=coverage,
    )
