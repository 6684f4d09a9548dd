"""Graphs: feature rows and graph snapshots of one universe."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from tasks.graphs import GraphReport, build_graphs, write_features
from tasks.ledger import step_run


@flow
def graphs(step: StepParameters) -> GraphReport:
    """Features and graph snapshots up to the night. Only missing ones are built."""
    settings = step.settings()
    night = step.open_night(settings)
    profile = settings.profile(step.universe)
    with step_run(night, "graphs", settings.fingerprint(step.universe)):
        write_features(night)
        return build_graphs(night, **profile.graph.model_dump())
