"""Backtests of a night: every model over the same out-of-sample window, and the leaderboard of the results."""

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
from models.scoring.simulate import by_session, simulate
from models.sessions import bars_per_session
from tasks.forecasts import Contender, load_forecasts, networks
from tasks.leaderboard import FILL, Row, Run, leaderboard, store_runs
from tasks.night import Night
from tasks.panels import PERPETUALS
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
    """Number of models and sessions scored, the span of the sessions, and the best model."""

    models: int
    sessions: int
    first_session: date
    last_session: date
    leader: str


@dataclass(frozen=True, eq=False)
class Portfolio:
    """Target ``weights`` (d, n) of ``asset`` at each decision; a row of NaN changes nothing.

    ``terms`` distinguish it from other portfolios of the same model; ``guard`` holds arguments of the simulation.
    """

    contender: Contender
    asset: Asset
    weights: np.ndarray
    terms: Row = field(default_factory=dict)
    guard: Row = field(default_factory=dict)


@task(name="run backtests", cache_policy=NO_CACHE, persist_result=False)
def run_backtests(
    night: Night, models: Sequence[Contender], limits: Limits, class_horizon: int, risk_free: float = 0.0
) -> BacktestReport:
    """Scores ``models`` from the first session that all networks forecast; writes curves, metrics and leaderboard.

    Networks hold the weights that ``limits`` derive from their forecasts ``class_horizon`` bars ahead; rules hold their
    own weights, computed on sessions. Rows of earlier nights stay unchanged unless a restated bar changes them.
    ``risk_free`` is a rate per year: 0, because cash earns nothing in the simulation.
    """
    contenders = [Contender(*m) for m in models]
    inputs = load_portfolio_inputs(night)
    forecasts = {c.model: load_forecasts(night, c, class_horizon, inputs.ts) for c in networks(contenders)}
    first = _first_decision(inputs, list(forecasts.values()), limits)
    runs = []
    for contender in contenders:
        if contender.model in forecasts:
            portfolio = _network_portfolio(night, inputs, contender, forecasts[contender.model], limits, first)
            portfolio.terms["class_horizon"] = class_horizon
        else:
            portfolio = _rule_portfolio(inputs, contender, first)
        runs.append(_simulate(night, inputs, portfolio, first))
    board = leaderboard(night, runs, risk_free)
    store_runs(night, runs, board)
    best = board[0]
    report = BacktestReport(len(runs), best["sessions"], best["first_session"], best["last_session"], best["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _first_decision(inputs: PortfolioInputs, forecasts: Sequence[Panel], limits: Limits) -> int:
    """The first decision that every network forecasts; without networks, the first after a correlation window."""
    last = len(inputs.decisions) - 1
    if not forecasts:
        return min(limits.correlation_sessions, last)
    start = max(int(f.mask.any(axis=1).argmax()) for f in forecasts)
    return min(int(np.searchsorted(inputs.decisions, start)), last)


def _network_portfolio(
    night: Night, inputs: PortfolioInputs, contender: Contender, forecast: Panel, limits: Limits, first: int
) -> Portfolio:
    cooldown = limits.cooldown_sessions * bars_per_session(night.universe.interval)
    return Portfolio(
        contender,
        inputs.members,
        forecast_weights(inputs, forecast, limits, first),
        {"limits": asdict(limits)},
        {"drawdown_trigger": limits.drawdown_trigger, "cooldown_bars": cooldown},
    )


def _rule_portfolio(inputs: PortfolioInputs, contender: Contender, first: int) -> Portfolio:
    rule = zoo.rule(contender.model)
    asset = inputs.benchmark if rule.benchmark_only else inputs.members
    weights = rule.weights(session_bars(asset, inputs.decisions))[first:]
    if rule.benchmark_only:  # bought once: to rebalance a single asset would only trade its own costs
        weights[1:] = np.nan
    return Portfolio(contender, asset, weights)


def _simulate(night: Night, inputs: PortfolioInputs, portfolio: Portfolio, first: int) -> Run:
    universe = night.universe
    asset = portfolio.asset
    contender = portfolio.contender
    start = inputs.decisions[first]
    decisions = inputs.decisions[first:]
    target = np.full(asset.bars.mask.shape, np.nan)
    target[decisions] = portfolio.weights
    funding = None
    coverage = math.nan
    if universe.calendar == PERPETUALS:
        funding = funding_by_bar(night, inputs, asset.bars.symbols)[start:]
        coverage = funding_coverage(funding[1:], asset.bars.mask[start + 1 :], inputs.closed_at[start + 1 :])
    path = simulate(
        asset.opens[start:],
        asset.closes[start:],
        target[start:],
        costs=Costs.from_bps(universe.commission_bps, universe.slippage_bps),
        funding=funding,
        **portfolio.guard,
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
    sessions = by_session(path, decisions - start)
    held = np.where(path.flat[decisions - start][:, None], 0.0, portfolio.weights)
    limits = portfolio.terms.get("limits", {})
    return Run(contender, backtest_id, limits, inputs.ts[decisions], sessions, asset.bars.symbols, held, coverage)
