"""Validate: which of the night's raw rows are fit to be used."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from tasks.ledger import step_run
from tasks.validate import ValidationReport, validate_night


@flow
def validate(step: StepParameters) -> ValidationReport:
    """Verdicts on the night's delta in ``checks``; good rows in ``bars``, bad ones in ``quarantine``."""
    night = step.open()
    with step_run(night, "validate", step.fingerprint()):
        return validate_night(night)
