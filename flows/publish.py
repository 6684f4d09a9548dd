"""Publish: the signals for the next session, and the moment readers see the night."""

from __future__ import annotations

from prefect import flow

from flows.artifacts import show_night
from flows.parameters import StepParameters
from flows.train import contenders_of, limits_of
from tasks.ledger import step_run
from tasks.publish import Published, mark_published, swap_copy
from tasks.signals import next_signals


@flow
def publish(step: StepParameters) -> Published:
    """Signals written once, the night marked as published, the read-only copy swapped, and the artifacts of the UI."""
    night, profile = step.open(), step.settings().profile(step.universe)
    with step_run(night, "publish", step.fingerprint()):
        signals = next_signals(
            night, contenders_of(night, step), limits_of(step), profile.horizons_bars, profile.class_horizon_bars
        )
        mark_published(night, signals.champion, signals.for_session)
    published = swap_copy(night)
    show_night(step, published)
    return published
