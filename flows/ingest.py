"""Ingest, a step of the night (the run for one as-of date): fetches the market's data since the last night."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.progress import start_progress
from tasks.ingest import IngestReport, ingest_bars
from tasks.ledger import step_run


@flow
def ingest(step: StepParameters) -> IngestReport:
    """Report of the fetches; writes new and restated raw bars, corporate actions and funding up to the night's clock.

    The clock is the instant after which the night may use no data.
    """
    settings = step.settings()
    night = step.open_night(settings)
    with step_run(night, "ingest", settings.fingerprint(step.universe)):
        return ingest_bars(night, **settings.ingest.model_dump(), on_progress=start_progress())
