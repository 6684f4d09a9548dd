"""The tests that every network of the zoo passes (MAM-30, HYB-30); a new entry is tested without further work.

Glossary: b chunks · l bars · n assets · f features · h horizons · s snapshots.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.features.scaling import Scaler
from models.layers.dropout import Dropout, reseed
from models.nets.estimators import Estimator, TrainingRows
from models.nets.forecast import CLASSES, Batch, Forecast, GraphSteps
from models.nets.sequence import RunningMean
from models.training.artifact import FitResult, Header, load_artifact, save_artifact
from models.training.config import TrainConfig
from models.zoo import ENTRIES, Network, Spec, build, graph_of

B = 2
L = 24
N = 5
F = 3
H = 2
S = 4
NETWORKS = [name for name, entry in ENTRIES.items() if isinstance(entry, Network)]
WITHOUT_RANDOMNESS = ("ridge", "garch")  # their fit uses no random numbers: every seed gives the same
WITHOUT_MEMORY = ("gnn",)  # reads the current bar alone, as a comparison
every_network = pytest.mark.parametrize("name", NETWORKS)


def make_network(name: str, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """A small network in evaluation mode whose forecasts are not near 0."""
    return with_clear_outputs(build(Spec(name, d_model=8, n_layers=2, d_state=4, dropout=dropout), F, H, seed), seed)


def with_clear_outputs(network: nn.Module, seed: int) -> nn.Module:
    """The network in evaluation mode with random heads; an Estimator is fitted to a few rows instead."""
    torch.manual_seed(seed)
    if isinstance(network, Estimator):
        network.fit_rows(make_training_rows(seed))
    else:
        for parameter in network.heads.parameters():
            nn.init.normal_(parameter)
    return network.eval()


def make_training_rows(seed: int) -> TrainingRows:
    """160 bars whose targets depend on the bar and the one before it."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 160, N, F, generator=generator)
    noise = torch.randn(160, N, H, generator=generator)
    before = x[0].roll(1, dims=0)
    returns = (0.8 * x[0, ..., 0] + 0.6 * before[..., 1])[..., None] + 0.3 * noise
    classes = torch.bucketize(returns[..., 0].contiguous(), torch.tensor([-1.0, -0.25, 0.25, 1.0]))
    return TrainingRows(
        Batch(x, torch.rand(1, 160, N, generator=generator) < 0.95, torch.ones(1, 160)),
        returns,
        0.3 * x[0, ..., 0] + 0.2 * before[..., 2] + 0.1 * noise[..., 0],
        classes,
        learned=(0, 120),
        validated=(122, 160),
        columns=("return_1", "noise", "volatility_60"),
        horizons=(1, 5),
        seed=seed,
    )


def skip_estimator(network: nn.Module) -> None:
    if isinstance(network, Estimator):
        pytest.skip("an estimator has no gradient, no dropout and no layer")


def make_batch(seed: int = 1) -> Batch:
    """Random bars with gaps in the mask and a graph that starts after the third bar."""
    torch.manual_seed(seed)
    edges = torch.rand(S, N, N) < 0.5
    edges = edges | edges.transpose(1, 2) | torch.eye(N, dtype=torch.bool)
    weights = torch.rand(S, N, N) + 0.1
    step = (torch.arange(L) // 6 - 1 + torch.zeros(B, 1, dtype=torch.int64)).clamp(-1, S - 1)
    return Batch(
        torch.randn(B, L, N, F),
        torch.rand(B, L, N) < 0.9,
        torch.ones(B, L),
        GraphSteps(torch.where(edges, weights, 0.0), step),
    )


def outputs(forecast: Forecast) -> list[Tensor]:
    """The outputs that every network has."""
    return [forecast.returns, forecast.log_volatility, forecast.logits]


def assert_close(one: Forecast, other: Forecast) -> None:
    for a, b in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def largest_change(one: Forecast, other: Forecast, bars: slice) -> float:
    """The largest absolute difference of two forecasts in these bars."""
    return max(float((a - b)[:, bars].detach().abs().max()) for a, b in zip(outputs(one), outputs(other), strict=True))


@every_network
def test_one_forecast_per_bar_and_asset(name: str) -> None:
    """S4-32, SSF-04: sizes are d_model, n_layers and d_state; forecasts are of return, volatility and class."""
    forecast = make_network(name)(make_batch())
    assert [tuple(v.shape) for v in outputs(forecast)] == [(B, L, N, H), (B, L, N), (B, L, N, CLASSES)]
    assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in outputs(forecast))


@every_network
def test_slow_form_equals_fast_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow form of a layer is ``reference`` where it has one, else ``step`` bar by bar."""
    network = make_network(name)
    batch = make_batch()
    skip_estimator(network)
    fast = network(batch)
    slow_layers = 0
    for layer in network.modules():
        if hasattr(layer, "reference"):
            monkeypatch.setattr(layer, "forward", layer.reference)
        elif isinstance(layer, RunningMean):  # is tested with the sequence networks
            continue
        elif layer is not network and hasattr(layer, "initial_state") and not hasattr(layer, "embedding"):
            monkeypatch.setattr(layer, "forward", partial(run_step_by_step, deepcopy(layer)))
        else:
            continue
        slow_layers += 1
    assert slow_layers, "no layer of the network has a slow form to compare with"
    assert_close(network(batch), fast)


def run_step_by_step(layer: nn.Module, x: Tensor, state: None = None, **gaps: Tensor) -> tuple[Tensor, object]:
    """The outputs of a sequence layer, computed by its ``step``, and the last state."""
    state = layer.initial_state(len(x))
    ys = []
    for t, x_t in enumerate(x.unbind(1)):
        y, state = layer.step(x_t, state, *(g[:, t] for g in gaps.values()))
        ys.append(y)
    return torch.stack(ys, dim=1), state


@every_network
@pytest.mark.parametrize("bar", [1, 7, L - 1])
def test_later_bars_change_no_earlier_forecast(name: str, bar: int) -> None:
    """Forecasts are equal to the bit when features, mask, gaps and graph differ from ``bar`` on."""
    network = make_network(name)
    batch = make_batch()
    other = make_batch(seed=2)
    late = torch.arange(L) >= bar
    assert batch.graph is not None and other.graph is not None
    adjacency = torch.cat([batch.graph.adjacency, other.graph.adjacency])
    step = torch.where(late, batch.graph.step + 1 + S, batch.graph.step)
    changed = Batch(
        torch.where(late[:, None, None], 10 * other.x, batch.x),
        torch.where(late[:, None], other.mask, batch.mask),
        torch.where(late, 5.0, batch.gaps),
        GraphSteps(adjacency, step),
    )
    with torch.no_grad():
        before = network(batch)
        after = network(changed)
    for a, b in zip(outputs(before), outputs(after), strict=True):
        assert torch.equal(a[:, :bar], b[:, :bar])
    assert largest_change(before, after, slice(bar, None)) > 0


@every_network
def test_earlier_bars_change_later_forecasts(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    x = batch.x.clone()
    x[:, 0] += 1.0
    change = largest_change(network(batch), network(replace(batch, x=x)), slice(1, None))
    assert (change > 0) == (name not in WITHOUT_MEMORY)


@every_network
def test_values_under_a_false_mask_are_never_read(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    masked = replace(batch, x=torch.where(batch.mask[..., None], batch.x, torch.nan))
    for a, b in zip(outputs(network(batch)), outputs(network(masked)), strict=True):
        assert torch.equal(a, b)


@every_network
def test_assets_in_another_order_give_the_same_forecasts(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert batch.graph is not None
    graph = replace(batch.graph, adjacency=batch.graph.adjacency[:, order][:, :, order])
    shuffled = replace(batch, x=batch.x[:, :, order], mask=batch.mask[:, :, order], graph=graph)
    forecast = network(batch)
    expected = Forecast(
        forecast.returns[:, :, order], forecast.log_volatility[:, :, order], forecast.logits[:, :, order]
    )
    for buffer in getattr(network, "per_asset", ()):  # fitted numbers of the assets are reordered with them
        setattr(network, buffer, network.get_buffer(buffer)[order])
    assert_close(network(shuffled), expected)


@every_network
def test_a_graph_changes_the_forecasts_of_networks_that_declare_one_and_no_other(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    assert batch.graph is not None
    without_edges = replace(batch, graph=replace(batch.graph, step=torch.full((B, L), -1)))
    change = largest_change(network(batch), network(without_edges), slice(None))
    assert (change > 0) == (graph_of(Spec(name)) is not None)


@every_network
def test_step_by_step_equals_the_whole_sequence(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    if not hasattr(network, "step"):
        pytest.skip(f"{name} has no recurrent form")
    whole = network(batch)
    for has_gradients in (True, False):  # without gradients a step may run a special kernel
        state = network.initial_state(B, N)
        steps = []
        with torch.set_grad_enabled(has_gradients):
            for t in range(L):
                forecast, state = network.step(batch.bars(t, t + 1), state)
                steps.append(outputs(forecast))
        for stepped, expected in zip(zip(*steps, strict=True), outputs(whole), strict=True):
            error = (torch.cat(stepped, dim=1) - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
            assert error < 1e-5


@every_network
def test_every_network_overfits_eight_rows(name: str) -> None:
    network = make_network(name).train()
    skip_estimator(network)
    torch.manual_seed(0)
    batch = Batch(torch.randn(1, 4, 2, F), torch.ones(1, 4, 2, dtype=torch.bool), torch.ones(1, 4), make_batch().graph)
    assert batch.graph is not None
    batch = replace(batch, graph=GraphSteps(torch.ones(1, 2, 2), torch.zeros(1, 4, dtype=torch.int64)))
    target = torch.randn(1, 4, 2, H)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(200):
        loss = (network(batch).returns - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.01 * float(target.square().mean())


@every_network
def test_a_network_saved_and_loaded_gives_the_same_output(name: str, tmp_path: Path) -> None:
    spec = Spec(name, d_model=8, d_state=4)
    network = with_clear_outputs(build(spec, F, H, seed=3), seed=3)
    scaler = Scaler(("a", "b", "c"), (0.0,) * F, (1.0,) * F)
    header = Header(spec, TrainConfig(), scaler, (1, 5), 60_000_000, FitResult(1, 0.5, 10, 5, 1, "d", "c"))
    save_artifact(tmp_path / "m.safetensors", header, network.state_dict())
    loaded = load_artifact(tmp_path / "m.safetensors")
    assert loaded.header == header
    for a, b in zip(outputs(network(make_batch())), outputs(loaded.network(make_batch())), strict=True):
        assert torch.equal(a, b)


@every_network
def test_the_same_seed_gives_the_same_forecasts(name: str) -> None:
    returns = []
    for seed in (0, 0, 1):
        network = make_network(name, dropout=0.5, seed=seed).train()
        reseed(network, seed)
        torch.manual_seed(seed + len(returns))  # torch's global generator must not matter
        returns.append(network(make_batch()).returns)
    assert torch.equal(returns[0], returns[1])
    if name not in WITHOUT_RANDOMNESS:
        assert not torch.equal(returns[0], returns[2])


@every_network
def test_dropout_draws_from_its_own_generator(name: str) -> None:
    """S4-16, S4-31."""
    network = make_network(name, dropout=0.5)
    skip_estimator(network)
    module_types = [type(m) for m in network.modules()]
    assert Dropout in module_types
    assert nn.Dropout not in module_types


@every_network
def test_every_weight_has_a_gradient(name: str) -> None:
    """MAM-14, S4-16, S4-17: embedding, norms, layers, GLU and heads all take part."""
    network = make_network(name).train()
    skip_estimator(network)
    forecast = network(make_batch())
    optional = (forecast.together, forecast.links and forecast.links.logits)
    trained_outputs = [*outputs(forecast), *(v for v in optional if v is not None)]
    sum(v.square().sum() for v in trained_outputs).backward()
    without_gradient = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without_gradient == []


@pytest.mark.gpu
@every_network
def test_gpu_equals_cpu(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    on_cpu = network(batch)
    on_gpu = network.to("cuda")(batch.to("cuda"))
    assert_close(Forecast(*(v.cpu() for v in outputs(on_gpu))), on_cpu)
