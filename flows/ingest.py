"""Ingest: what the market printed since the last night."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.progress import progress
from tasks.ingest import IngestReport, ingest_bars
from tasks.ledger import step_run


@flow
def ingest(step: StepParameters) -> IngestReport:
    """Raw bars, corporate actions and funding of one universe up to the night's clock: what is new or restated."""
    night, asked = step.open(), step.settings().ingest
    with step_run(night, "ingest", step.fingerprint()):
        return ingest_bars(night, **asked.model_dump(), on_progress=progress())
