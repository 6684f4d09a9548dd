"""Backtests of a night: every model over the same out-of-sample window, and the leaderboard they make."""

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
    """What was scored: how many models over how many sessions, and who leads."""

    models: int
    sessions: int
    first_session: date
    last_session: date
    leader: str


@dataclass(frozen=True, eq=False)
class Portfolio:
    """What a contender wants to hold: ``weights`` (d, n) of ``asset`` at each decision, a row of NaN for no decision.

    ``terms`` tell it from another portfolio of the same model; ``guard`` goes to the simulation.
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

    Networks hold what ``limits`` make of their forecasts ``class_horizon`` bars ahead; rules, whose bars are sessions
    here, hold what they say. Rows of earlier nights stay as they are unless a restated bar changes them. ``risk_free``
    is a rate per year: 0, because cash earns nothing in the simulation.
    """
    contenders = [Contender(*m) for m in models]
    book = load_portfolio_inputs(night)
    forecasts = {c.model: load_forecasts(night, c, class_horizon, book.ts) for c in networks(contenders)}
    first = _first_decision(book, list(forecasts.values()), limits)
    runs = []
    for contender in contenders:
        if contender.model in forecasts:
            portfolio = _of_network(night, book, contender, forecasts[contender.model], limits, first)
            portfolio.terms["class_horizon"] = class_horizon
        else:
            portfolio = _of_rule(book, contender, first)
        runs.append(_simulate(night, book, portfolio, first))
    board = leaderboard(night, runs, risk_free)
    store_runs(night, runs, board)
    best = board[0]
    report = BacktestReport(len(runs), best["sessions"], best["first_session"], best["last_session"], best["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _first_decision(book: PortfolioInputs, forecasts: Sequence[Panel], limits: Limits) -> int:
    """The first decision that every network forecasts; without networks, the first after a correlation window."""
    last = len(book.decisions) - 1
    if not forecasts:
        return min(limits.correlation_sessions, last)
    start = max(int(f.mask.any(axis=1).argmax()) for f in forecasts)
    return min(int(np.searchsorted(book.decisions, start)), last)


def _of_network(
    night: Night, book: PortfolioInputs, contender: Contender, forecast: Panel, limits: Limits, first: int
) -> Portfolio:
    cooldown = limits.cooldown_sessions * bars_per_session(night.universe.interval)
    return Portfolio(
        contender,
        book.members,
        forecast_weights(book, forecast, limits, first),
        {"limits": asdict(limits)},
        {"drawdown_trigger": limits.drawdown_trigger, "cooldown_bars": cooldown},
    )


def _of_rule(book: PortfolioInputs, contender: Contender, first: int) -> Portfolio:
    rule = zoo.rule(contender.model)
    asset = book.benchmark if rule.benchmark_only else book.members
    weights = rule.weights(session_bars(asset, book.decisions))[first:]
    if rule.benchmark_only:  # bought once: to rebalance a single asset would only trade its own costs
        weights[1:] = np.nan
    return Portfolio(contender, asset, weights)


def _simulate(night: Night, book: PortfolioInputs, portfolio: Portfolio, first: int) -> Run:
    universe, asset, contender = night.universe, portfolio.asset, portfolio.contender
    decisions, start = book.decisions[first:], book.decisions[first]
    target = np.full(asset.bars.mask.shape, np.nan)
    target[decisions] = portfolio.weights
    funding, coverage = None, math.nan
    if universe.calendar == PERPETUALS:
        funding = funding_by_bar(night, book, asset.bars.symbols)[start:]
        coverage = funding_coverage(funding[1:], asset.bars.mask[start + 1 :], book.closed[start + 1 :])
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
        "start": str(book.ts[start]),
    }
    backtest_id = short_hash(json.dumps(identity, sort_keys=True))
    sessions = by_session(path, decisions - start)
    held = np.where(path.flat[decisions - start][:, None], 0.0, portfolio.weights)
    limits = portfolio.terms.get("limits", {})
    return Run(contender, backtest_id, limits, book.ts[decisions], sessions, asset.bars.symbols, held, coverage)
