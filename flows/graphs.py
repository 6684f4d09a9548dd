"""Graphs, a step of the night (the run for one as-of date): feature rows and graph snapshots of one universe."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from tasks.graphs import GraphReport, build_graphs, write_features
from tasks.ledger import step_run


@flow
def graphs(step: StepParameters) -> GraphReport:
    """Report of the graph snapshots. Writes the features and snapshots up to the night that are not stored yet."""
    settings = step.settings()
    night = step.open_night(settings)
    profile = settings.profile(step.universe)
    with step_run(night, "graphs", settings.fingerprint(step.universe)):
        write_features(night)
        return build_graphs(night, **profile.graph.model_dump())
