"""Sequence networks and their options (S4-18, S4-26, S4-29, S4-36, SSF-12, SSF-13, TRAP-13)."""

from dataclasses import replace

import pytest
import torch

from models.layers.errors import DtypeError, NotCausalError, NotFiniteError, ShapeError, SizeError, StateError
from models.nets.forecast import Batch, Forecast
from models.nets.on_demand import OnDemand
from models.nets.sequence import flatten_state, unflatten_state
from models.zoo import Spec, build

N = 3
F = 2
L = 23


def make_batch(seed: int = 0) -> Batch:
    """Random bars of N assets in 2 chunks, a tenth of them missing, with irregular gaps."""
    torch.manual_seed(seed)
    return Batch(torch.randn(2, L, N, F), torch.rand(2, L, N) < 0.9, 1 + torch.rand(2, L))


def make_network(model: str = "s4d", **options: object) -> torch.nn.Module:
    return build(Spec(model, d_model=8, d_state=4, dropout=0.0, options=options), F, 2).eval()


def outputs(forecast: Forecast) -> list[torch.Tensor]:
    parts = (forecast.returns, forecast.log_volatility, forecast.logits, forecast.weights, forecast.regime)
    return [v for v in parts if v is not None]


def run_step_by_step(network: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """The outputs of the network, computed by its ``step``."""
    state = network.initial_state(2, N)
    steps = []
    for t in range(L):
        forecast, state = network.step(batch.bars(t, t + 1), state)
        steps.append(outputs(forecast))
    return [torch.cat(parts, dim=1) for parts in zip(*steps, strict=True)]


OPTIONS = {
    "mean": {"pooling": "mean"},
    "pooled bars": {"pool_bars": 4},
    "more bars than there are": {"pool_bars": 30},
    "irregular": {"irregular": True},
    "a head for each asset": {"assets": N},
    "long only": {"weights": "long_only"},
    "long and short": {"weights": "long_short", "regimes": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_with_every_option_steps_equal_the_whole_sequence_and_later_bars_change_nothing(options: dict) -> None:
    network = make_network(**options)
    batch = make_batch()
    whole = outputs(network(batch))
    for a, b in zip(run_step_by_step(network, batch), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    changed = replace(batch, x=batch.x.clone(), gaps=batch.gaps.clone())
    changed.x[:, 15:] = 9.0
    changed.gaps[:, 15:] = 4.0
    for a, b in zip(outputs(network(changed)), whole, strict=True):
        assert torch.equal(a[:, :15], b[:, :15])


@pytest.mark.parametrize("model", ["s4", "s4d", "dss", "s5", "mamba", "mamba2"])
def test_irregular_networks_read_the_gaps_and_others_do_not(model: str) -> None:
    batch = make_batch()
    regular = replace(batch, gaps=torch.ones_like(batch.gaps))
    for irregular in (True, False):
        network = make_network(model, irregular=irregular)
        assert torch.equal(network(batch).logits, network(regular).logits) != irregular


def test_weights_sum_to_about_one_and_are_zero_where_there_is_no_bar() -> None:
    batch = make_batch()
    batch.mask[0, 3] = False
    for kind in ("long_only", "long_short"):
        network = make_network(weights=kind)
        torch.nn.init.normal_(network.heads.weight)
        weights = network(batch).weights
        assert not weights[~batch.mask].any()
        total = weights.abs().sum(-1)
        assert (total <= 1 + 1e-6).all() and total[batch.mask.any(-1)].median() > 0.95
        assert (weights >= 0).all() == (kind == "long_only")


def test_separate_heads_require_the_same_number_of_assets() -> None:
    network = make_network(assets=N)
    assert network.heads.weight.shape[0] == N
    batch = make_batch()
    with pytest.raises(ShapeError, match="heads for 3 assets, the batch has 2"):
        network(replace(batch, x=batch.x[:, :, :2], mask=batch.mask[:, :, :2]))


def test_regimes_are_read_without_a_gradient_into_the_encoder() -> None:
    network = make_network(regimes=True)
    batch = make_batch()
    regime = network.get_state(batch)
    assert regime.trend.abs().max() < 1 and ((regime.momentum > 0) & (regime.momentum < 1)).all()
    torch.testing.assert_close(regime.volatility.sum(-1), torch.ones(2, L, N))
    network(batch).regime.sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    with pytest.raises(StateError, match="regimes = true"):
        make_network().get_state(batch)


def test_a_network_continues_from_a_saved_state() -> None:
    network = make_network("mamba")
    batch = make_batch()
    state = network.initial_state(2, N)
    for t in range(3):
        _, state = network.step(batch.bars(t, t + 1), state)
    restored = unflatten_state([t.clone() for t in flatten_state(state)], network.initial_state(2, N))
    expected, continued = (network.step(batch.bars(3, 4), s)[0].logits for s in (state, restored))
    assert torch.equal(continued, expected)
    with pytest.raises(StateError, match="run the bars again"):
        unflatten_state(flatten_state(state)[:-1], network.initial_state(2, N))


def test_on_demand_steps_equal_the_whole_sequence_at_every_share_of_bars_switched_on() -> None:
    batch = make_batch()
    is_all_or_none = set()
    for hold in (0.0, 0.2, 1.0):
        network = make_network("on_demand", hold=hold)
        torch.manual_seed(1)
        for part in (network.cheap, network.heads):
            torch.nn.init.normal_(part.weight)
        on = network.switched_on(network.cheap(network.gate(batch), batch.mask))
        is_all_or_none.add(float(on.float().mean()) in (0.0, 1.0))
        for a, b in zip(run_step_by_step(network, batch), outputs(network(batch)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert is_all_or_none == {True, False}


def test_on_demand_skips_the_encoder_when_no_asset_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("on_demand", hold=0.0)
    batch = make_batch()

    def fail(*arguments: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(network.encoder, "step", fail)
    assert len(run_step_by_step(network, batch)) == 3


@pytest.mark.parametrize("model", ["s4", "s4d", "dss", "s5"])
def test_a_network_that_reads_the_future_cannot_be_built(model: str) -> None:
    with pytest.raises(NotCausalError, match="leave bidirectional out"):
        make_network(model, bidirectional=True)


def test_bad_input_is_refused_with_what_to_do() -> None:
    network = make_network()
    batch = make_batch()
    x = batch.x.clone()
    batch.mask[0, 4, 1] = True
    x[0, 4, 1, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="nan at chunk 0, bar 4, asset 1, feature 0"):
        network(replace(batch, x=x))
    batch.mask[0, 4, 1] = False
    assert torch.isfinite(network(replace(batch, x=x)).returns).all()
    with pytest.raises(ShapeError, match=r"\(2, 23, 3, 1\)"):
        network(replace(batch, x=batch.x[..., :1]))
    with pytest.raises(ShapeError, match="none of them 0"):
        network(batch.bars(5, 5))
    for x in (batch.x.long(), batch.x.double()):
        with pytest.raises(DtypeError, match="give float32"):
            network(replace(batch, x=x))
    with pytest.raises(ShapeError, match="the mask is"):
        network(replace(batch, mask=batch.mask.float()))
    with pytest.raises(ShapeError, match="gaps are"):
        network(replace(batch, gaps=batch.gaps[:, 1:]))
    assert network(batch.bars(5, 6)).logits.shape == (2, 1, N, 5)
    with pytest.raises(StateError, match="initial_state"):
        network.step(batch.bars(0, 1), make_network("mamba").initial_state(2, N))
    with pytest.raises(StateError, match="initial_state"):
        network.step(batch.bars(0, 1), network.initial_state(1, N))
    for model, options in (("lstm", {"irregular": True}), ("s4d", {"pooling": "max"}), ("s4d", {"weights": "long"})):
        with pytest.raises(SizeError):
            make_network(model, **options)
    for options in ({"layer": "mamba"}, {"pooling": "mean"}, {"discretisation": "bilinear"}):
        with pytest.raises(SizeError, match="leave"):
            OnDemand(Spec("on_demand"), F, 2, **options)
