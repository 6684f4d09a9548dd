"""The zoo: a model registered by one line is built, fitted and forecasts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models import zoo
from models.nets.forecast import Batch, Embedding, Forecast, Heads
from models.training.fit import fit_fold, predict_fold
from models.zoo import ENTRIES, Network, Spec, TradingRule, UnknownModelError, build


class Tiny(nn.Module):
    """A complete small model, which reads each bar by itself."""

    def __init__(self, spec: Spec, n_features: int, n_horizons: int, bend: float = 1.0) -> None:
        super().__init__()
        self.embedding = Embedding(n_features, spec.d_model)
        self.heads = Heads(spec.d_model, n_horizons)
        self.bend = bend

    def forward(self, batch: Batch) -> Forecast:
        return self.heads(torch.tanh(self.bend * self.embedding(batch)), batch.mask)


@pytest.fixture
def tiny_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(ENTRIES, "tiny", Network(Tiny, "a model of this test"))
    yield


def test_a_model_registered_by_one_line_is_fitted_and_forecasts(tiny_registered: None, market, tmp_path: Path) -> None:
    fit_fold(**market.arguments("tiny"), artifact=tmp_path / "tiny.safetensors")
    forecasts = predict_fold(tmp_path / "tiny.safetensors", market.features, market.side_inputs, market.folds[0])
    assert forecasts.valid.any()


def test_options_reach_the_builder_and_an_unknown_one_is_refused(tiny_registered: None) -> None:
    assert build(Spec("tiny", options={"bend": 2.0}), 3, 2).bend == 2.0
    with pytest.raises(TypeError, match="bent"):
        build(Spec("tiny", options={"bent": 2.0}), 3, 2)


def test_first_weights_depend_on_the_seed_and_leave_the_global_generator_unchanged() -> None:
    before = torch.get_rng_state()
    first, same_seed, other_seed = (build(Spec("s4d"), 3, 2, seed).state_dict()["heads.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same_seed) and not torch.equal(first, other_seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_zoo_has_its_core_networks_and_exactly_three_rules() -> None:
    kinds = {name: type(entry) for name, entry in ENTRIES.items()}
    assert {"s4d", "mamba", "lstm", "ssm_gnn"} <= {name for name, kind in kinds.items() if kind is Network}
    assert {"buy_and_hold", "equal_weight", "momentum"} == {name for name, kind in kinds.items() if kind is TradingRule}
    assert all(entry.summary for entry in ENTRIES.values())


def test_an_unknown_name_is_refused_with_the_names_of_the_zoo() -> None:
    with pytest.raises(UnknownModelError, match="unknown model 's6'; the zoo has s4, s4d"):
        build(Spec("s6"), 3, 2)


def test_a_rule_is_no_network_and_a_network_is_no_rule() -> None:
    with pytest.raises(UnknownModelError, match="'momentum' is a rule"):
        zoo.network("momentum")
    with pytest.raises(UnknownModelError, match="'s4d' is a network"):
        zoo.rule("s4d")
    assert zoo.rule("momentum") is ENTRIES["momentum"]


def test_a_spec_survives_json() -> None:
    spec = Spec("mamba", d_model=16, options={"expand": 1})
    assert Spec(**spec.to_json()) == spec
