"""Sequence networks and their options (S4-18, S4-26, S4-29, S4-36, SSF-12, SSF-13, TRAP-13; ids:
.github/sources.md).

Glossary: b chunks · l bars · n assets · f features.
"""

from dataclasses import replace

import pytest
import torch

from models.layers.errors import DtypeError, NotCausalError, NotFiniteError, ShapeError, SizeError, StateError
from models.nets.forecast import N_CLASSES, Batch, Forecast
from models.nets.on_demand import OnDemand
from models.nets.sequence import Block, flatten_state, unflatten_state
from models.zoo import Spec, build

B = 2
L = 23
N = 3
F = 2
H = 2


def make_batch() -> Batch:
    """Random bars, a tenth of them missing, with irregular gaps."""
    torch.manual_seed(0)
    return Batch(x=torch.randn(B, L, N, F), mask=torch.rand(B, L, N) < 0.9, gaps=1 + torch.rand(B, L))


def make_network(model: str = "s4d", **options: object) -> torch.nn.Module:
    """A small network in evaluation mode."""
    return build(Spec(model, d_model=8, d_state=4, dropout=0.0, options=options), F, H).eval()


def outputs(forecast: Forecast) -> list[torch.Tensor]:
    """The outputs that the forecast has."""
    fields = (forecast.returns, forecast.log_volatility, forecast.logits, forecast.weights, forecast.regime)
    return [output for output in fields if output is not None]


def run_step_by_step(network: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """The outputs of the network, computed by its ``step``."""
    state = network.initial_state(B, N)
    steps = []
    for bar in range(L):
        forecast, state = network.step(batch.bars(bar, bar + 1), state)
        steps.append(outputs(forecast))
    return [torch.cat(bars, dim=1) for bars in zip(*steps, strict=True)]


OPTIONS = {
    "mean pooling": {"pooling": "mean"},
    "pooled bars": {"pool_bars": 4},
    "more pooled bars than the batch has": {"pool_bars": L + 7},
    "irregular gaps": {"irregular": True},
    "a head for each asset": {"assets": N},
    "long-only weights": {"weights": "long_only"},
    "long-short weights and regimes": {"weights": "long_short", "regimes": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps_equal_the_whole_sequence_with_every_option(options: dict[str, object]) -> None:
    network = make_network(**options)
    batch = make_batch()
    for stepped, expected in zip(run_step_by_step(network, batch), outputs(network(batch)), strict=True):
        torch.testing.assert_close(stepped, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_later_bars_change_no_earlier_forecast_with_any_option(options: dict[str, object]) -> None:
    network = make_network(**options)
    batch = make_batch()
    bar = 15
    changed = replace(batch, x=batch.x.clone(), gaps=batch.gaps.clone())
    changed.x[:, bar:] = 9.0
    changed.gaps[:, bar:] = 4.0
    for before, after in zip(outputs(network(batch)), outputs(network(changed)), strict=True):
        assert torch.equal(before[:, :bar], after[:, :bar])


@pytest.mark.parametrize("model", ["s4", "s4d", "dss", "s5", "mamba", "mamba2"])
def test_networks_read_the_gaps_only_with_the_option_irregular(model: str) -> None:
    batch = make_batch()
    regular_batch = replace(batch, gaps=torch.ones_like(batch.gaps))
    for irregular in (True, False):
        network = make_network(model, irregular=irregular)
        reads_gaps = not torch.equal(network(batch).logits, network(regular_batch).logits)
        assert reads_gaps == irregular


@pytest.mark.parametrize("kind", ["long_only", "long_short"])
def test_absolute_weights_sum_to_about_one_and_are_zero_where_there_is_no_bar(kind: str) -> None:
    """Long-short weights sum to just under one, see SCORE_SUM_OFFSET; all weights are 0 at a bar that no asset has."""
    batch = make_batch()
    batch.mask[0, 3] = False
    network = make_network(weights=kind)
    torch.nn.init.normal_(network.heads.weight)
    weights = network(batch).weights
    assert not weights[~batch.mask].any()
    total = weights.abs().sum(-1)
    assert (total <= 1 + 1e-6).all()
    assert total[batch.mask.any(-1)].median() > 0.95
    assert (weights >= 0).all() == (kind == "long_only")


def test_separate_heads_require_the_same_number_of_assets() -> None:
    network = make_network(assets=N)
    assert network.heads.weight.shape[0] == N
    batch = make_batch()
    with pytest.raises(ShapeError, match="heads for 3 assets, the batch has 2"):
        network(replace(batch, x=batch.x[:, :, :2], mask=batch.mask[:, :, :2]))


def test_a_regime_consists_of_a_bounded_trend_and_of_probabilities() -> None:
    regime = make_network(regimes=True).predict_regime(make_batch())
    assert regime.trend.abs().max() < 1
    assert ((regime.momentum > 0) & (regime.momentum < 1)).all()
    torch.testing.assert_close(regime.volatility.sum(-1), torch.ones(B, L, N))


def test_a_regime_readout_passes_no_gradient_into_the_encoder() -> None:
    network = make_network(regimes=True)
    network(make_batch()).regime.sum().backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())


def test_a_network_without_the_option_regimes_refuses_to_predict_a_regime() -> None:
    with pytest.raises(StateError, match="regimes = true"):
        make_network().predict_regime(make_batch())


def test_a_network_continues_from_a_saved_state() -> None:
    network = make_network("mamba")
    batch = make_batch()
    state = network.initial_state(B, N)
    for bar in range(3):
        _, state = network.step(batch.bars(bar, bar + 1), state)
    saved = [tensor.clone() for tensor in flatten_state(state)]
    restored = unflatten_state(saved, like=network.initial_state(B, N))
    expected, _ = network.step(batch.bars(3, 4), state)
    continued, _ = network.step(batch.bars(3, 4), restored)
    assert torch.equal(continued.logits, expected.logits)
    with pytest.raises(StateError, match="run the bars again"):
        unflatten_state(saved[:-1], like=network.initial_state(B, N))


@pytest.mark.parametrize(("hold", "expected_share"), [(0.0, "none"), (0.2, "some"), (1.0, "all")])
def test_on_demand_steps_equal_the_whole_sequence_at_every_share_of_bars_switched_on(
    hold: float, expected_share: str
) -> None:
    batch = make_batch()
    network = make_network("on_demand", hold=hold)
    torch.manual_seed(1)
    for heads in (network.cheap, network.heads):
        torch.nn.init.normal_(heads.weight)
    is_on = network.is_switched_on(network.cheap(network.gate(batch), batch.mask))
    assert {0.0: "none", 1.0: "all"}.get(float(is_on.float().mean()), "some") == expected_share
    for stepped, expected in zip(run_step_by_step(network, batch), outputs(network(batch)), strict=True):
        torch.testing.assert_close(stepped, expected, rtol=1e-4, atol=1e-4)


def test_on_demand_skips_the_encoder_when_no_asset_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("on_demand", hold=0.0)
    batch = make_batch()

    def fail_if_called(*arguments: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(network.encoder, "step", fail_if_called)
    run_step_by_step(network, batch)


@pytest.mark.parametrize("model", ["s4", "s4d", "dss", "s5"])
def test_a_network_that_reads_later_bars_cannot_be_built(model: str) -> None:
    with pytest.raises(NotCausalError, match="leave bidirectional out"):
        make_network(model, bidirectional=True)


def test_a_nan_feature_is_refused_with_its_position_only_where_there_is_a_bar() -> None:
    network = make_network()
    batch = make_batch()
    x = batch.x.clone()
    x[0, 4, 1, 0] = torch.nan
    batch.mask[0, 4, 1] = True
    with pytest.raises(NotFiniteError, match="nan at chunk 0, bar 4, asset 1, feature 0"):
        network(replace(batch, x=x))
    batch.mask[0, 4, 1] = False
    assert torch.isfinite(network(replace(batch, x=x)).returns).all()


def test_tensors_of_another_shape_or_dtype_are_refused() -> None:
    network = make_network()
    batch = make_batch()
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


def test_a_batch_of_one_bar_is_forecast() -> None:
    assert make_network()(make_batch().bars(5, 6)).logits.shape == (B, 1, N, N_CLASSES)


def test_the_state_of_another_network_or_number_of_chunks_is_refused() -> None:
    network = make_network()
    first_bar = make_batch().bars(0, 1)
    with pytest.raises(StateError, match="initial_state"):
        network.step(first_bar, make_network("mamba").initial_state(B, N))
    with pytest.raises(StateError, match="initial_state"):
        network.step(first_bar, network.initial_state(B - 1, N))


@pytest.mark.parametrize(
    ("model", "options"), [("lstm", {"irregular": True}), ("s4d", {"pooling": "max"}), ("s4d", {"weights": "long"})]
)
def test_options_that_a_network_does_not_support_are_refused(model: str, options: dict[str, object]) -> None:
    with pytest.raises(SizeError):
        make_network(model, **options)


@pytest.mark.parametrize("options", [{"layer": "mamba"}, {"pooling": "mean"}, {"discretisation": "bilinear"}])
def test_options_that_on_demand_does_not_support_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(SizeError, match="leave"):
        OnDemand(Spec("on_demand"), F, H, **options)


def test_a_block_normalises_its_input_before_the_layer_and_mixes_the_channels_after_it() -> None:
    """S4-17: y = x + GLU(layer(norm(x))), here with a running sum as the layer."""

    class RunningSum(torch.nn.Module):
        def forward(self, x: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
            return x.cumsum(1), state

    torch.manual_seed(0)
    d_model = 4
    block = Block(RunningSum(), d_model, dropout=0.0, adds_glu=True).eval()
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    x = 3 + 5 * torch.randn(2, 6, d_model)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + block.norm.eps).sqrt()
    layer_output = (normed * block.norm.weight + block.norm.bias).cumsum(1)
    mixed = torch.nn.functional.gelu(layer_output) @ block.mix.weight.T + block.mix.bias
    value, gate = mixed.chunk(2, dim=-1)
    y, _ = block(x)
    torch.testing.assert_close(y, x + value * torch.sigmoid(gate))
