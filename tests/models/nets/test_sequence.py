"""Sequence networks and their options (S4-17, S4-18, S4-26, S4-29, SSF-12, SSF-13, TRAP-13)."""

from dataclasses import replace

import pytest
import torch

from models.layers.errors import DtypeError, NotCausalError, NotFiniteError, ShapeError, SizeError, StateError
from models.nets.forecast import Batch, Forecast
from models.nets.on_demand import OnDemand
from models.nets.sequence import flat, nested
from models.zoo import Spec, build

N, F, L = 3, 2, 23


def batch_of(seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    return Batch(torch.randn(2, L, N, F), torch.rand(2, L, N) < 0.9, 1 + torch.rand(2, L))


def network_of(model: str = "s4d", **options: object) -> torch.nn.Module:
    return build(Spec(model, d_model=8, d_state=4, dropout=0.0, options=options), F, 2).eval()


def values(forecast: Forecast) -> list[torch.Tensor]:
    parts = (forecast.returns, forecast.log_volatility, forecast.logits, forecast.weights, forecast.regime)
    return [v for v in parts if v is not None]


def by_step(network: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    state, seen = network.initial_state(2, N), []
    for t in range(L):
        forecast, state = network.step(batch.bars(t, t + 1), state)
        seen.append(values(forecast))
    return [torch.cat(parts, dim=1) for parts in zip(*seen, strict=True)]


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
def test_every_option_steps_as_it_runs_and_never_looks_ahead(options: dict) -> None:
    network, batch = network_of(**options), batch_of()
    whole = values(network(batch))
    for a, b in zip(by_step(network, batch), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    changed = replace(batch, x=batch.x.clone(), gaps=batch.gaps.clone())
    changed.x[:, 15:], changed.gaps[:, 15:] = 9.0, 4.0
    for a, b in zip(values(network(changed)), whole, strict=True):
        assert torch.equal(a[:, :15], b[:, :15])


@pytest.mark.parametrize("model", ["s4", "s4d", "dss", "s5", "mamba", "mamba2"])
def test_irregular_networks_hear_the_gaps_and_others_do_not(model: str) -> None:
    batch = batch_of()
    even = replace(batch, gaps=torch.ones_like(batch.gaps))
    for irregular in (True, False):
        network = network_of(model, irregular=irregular)
        assert torch.equal(network(batch).logits, network(even).logits) != irregular


def test_weights_add_up_and_nothing_is_held_where_there_is_no_bar() -> None:
    batch = batch_of()
    batch.mask[0, 3] = False
    for kind in ("long_only", "long_short"):
        network = network_of(weights=kind)
        torch.nn.init.normal_(network.heads.weight)
        weights = network(batch).weights
        assert not weights[~batch.mask].any()
        total = weights.abs().sum(-1)
        assert (total <= 1 + 1e-6).all() and total[batch.mask.any(-1)].median() > 0.95
        assert (weights >= 0).all() == (kind == "long_only")


def test_heads_of_their_own_ask_for_as_many_assets() -> None:
    network = network_of(assets=N)
    assert network.heads.weight.shape[0] == N
    batch = batch_of()
    with pytest.raises(ShapeError, match="heads for 3 assets, the batch has 2"):
        network(replace(batch, x=batch.x[:, :, :2], mask=batch.mask[:, :, :2]))


def test_regimes_are_read_without_touching_the_encoder() -> None:
    network, batch = network_of(regimes=True), batch_of()
    regime = network.get_state(batch)
    assert regime.trend.abs().max() < 1 and ((regime.momentum > 0) & (regime.momentum < 1)).all()
    torch.testing.assert_close(regime.volatility.sum(-1), torch.ones(2, L, N))
    network(batch).regime.sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    with pytest.raises(StateError, match="regimes = true"):
        network_of().get_state(batch)


def test_three_classes_are_the_five_with_strong_and_plain_as_one() -> None:
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15]))
    nothing = torch.zeros(1)
    three = torch.softmax(Forecast(nothing, nothing, logits).logits_3, dim=-1)
    torch.testing.assert_close(three, torch.tensor([0.3, 0.3, 0.4]))


def test_a_saved_state_goes_on_where_it_was() -> None:
    network, batch = network_of("mamba"), batch_of()
    state = network.initial_state(2, N)
    for t in range(3):
        _, state = network.step(batch.bars(t, t + 1), state)
    again = nested([t.clone() for t in flat(state)], network.initial_state(2, N))
    one, other = (network.step(batch.bars(3, 4), s)[0].logits for s in (state, again))
    assert torch.equal(one, other)
    with pytest.raises(StateError, match="run the bars again"):
        nested(flat(state)[:-1], network.initial_state(2, N))


def test_on_demand_steps_as_it_runs_whatever_is_switched_on() -> None:
    batch, seen = batch_of(), set()
    for hold in (0.0, 0.2, 1.0):
        network = network_of("on_demand", hold=hold)
        torch.manual_seed(1)
        for part in (network.cheap, network.heads):
            torch.nn.init.normal_(part.weight)
        on = network.switched_on(network.cheap(network.glance(batch), batch.mask))
        seen.add(float(on.float().mean()) in (0.0, 1.0))
        for a, b in zip(by_step(network, batch), values(network(batch)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert seen == {True, False}


def test_on_demand_runs_the_encoder_for_nobody_when_nobody_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = network_of("on_demand", hold=0.0), batch_of()

    def called(*arguments: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(network.encoder, "step", called)
    assert len(by_step(network, batch)) == 3


@pytest.mark.parametrize("model", ["s4", "s4d", "dss", "s5"])
def test_a_network_that_reads_the_future_cannot_be_built(model: str) -> None:
    with pytest.raises(NotCausalError, match="leave bidirectional out"):
        network_of(model, bidirectional=True)


def test_bad_input_is_refused_with_what_to_do() -> None:
    network, batch = network_of(), batch_of()
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
        network.step(batch.bars(0, 1), network_of("mamba").initial_state(2, N))
    with pytest.raises(StateError, match="initial_state"):
        network.step(batch.bars(0, 1), network.initial_state(1, N))
    for model, options in (("lstm", {"irregular": True}), ("s4d", {"pooling": "max"}), ("s4d", {"weights": "long"})):
        with pytest.raises(SizeError):
            network_of(model, **options)
    for options in ({"layer": "mamba"}, {"pooling": "mean"}, {"discretisation": "bilinear"}):
        with pytest.raises(SizeError, match="leave"):
            OnDemand(Spec("on_demand"), F, 2, **options)
