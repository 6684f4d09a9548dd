"""The battery: tests that every network of the zoo must pass (MAM-30, HYB-30; ids: .github/sources.md), a new entry of
the zoo included.

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
from models.nets.forecast import N_CLASSES, Batch, Forecast, GraphSteps
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
WITHOUT_RANDOMNESS = ("ridge", "garch")  # their fit draws no random numbers, so the seed has no effect
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
    """Rows whose targets depend on the features of the bar and of the bar before it."""
    n_bars = 160
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, n_bars, N, F, generator=generator)
    noise = torch.randn(n_bars, N, H, generator=generator)
    mask = torch.rand(1, n_bars, N, generator=generator) < 0.95
    current = x[0]
    previous = x[0].roll(1, dims=0)
    returns = (0.8 * current[..., 0] + 0.6 * previous[..., 1])[..., None] + 0.3 * noise
    return TrainingRows(
        batch=Batch(x, mask, torch.ones(1, n_bars)),
        returns=returns,
        log_volatility=0.3 * current[..., 0] + 0.2 * previous[..., 2] + 0.1 * noise[..., 0],
        class_5=torch.bucketize(returns[..., 0].contiguous(), torch.tensor([-1.0, -0.25, 0.25, 1.0])),
        training_range=(0, 120),
        validation_range=(122, n_bars),
        feature_names=("return_1", "other", "volatility_60"),  # GARCH reads the first and the last by name
        horizons=(1, 5),
        seed=seed,
    )


def skip_estimator(network: nn.Module) -> None:
    """Skips the test if the network is an Estimator."""
    if isinstance(network, Estimator):
        pytest.skip("an estimator has no gradient, no dropout and no layer")


def make_batch(seed: int = 1) -> Batch:
    """Random bars, a tenth of them missing, and a new graph snapshot every 6 bars, the first of them at bar 6."""
    torch.manual_seed(seed)
    has_edge = torch.rand(S, N, N) < 0.5
    has_edge = has_edge | has_edge.transpose(1, 2) | torch.eye(N, dtype=torch.bool)
    weights = torch.rand(S, N, N) + 0.1
    snapshot_index = (torch.arange(L) // 6 - 1).expand(B, L)
    return Batch(
        x=torch.randn(B, L, N, F),
        mask=torch.rand(B, L, N) < 0.9,
        gaps=torch.ones(B, L),
        graph=GraphSteps(torch.where(has_edge, weights, 0.0), snapshot_index),
    )


def outputs(forecast: Forecast) -> list[Tensor]:
    """The outputs that every network has."""
    return [forecast.returns, forecast.log_volatility, forecast.logits]


def assert_close(one: Forecast, other: Forecast) -> None:
    for a, b in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def largest_change(one: Forecast, other: Forecast, bars: slice) -> float:
    """The largest absolute difference of two forecasts in these bars."""
    differences = [a - b for a, b in zip(outputs(one), outputs(other), strict=True)]
    return max(float(difference[:, bars].detach().abs().max()) for difference in differences)


@every_network
def test_one_forecast_per_bar_and_asset(name: str) -> None:
    """S4-32, SSF-04: networks are built from d_model, n_layers and d_state, and forecast return, volatility, class."""
    forecast = make_network(name)(make_batch())
    assert forecast.returns.shape == (B, L, N, H)
    assert forecast.log_volatility.shape == (B, L, N)
    assert forecast.logits.shape == (B, L, N, N_CLASSES)
    assert all(v.dtype == torch.float32 and torch.isfinite(v).all() for v in outputs(forecast))


@every_network
def test_slow_form_equals_fast_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow form of a layer is its ``reference``, or its ``step`` bar by bar if it has no reference."""
    network = make_network(name)
    batch = make_batch()
    skip_estimator(network)
    fast = network(batch)
    n_slow_layers = 0
    for layer in network.modules():
        is_encoder = layer is network or hasattr(layer, "embedding")
        if hasattr(layer, "reference"):
            slow_forward = layer.reference
        elif hasattr(layer, "initial_state") and not is_encoder and not isinstance(layer, RunningMean):
            slow_forward = partial(run_step_by_step, deepcopy(layer))
        else:  # test_sequence.py compares the two forms of RunningMean
            continue
        monkeypatch.setattr(layer, "forward", slow_forward)
        n_slow_layers += 1
    assert n_slow_layers, "no layer of the network has a slow form to compare with"
    assert_close(network(batch), fast)


def run_step_by_step(layer: nn.Module, x: Tensor, state: None = None, **gaps: Tensor) -> tuple[Tensor, object]:
    """The outputs of a sequence layer, computed by its ``step`` from the initial state, and the last state."""
    state = layer.initial_state(len(x))
    ys = []
    for bar, x_bar in enumerate(x.unbind(1)):
        y, state = layer.step(x_bar, state, *(g[:, bar] for g in gaps.values()))
        ys.append(y)
    return torch.stack(ys, dim=1), state


@every_network
@pytest.mark.parametrize("bar", [1, 7, L - 1])
def test_later_bars_change_no_earlier_forecast(name: str, bar: int) -> None:
    """Forecasts are equal to the bit when features, mask, gaps and graph differ from ``bar`` on."""
    network = make_network(name)
    batch = make_batch()
    other = make_batch(seed=2)
    is_late = torch.arange(L) >= bar
    assert batch.graph is not None and other.graph is not None
    adjacency = torch.cat([batch.graph.adjacency, other.graph.adjacency])
    other_snapshot = S + batch.graph.snapshot_index + 1
    changed = Batch(
        x=torch.where(is_late[:, None, None], 10 * other.x, batch.x),
        mask=torch.where(is_late[:, None], other.mask, batch.mask),
        gaps=torch.where(is_late, 5.0, batch.gaps),
        graph=GraphSteps(adjacency, torch.where(is_late, other_snapshot, batch.graph.snapshot_index)),
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
def test_features_where_the_mask_is_false_are_never_read(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    masked = replace(batch, x=torch.where(batch.mask[..., None], batch.x, torch.nan))
    for a, b in zip(outputs(network(batch)), outputs(network(masked)), strict=True):
        assert torch.equal(a, b)


@every_network
def test_the_order_of_the_assets_changes_no_forecast(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert batch.graph is not None
    graph = replace(batch.graph, adjacency=batch.graph.adjacency[:, order][:, :, order])
    shuffled = replace(batch, x=batch.x[:, :, order], mask=batch.mask[:, :, order], graph=graph)
    forecast = network(batch)
    expected = Forecast(*(output[:, :, order] for output in outputs(forecast)))
    for buffer in getattr(network, "per_asset", ()):  # values fitted for each asset have to be reordered too
        setattr(network, buffer, network.get_buffer(buffer)[order])
    assert_close(network(shuffled), expected)


@every_network
def test_only_networks_that_declare_a_graph_change_their_forecasts_with_its_edges(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    assert batch.graph is not None
    without_edges = replace(batch, graph=replace(batch.graph, snapshot_index=torch.full((B, L), -1)))
    change = largest_change(network(batch), network(without_edges), slice(None))
    assert (change > 0) == (graph_of(Spec(name)) is not None)


@every_network
def test_step_by_step_equals_the_whole_sequence(name: str) -> None:
    network = make_network(name)
    batch = make_batch()
    if not hasattr(network, "step"):
        pytest.skip(f"{name} has no recurrent form")
    whole = network(batch)
    for has_gradients in (True, False):  # without gradients a step may run a compiled kernel
        state = network.initial_state(B, N)
        steps = []
        with torch.set_grad_enabled(has_gradients):
            for bar in range(L):
                forecast, state = network.step(batch.bars(bar, bar + 1), state)
                steps.append(outputs(forecast))
        stepped = [torch.cat(bars, dim=1) for bars in zip(*steps, strict=True)]
        for output, expected in zip(stepped, outputs(whole), strict=True):
            relative_error = (output - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
            assert relative_error < 1e-5


@every_network
def test_every_network_overfits_eight_rows(name: str) -> None:
    """Four bars of two assets; the loss falls below a hundredth of the loss of a forecast of 0."""
    network = make_network(name).train()
    skip_estimator(network)
    torch.manual_seed(0)
    batch = Batch(
        x=torch.randn(1, 4, 2, F),
        mask=torch.ones(1, 4, 2, dtype=torch.bool),
        gaps=torch.ones(1, 4),
        graph=GraphSteps(adjacency=torch.ones(1, 2, 2), snapshot_index=torch.zeros(1, 4, dtype=torch.int64)),
    )
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
    path = tmp_path / "network.safetensors"
    save_artifact(path, header, network.state_dict())
    loaded = load_artifact(path)
    assert loaded.header == header
    for a, b in zip(outputs(network(make_batch())), outputs(loaded.network(make_batch())), strict=True):
        assert torch.equal(a, b)


@every_network
def test_forecasts_in_training_depend_on_the_seed_alone(name: str) -> None:
    def returns_in_training(seed: int, global_seed: int) -> Tensor:
        network = make_network(name, dropout=0.5, seed=seed).train()
        reseed(network, seed)
        torch.manual_seed(global_seed)  # torch's global generator must not matter
        return network(make_batch()).returns

    first = returns_in_training(seed=0, global_seed=0)
    assert torch.equal(first, returns_in_training(seed=0, global_seed=1))
    if name not in WITHOUT_RANDOMNESS:
        assert not torch.equal(first, returns_in_training(seed=1, global_seed=3))


@every_network
def test_dropout_draws_from_its_own_generator(name: str) -> None:
    """S4-16, S4-31: no network uses torch's own dropout."""
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
    trained_outputs = outputs(forecast)
    if forecast.co_movement is not None:
        trained_outputs.append(forecast.co_movement)
    if forecast.links is not None:
        trained_outputs.append(forecast.links.logits)
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
