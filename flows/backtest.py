"""Backtest, a step of the night (the run for one as-of date): simulates every model out of sample, net of costs."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.train import contenders_of, limits_of
from tasks.backtest import BacktestReport, run_backtests
from tasks.ledger import step_run


@flow
def backtest(step: StepParameters) -> BacktestReport:
    """Report of the backtests; writes equity curves, positions and metrics of every model, and the leaderboard."""
    settings = step.settings()
    night = step.open_night(settings)
    profile = settings.profile(step.universe)
    with step_run(night, "backtest", settings.fingerprint(step.universe)):
        models = contenders_of(night, settings)
        return run_backtests(night, models, limits_of(settings, step.universe), profile.class_horizon_bars)
