"""Audit, a step of the night (the run for one as-of date): recomputes results from truncated data and compares them."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.train import contenders_of
from tasks.audit import AuditReport, audit_leaks
from tasks.ledger import step_run


@flow
def audit(step: StepParameters) -> AuditReport:
    """Report of the comparison of stored features, graph edges and forecasts of past bars with recomputed values.

    The values are recomputed without the bars that came later. A difference means that future data leaked: then the
    task raises LeakFoundError, which stops the night.
    """
    settings = step.settings()
    night = step.open_night(settings)
    profile = settings.profile(step.universe)
    with step_run(night, "audit", settings.fingerprint(step.universe)):
        models = contenders_of(night, settings)
        return audit_leaks(
            night, models, profile.graph.model_dump(), profile.class_horizon_bars, profile.folds.test_bars
        )
