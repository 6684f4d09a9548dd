"""Validate: checks of the night's raw rows, which decide the rows that are used."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from tasks.ledger import step_run
from tasks.validate import ValidationReport, validate_night


@flow
def validate(step: StepParameters) -> ValidationReport:
    """Writes verdicts on the night's delta to ``checks``, good rows to ``bars``, bad ones to ``quarantine``."""
    settings = step.settings()
    night = step.open_night(settings)
    with step_run(night, "validate", settings.fingerprint(step.universe)):
        return validate_night(night)
