"""Backtests of a night: every model over the same out-of-sample window, and the leaderboard they make."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models import zoo
from models.panel import TS_TYPE, Panel
from models.scoring import metrics
from models.scoring.costs import Costs
from models.scoring.portfolio import Limits
from models.scoring.simulate import Sessions, by_session, simulate
from models.sessions import SESSIONS_PER_YEAR, bars_per_session
from tasks.book import Book, forecast_weights, funding_by_bar, funding_coverage, load_book
from tasks.forecasts import Contender, aware, load_forecasts, networks
from tasks.night import Night
from tasks.panels import PERPETUALS
from warehouse.tables import append, read_query, replace_slice

logger = logging.getLogger(__name__)

FILL = "next_open"
BENCHMARK_RULE = "buy_and_hold"
SAME = {"rtol": 1e-9, "atol": 1e-12}  # a stored row this close to the recomputed one is the same row
LIMITED_DETAIL = ("annual_turnover", "annual_cost")


@dataclass(frozen=True)
class BacktestReport:
    """What was scored: how many models over how many sessions, and who leads."""

    models: int
    sessions: int
    first_session: date
    last_session: date
    leader: str


@dataclass(frozen=True, eq=False)
class Run:
    """One simulated contender: its sessions (d,), ended by the bars ``ts``, and the weights (d, n) decided there.

    A row of NaN decided nothing. ``limits`` is empty for a rule; ``coverage`` of funding is NaN where there is none.
    """

    contender: Contender
    backtest_id: str
    limits: dict[str, float]
    ts: np.ndarray
    sessions: Sessions
    symbols: tuple[str, ...]
    weights: np.ndarray
    coverage: float


@task(name="run backtests", cache_policy=NO_CACHE, persist_result=False)
def run_backtests(
    night: Night, models: Sequence[Contender], limits: Limits, class_horizon: int, risk_free: float = 0.0
) -> BacktestReport:
    """Scores ``models`` from the first session that all networks forecast, and writes curves, metrics and leaderboard.

    Networks hold what ``limits`` make of their forecasts ``class_horizon`` bars ahead; rules hold what they say. Rows of
    earlier nights stay as they are unless a restated bar changes them. ``risk_free`` is a rate per year: 0, because
    cash earns nothing in the simulation.
    """
    contenders = [Contender(*m) for m in models]
    book = load_book(night)
    forecasts = {c.model: load_forecasts(night, c, class_horizon, book.ts) for c in networks(contenders)}
    first = _first_decision(book, list(forecasts.values()), limits)
    runs = []
    for contender in contenders:
        if contender.model in forecasts:
            runs.append(_run_network(night, book, contender, forecasts[contender.model], limits, class_horizon, first))
        else:
            runs.append(_run_rule(night, book, contender, first))
    board = _leaderboard(night, runs, risk_free)
    with night.warehouse.write(f"backtests of {night.universe.name}") as con:
        for run in runs:
            _store_run(con, night, run)
        keys = {"night": night.as_of, **night.slice}
        replace_slice(con, "store.metrics", _metric_rows(board), **keys)
        replace_slice(con, "store.leaderboard", pa.Table.from_pylist(board), **keys)
    best = board[0]
    report = BacktestReport(len(runs), best["sessions"], best["first_session"], best["last_session"], best["model"])
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


def _first_decision(book: Book, forecasts: Sequence[Panel], limits: Limits) -> int:
    """Which decision is the first that every network forecasts; with no network, the first after a correlation window."""
    last = len(book.decisions) - 1
    if not forecasts:
        return min(limits.correlation_sessions, last)
    start = max(int(f.mask.any(axis=1).argmax()) for f in forecasts)
    return min(int(np.searchsorted(book.decisions, start)), last)


def _run_network(
    night: Night, book: Book, contender: Contender, forecast: Panel, limits: Limits, class_horizon: int, first: int
) -> Run:
    weights = forecast_weights(book, forecast, limits, first)
    cooldown = limits.cooldown_sessions * bars_per_session(night.universe.calendar, night.universe.interval)
    guard = {"drawdown_trigger": limits.drawdown_trigger, "cooldown_bars": cooldown}
    identity = {"trial_ids": sorted(contender.trial_ids), "class_horizon": class_horizon, "limits": asdict(limits)}
    return _run(night, book, contender, weights, identity, first, **guard)


def _run_rule(night: Night, book: Book, contender: Contender, first: int) -> Run:
    rule = zoo.rule(contender.model)
    asset = book.benchmark if rule.benchmark_only else book.members
    weights = rule.weights(asset.bars)[book.decisions[first:]]
    if rule.benchmark_only:  # bought once: to rebalance a single asset would only trade its own costs
        weights[1:] = np.nan
    return _run(night, book, contender, weights, {"trial_ids": [], "limits": {}}, first)


def _run(
    night: Night, book: Book, contender: Contender, weights: np.ndarray, identity: dict[str, Any], first: int, **guard: Any
) -> Run:
    """``weights`` (d, n) of the decisions from ``first`` on, simulated; one column is the benchmark."""
    universe, start, decisions = night.universe, book.decisions[first], book.decisions[first:]
    asset = book.members if weights.shape[1] == len(universe.symbols) else book.benchmark
    target = np.full(asset.bars.mask.shape, np.nan)
    target[decisions] = weights
    funding = funding_by_bar(night, book, asset.bars.symbols) if universe.calendar == PERPETUALS else None
    coverage = float("nan")
    if funding is not None:
        coverage = funding_coverage(funding[start + 1 :], asset.bars.mask[start + 1 :], book.closed[start + 1 :])
    path = simulate(
        asset.opens[start:],
        asset.closes[start:],
        target[start:],
        costs=Costs.from_bps(universe.commission_bps, universe.slippage_bps),
        funding=None if funding is None else funding[start:],
        **guard,
    )
    held = np.where(path.flat[decisions - start][:, None], 0.0, weights)
    whole = {
        **night.slice,
        **identity,
        "model": contender.model,
        "costs_bps": [universe.commission_bps, universe.slippage_bps],
        "fill": FILL,
        "start": str(book.ts[start]),
    }
    return Run(
        contender,
        hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16],
        identity["limits"],
        book.ts[decisions],
        by_session(path, decisions - start),
        asset.bars.symbols,
        held,
        coverage,
    )
