"""The zoo: one line registers a model, which can then be built, fitted and used for forecasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import zoo
from models.nets.forecast import Batch, Embedding, Forecast, Heads
from models.training.fit import fit_fold, predict_fold
from models.zoo import ENTRIES, Network, Spec, TradingRule, UnknownModelError, build


class Tiny(nn.Module):
    """A complete small network, which reads each bar by itself. Option: ``gain``, a factor on the embedding."""

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, gain: float = 1.0) -> None:
        super().__init__()
        self.embedding = Embedding(n_features, spec.d_model)
        self.heads = Heads(spec.d_model, n_horizons)
        self.gain = gain

    def forward(self, batch: Batch) -> Forecast:
        return self.heads(torch.tanh(self.gain * self.embedding(batch)), batch.mask)


@pytest.fixture
def tiny_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo has the model ``tiny`` during the test."""
    monkeypatch.setitem(ENTRIES, "tiny", Network(Tiny, "a model of this test"))


def build_network(model: str, seed: int = 0, **options: object) -> nn.Module:
    return build(Spec(model, options=options), n_features=3, n_horizons=2, seed=seed)


@pytest.mark.usefixtures("tiny_registered")
def test_a_model_registered_by_one_line_can_be_fitted_and_used_for_forecasts(market: Any, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    fit_fold(**market.arguments("tiny"), artifact=path)
    forecasts = predict_fold(path, market.features, market.side_inputs, market.folds[0])
    assert forecasts.valid.any()


@pytest.mark.usefixtures("tiny_registered")
def test_options_reach_the_builder() -> None:
    assert build_network("tiny", gain=2.0).gain == 2.0


@pytest.mark.usefixtures("tiny_registered")
def test_an_option_that_the_builder_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="grain"):
        build_network("tiny", grain=2.0)


def test_initial_weights_depend_on_the_seed() -> None:
    weights = build_network("s4d", seed=1).state_dict()["heads.weight"]
    assert torch.equal(build_network("s4d", seed=1).state_dict()["heads.weight"], weights)
    assert not torch.equal(build_network("s4d", seed=2).state_dict()["heads.weight"], weights)


def test_building_a_network_leaves_the_global_generator_unchanged() -> None:
    before = torch.get_rng_state()
    build_network("s4d", seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_zoo_has_its_core_networks_and_exactly_three_rules() -> None:
    networks = {name for name, entry in ENTRIES.items() if isinstance(entry, Network)}
    rules = {name for name, entry in ENTRIES.items() if isinstance(entry, TradingRule)}
    assert {"s4d", "mamba", "lstm", "ssm_gnn"} <= networks
    assert rules == {"buy_and_hold", "equal_weight", "momentum"}


def test_every_entry_has_a_summary() -> None:
    assert all(entry.summary for entry in ENTRIES.values())


def test_an_unknown_name_is_refused_with_the_names_of_the_zoo() -> None:
    with pytest.raises(UnknownModelError, match="unknown model 's6'; the zoo has s4, s4d"):
        build_network("s6")


def test_looking_up_a_rule_as_a_network_or_a_network_as_a_rule_is_refused() -> None:
    with pytest.raises(UnknownModelError, match="'momentum' is a rule"):
        zoo.find_network("momentum")
    with pytest.raises(UnknownModelError, match="'s4d' is a network"):
        zoo.find_rule("s4d")


def test_a_rule_is_found_by_its_name() -> None:
    assert zoo.find_rule("momentum") is ENTRIES["momentum"]


def test_a_spec_is_equal_after_a_round_trip_through_json() -> None:
    spec = Spec("mamba", d_model=16, options={"expand": 1})
    assert Spec(**json.loads(json.dumps(spec.to_json()))) == spec
