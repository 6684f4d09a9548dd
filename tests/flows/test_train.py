"""Which models and graphs the profile of a universe accepts. A profile names the graphs that a night builds."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from flows.nightly import nightly
from flows.parameters import NightParameters, StepParameters
from flows.settings import SettingsError, load_settings
from flows.train import check_graphs, train
from models.graphs.catalogue import GRAPHS

NO_GRAPH_MESSAGE = (
    "model 'ssm_gnn' reads the graph 'correlation', which profile 'demo_stocks' does not build for demo_stocks; "
    "add it to profiles.demo_stocks.graph.graphs, or leave the model out"
)


@pytest.fixture
def only_sector_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of demo_stocks builds the graph of sectors and no other."""
    monkeypatch.setenv("NIGHTLY_PROFILES__DEMO_STOCKS__GRAPH__GRAPHS", '["sector"]')


def test_a_model_whose_graph_the_profile_does_not_build_is_refused_by_name(only_sector_graph: None) -> None:
    with pytest.raises(SettingsError, match=NO_GRAPH_MESSAGE):
        check_graphs(load_settings(models=("s4d", "ssm_gnn")), "demo_stocks")
    check_graphs(load_settings(models=("ssm_gnn",)), "demo_crypto")


def test_models_that_read_no_graph_or_a_graph_that_is_built_are_accepted(only_sector_graph: None) -> None:
    models = ("momentum", "s4d", "ssm", "ssm_gnn_attention", "ssm_gnn_sector")
    check_graphs(load_settings(models=models), "demo_stocks")


def test_neither_a_night_nor_its_training_starts_with_a_model_whose_graph_is_not_built(
    only_sector_graph: None, migrated_file: Path
) -> None:
    options = {"warehouse": str(migrated_file), "models": ("ssm_gnn",)}
    with pytest.raises(SettingsError, match=NO_GRAPH_MESSAGE):
        nightly.fn(NightParameters(universes=("demo_stocks",), **options))
    with pytest.raises(SettingsError, match=NO_GRAPH_MESSAGE):
        train.fn(StepParameters(as_of=date(2024, 6, 28), universe="demo_stocks", **options))


def test_a_graph_that_does_not_exist_is_refused_with_the_names_of_the_existing_graphs(
    monkeypatch: pytest.MonkeyPatch, migrated_file: Path
) -> None:
    monkeypatch.setenv("NIGHTLY_PROFILES__DEMO_STOCKS__GRAPH__GRAPHS", '["sector", "friendship"]')
    message = r"^profiles\.demo_stocks\.graph\.graphs: unknown graph 'friendship'; .*correlation, .*industry.*NIGHTLY_"
    with pytest.raises(SettingsError, match=message):
        load_settings().profile("demo_stocks")
    with pytest.raises(SettingsError, match=message):
        nightly.fn(NightParameters(universes=("demo_stocks",), warehouse=str(migrated_file)))
    load_settings().profile("demo_crypto")


@pytest.mark.parametrize("universe", load_settings().universes)
def test_every_graph_of_the_default_settings_exists(universe: str) -> None:
    assert set(load_settings().profile(universe).graph.graphs) <= set(GRAPHS)
