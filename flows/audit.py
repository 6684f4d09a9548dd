"""Audit: the night's results computed again from truncated data and compared."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.train import contenders_of
from tasks.audit import AuditReport, audit_leaks
from tasks.ledger import step_run


@flow
def audit(step: StepParameters) -> AuditReport:
    """Features, edges and forecasts of past bars, made without the bars after them. A difference stops the night."""
    settings = step.settings()
    night = step.open_night(settings)
    profile = settings.profile(step.universe)
    with step_run(night, "audit", settings.fingerprint(step.universe)):
        models = contenders_of(night, settings)
        return audit_leaks(
            night, models, profile.graph.model_dump(), profile.class_horizon_bars, profile.folds.test_bars
        )
