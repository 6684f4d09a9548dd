"""Audit: what the night computed, computed again from truncated data."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.train import contenders_of
from models.graphs.catalogue import windowed_rules
from tasks.audit import AuditReport, audit_leaks
from tasks.ledger import step_run


@flow
def audit(step: StepParameters) -> AuditReport:
    """What past bars get without the bars after them: features, edges, forecasts. A difference stops the night."""
    night, profile = step.open(), step.settings().profile(step.universe)
    rules = windowed_rules(**profile.graph.model_dump())
    with step_run(night, "audit", step.of_night()):
        return audit_leaks(
            night, contenders_of(night, step), rules, profile.class_horizon_bars, profile.folds.test_bars
        )
