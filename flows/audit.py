"""Audit: what the night computed, computed again from truncated data."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.train import contenders_of
from tasks.audit import AuditReport, audit_leaks
from tasks.ledger import step_run


@flow
def audit(step: StepParameters) -> AuditReport:
    """What past bars get without the bars after them: features, edges, forecasts. A difference stops the night."""
    night, profile = step.open(), step.settings().profile(step.universe)
    with step_run(night, "audit", step.fingerprint()):
        models, graph = contenders_of(night, step), profile.graph.model_dump()
        return audit_leaks(night, models, graph, profile.class_horizon_bars, profile.folds.test_bars)
