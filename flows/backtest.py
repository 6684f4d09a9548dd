"""Backtest: every model over the same out-of-sample window, net of costs."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.train import contenders_of, limits_of
from tasks.backtest import BacktestReport, run_backtests
from tasks.ledger import step_run


@flow
def backtest(step: StepParameters) -> BacktestReport:
    """Equity curves, positions and metrics of every model of the night, and the leaderboard they make."""
    night, profile = step.open(), step.settings().profile(step.universe)
    with step_run(night, "backtest", step.fingerprint()):
        return run_backtests(night, contenders_of(night, step), limits_of(step), profile.class_horizon_bars)
