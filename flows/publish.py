"""Publish, the last step of the night (the run for one as-of date): signals for the next session.

After this step, readers of the published copy see the night.
"""

from __future__ import annotations

from prefect import flow

from flows.artifacts import show_night
from flows.parameters import StepParameters
from flows.train import contenders_of, limits_of
from tasks.ledger import step_run
from tasks.publish import PublishedTables, mark_published, swap_copy
from tasks.signals import write_next_session_signals


@flow
def publish(step: StepParameters) -> PublishedTables:
    """Writes the signals and replaces the published copy, a read-only database. Returns the published tables.

    It also marks the night as published and creates the artifacts of the Prefect UI.
    """
    settings = step.settings()
    night = step.open_night(settings)
    profile = settings.profile(step.universe)
    with step_run(night, "publish", settings.fingerprint(step.universe)):
        models = contenders_of(night, settings)
        limits = limits_of(settings, step.universe)
        signals = write_next_session_signals(night, models, limits, profile.horizons_bars, profile.class_horizon_bars)
        mark_published(night, signals.champion, signals.for_session)
    published = swap_copy(night)
    show_night(step, published)
    return published
