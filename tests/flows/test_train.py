"""Which models a universe's profile lets train."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from flows.nightly import nightly
from flows.parameters import NightParameters, StepParameters
from flows.settings import SettingsError, load_settings
from flows.train import check_graphs, train

REFUSED = (
    "model 'ssm_gnn' reads the graph 'correlation', which profile 'demo_stocks' does not build for demo_stocks; "
    "add it to profiles.demo_stocks.graph.graphs, or leave the model out"
)


@pytest.fixture
def sectors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTLY_PROFILES__DEMO_STOCKS__GRAPH__GRAPHS", '["sector"]')


def test_a_model_whose_graph_the_profile_does_not_build_is_refused_by_name(sectors_alone: None) -> None:
    with pytest.raises(SettingsError, match=REFUSED):
        check_graphs(load_settings(models=("s4d", "ssm_gnn")), "demo_stocks")
    check_graphs(load_settings(models=("ssm_gnn",)), "demo_crypto")


def test_rules_and_networks_that_read_no_graph_or_one_that_is_built_are_not_refused(sectors_alone: None) -> None:
    models = ("momentum", "s4d", "ssm", "ssm_gnn_attention", "ssm_gnn_sector")
    check_graphs(load_settings(models=models), "demo_stocks")


def test_neither_a_night_nor_its_training_begins_with_such_a_model(sectors_alone: None, migrated: Path) -> None:
    said = {"warehouse": str(migrated), "models": ("ssm_gnn",)}
    with pytest.raises(SettingsError, match=REFUSED):
        nightly.fn(NightParameters(universes=("demo_stocks",), **said))
    with pytest.raises(SettingsError, match=REFUSED):
        train.fn(StepParameters(as_of=date(2024, 6, 28), universe="demo_stocks", **said))
