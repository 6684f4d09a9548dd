"""Ingest: the market's data since the last night."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.progress import progress
from tasks.ingest import IngestReport, ingest_bars
from tasks.ledger import step_run


@flow
def ingest(step: StepParameters) -> IngestReport:
    """New and restated raw bars, corporate actions and funding of one universe, up to the night's clock."""
    settings = step.settings()
    night = step.open_night(settings)
    with step_run(night, "ingest", settings.fingerprint(step.universe)):
        return ingest_bars(night, **settings.ingest.model_dump(), on_progress=progress())
