"""Validate, a step of the night (the run for one as-of date): checks raw rows before later steps may use them."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from tasks.ledger import step_run
from tasks.validate import ValidationReport, validate_night


@flow
def validate(step: StepParameters) -> ValidationReport:
    """Counts of the night's delta: the received rows that no night has accepted yet.

    Writes the verdicts of all rules to ``checks``, accepted rows to the store and rejected rows to ``quarantine``.
    Raises NightBlockedError when a blocking rule fails; then no row is accepted.
    """
    settings = step.settings()
    night = step.open_night(settings)
    with step_run(night, "validate", settings.fingerprint(step.universe)):
        return validate_night(night)
