"""The fusions of SSM-GNN networks: the order of their parts, who receives messages, what is learned and refused.

Glossary: b chunks · l bars · n assets · f features · h horizons.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from models import zoo
from models.layers.errors import NotCausalError, ShapeError, SizeError, StateError
from models.layers.message_passing import GAT, GCN, MESSAGE_LAYERS, SAGE, GATv2
from models.nets.forecast import Batch, Forecast, GraphSteps
from models.nets.sequence import flatten_state
from models.nets.spec import Spec
from models.nets.ssm_gnn import LEARNED, SsmGnn, learned_graph, ssm_gnn
from models.training.artifact import load_artifact
from models.training.fit import fit_fold, predict_fold

B = 2
L = 9
N = 4
F = 3
H = 2
FUSIONS: list[dict[str, Any]] = [
    {"fusion": "sequential"},
    {"fusion": "interleaved", "order": "ssm_gnn"},
    {"fusion": "interleaved", "order": "gnn_ssm"},
    {"fusion": "parallel"},
    {"fusion": "parallel", "pooling": "last"},
    {"parts": "gnn", "pooling": "mean", "hops": 2},
]
every_fusion = pytest.mark.parametrize("fusion", FUSIONS, ids=lambda o: "_".join(str(v) for v in o.values()))


def make_network(**options: Any) -> SsmGnn:
    """A small network in evaluation mode with random heads, whose forecasts are not near 0."""
    torch.manual_seed(0)
    spec = Spec("ssm_gnn", d_model=8, n_layers=2, d_state=4, dropout=0.0)
    network = ssm_gnn(spec, F, H, **options).eval()
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network


def make_batch(adjacency: Tensor | None = None) -> Batch:
    """Random bars, none missing, and one graph in force from the third bar on."""
    torch.manual_seed(1)
    graph = (torch.ones(N, N) if adjacency is None else adjacency)[None]
    step = torch.where(torch.arange(L) < 2, -1, 0).expand(B, L)
    return Batch(
        torch.randn(B, L, N, F), torch.ones(B, L, N, dtype=torch.bool), torch.ones(B, L), GraphSteps(graph, step)
    )


def changed_forecasts(network: SsmGnn, batch: Batch, other: Batch) -> Tensor:
    """Which forecasts differ between two batches, (b, l, n) bool."""
    with torch.no_grad():
        return (network(batch).returns != network(other).returns).any(-1)


def nudged(batch: Batch, bar: int, asset: int) -> Batch:
    """The batch with 1 added to the features of one bar of one asset."""
    x = batch.x.clone()
    x[:, bar, asset] += 1.0
    return replace(batch, x=x)


@pytest.mark.parametrize(("layer", "messages"), [*product(["s4d", "mamba", "gru"], MESSAGE_LAYERS)])
@pytest.mark.parametrize("fusion", ["sequential", "interleaved", "parallel"])
def test_with_any_layer_and_any_messages_steps_equal_the_whole_sequence(fusion: str, layer: str, messages: str) -> None:
    """HYB-02: also with Mamba. HYB-34: bar by bar, as a live program reads."""
    network = make_network(fusion=fusion, layer=layer, message_passing=messages)
    batch = make_batch()
    expected = network(batch).returns
    state = network.initial_state(B, N)
    steps = []
    for t in range(L):
        forecast, state = network.step(batch.bars(t, t + 1), state)
        steps.append(forecast.returns)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-5)
    assert all(type(part) is tuple and all(type(t) is Tensor for t in part) for part in state)


@pytest.mark.parametrize(("name", "kind"), [("gcn", GCN), ("gat", GAT), ("gatv2", GATv2), ("sage", SAGE)])
def test_the_option_message_passing_selects_the_message_layer(name: str, kind: type[nn.Module]) -> None:
    assert [type(e.messages) for e in make_network(message_passing=name, hops=3).exchanges] == [kind] * 3


def expected_hidden(network: SsmGnn, batch: Batch, fusion: dict[str, Any]) -> Tensor:
    """The hidden values before the last norm, by the formulas in the docstring of ssm_gnn.py."""
    adjacency = batch.graph.at_bars(batch.mask)

    def over_time(block: nn.Module, h: Tensor) -> Tensor:
        return torch.stack([block(h[:, :, i])[0] for i in range(N)], dim=2)

    def messages(exchange: nn.Module, h: Tensor) -> Tensor:
        by_bar = [exchange.messages(exchange.norm(h[:, t]), adjacency[:, t]) for t in range(L)]
        return h + elu(torch.stack(by_bar, dim=1))

    h = network.embedding(batch)
    blocks = network.blocks
    exchanges = network.exchanges
    means = torch.stack([h[:, : t + 1].mean(1) for t in range(L)], dim=1)
    if fusion.get("fusion") == "interleaved":
        for block, exchange in zip(blocks, exchanges, strict=True):
            if fusion["order"] == "ssm_gnn":
                h = messages(exchange, over_time(block, h))
            else:
                h = over_time(block, messages(exchange, h))
    elif fusion.get("fusion") == "parallel":
        received = messages(exchanges[0], h if fusion.get("pooling") == "last" else means)
        h = network.join(torch.cat([over_time(blocks[1], over_time(blocks[0], h)), received], dim=-1))
    elif fusion.get("parts") == "gnn":
        h = messages(exchanges[1], messages(exchanges[0], means))
    else:
        h = messages(exchanges[0], over_time(blocks[1], over_time(blocks[0], h)))
    return h


@every_fusion
def test_every_fusion_equals_its_formula(fusion: dict[str, Any]) -> None:
    """HYB-12 to HYB-15: from the features over both halves to the heads."""
    network = make_network(**fusion)
    batch = make_batch()
    h = expected_hidden(network, batch, fusion)
    torch.testing.assert_close(network(batch).returns, network.heads(network.norm(h), batch.mask).returns)


@every_fusion
@pytest.mark.parametrize("learned", [False, True])
def test_a_changed_bar_changes_its_neighbours_at_that_bar_and_never_earlier(
    fusion: dict[str, Any], learned: bool
) -> None:
    network = make_network(**fusion, **({"graph": "attention"} if learned else {}))
    is_changed = changed_forecasts(network, make_batch(), nudged(make_batch(), bar=4, asset=0))
    assert not is_changed[:, :4].any()
    assert is_changed[:, 4].all()


def test_messages_before_the_layer_stay_in_its_state_and_those_after_it_do_not() -> None:
    """Asset 1 receives messages of asset 0 at bar 4 only, in a network with one block."""
    adjacency = torch.eye(N)
    adjacency[1, 0] = 1.0
    batch = make_batch(adjacency)
    batch = replace(batch, graph=replace(batch.graph, step=torch.where(torch.arange(L) == 4, 0, -1).expand(B, L)))
    for order, changes_later_bars in (("ssm_gnn", False), ("gnn_ssm", True)):
        spec = Spec("ssm_gnn", d_model=8, n_layers=1, d_state=4, dropout=0.0)
        network = ssm_gnn(spec, F, H, fusion="interleaved", order=order).eval()
        nn.init.normal_(network.heads.weight)
        is_changed = changed_forecasts(network, batch, nudged(batch, bar=4, asset=0))
        assert is_changed[:, 4, 1].all() and bool(is_changed[:, 5:, 1].any()) == changes_later_bars


@every_fusion
def test_an_asset_without_a_bar_sends_no_messages(fusion: dict[str, Any]) -> None:
    """The graph is in force at bar 4 alone, where asset 0 has no bar: its earlier bars reach no other asset."""
    network = make_network(**fusion)
    batch = make_batch()
    batch.mask[:, 4, 0] = False
    graph = replace(batch.graph, step=torch.where(torch.arange(L) == 4, 0, -1).expand(B, L))
    batch = replace(batch, graph=graph)
    assert not changed_forecasts(network, batch, nudged(batch, bar=3, asset=0))[:, :, 1:].any()


def test_a_network_of_one_half_has_no_modules_of_the_other() -> None:
    assert len(make_network(parts="ssm").exchanges) == 0 and len(make_network(parts="gnn").blocks) == 0
    assert not changed_forecasts(make_network(parts="ssm"), make_batch(), nudged(make_batch(), 4, 0))[:, :, 1:].any()
    assert not changed_forecasts(make_network(parts="gnn"), make_batch(), nudged(make_batch(), 4, 0))[:, 5:].any()
    assert make_network(parts="gnn").initial_state(B, N) == ()
    assert len(flatten_state(make_network(parts="gnn", pooling="mean").initial_state(B, N))) == 2


@pytest.mark.parametrize("messages", ["gcn", "gat", "gatv2"])
def test_learned_edges_have_a_gradient(messages: str) -> None:
    """HYB-10."""
    network = make_network(graph="attention", message_passing=messages, top_k=2).train()
    network(make_batch()).returns.square().sum().backward()
    for parameter in network.exchanges[0].edges.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_a_learned_graph_becomes_a_snapshot() -> None:
    network = make_network(graph="attention", top_k=2)
    batch = make_batch()
    mask = batch.mask.clone()
    mask[0, -1, 3] = False
    batch = Batch(batch.x[:1], mask[:1], batch.gaps[:1])
    edges = network(batch).edges[0, -1].detach()
    names = ("A", "B", "C", "D")
    as_of = np.datetime64("2024-06-28", "us")
    graph = learned_graph(LEARNED, edges.double().numpy(), as_of, names)
    assert (graph.graph, graph.as_of, graph.nodes, graph.directed) == ("attention", as_of, names, True)
    assert 3 not in graph.src and (graph.src != graph.dst).all()
    assert [np.count_nonzero(graph.dst == i) for i in range(4)] == [2, 2, 2, 2]
    np.testing.assert_allclose(graph.weight, edges[graph.dst, graph.src], atol=1e-6)
    assert np.array_equal(graph.weight, np.round(graph.weight, 6))


def test_the_learned_graph_of_a_step_equals_that_of_the_whole_sequence() -> None:
    network = make_network(graph="attention", top_k=2)
    batch = make_batch()
    batch.mask[0, -1, 3] = False
    state = network.initial_state(B, N)
    for t in range(L):
        stepped, state = network.step(batch.bars(t, t + 1), state)
    torch.testing.assert_close(stepped.edges[:, 0], network(batch).edges[:, -1], rtol=0, atol=1e-6)
    assert make_network()(batch).edges is None


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_a_learned_graph_is_reordered_with_the_assets_and_reads_no_later_bar(top_k: int | None) -> None:
    network = make_network(graph="attention", top_k=top_k, fusion="interleaved")
    batch = make_batch()
    is_changed = changed_forecasts(network, batch, nudged(batch, bar=4, asset=0))
    assert not is_changed[:, :4].any() and is_changed[:, 4:].any()
    order = [2, 0, 3, 1]
    shuffled = network(replace(batch, x=batch.x[:, :, order]))
    forecast = network(batch)
    torch.testing.assert_close(shuffled.returns, forecast.returns[:, :, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.edges, forecast.edges[:, :, order][:, :, :, order], rtol=1e-4, atol=1e-5)


def test_in_training_a_forecast_has_no_edges() -> None:
    assert make_network(graph="attention").train()(make_batch()).edges is None


def test_the_pretrained_half_is_loaded_and_stays_fixed_when_frozen() -> None:
    """HYB-12."""
    half = make_network(parts="ssm")
    both = make_network(pretrained="ssm", frozen=True)
    with torch.no_grad():
        half.blocks[0].mix.weight.normal_()
    both.load_pretrained(half.state_dict())
    assert torch.equal(both.blocks[0].mix.weight, half.blocks[0].mix.weight)
    assert {name.split(".")[0] for name, p in both.named_parameters() if p.requires_grad} == {
        "exchanges",
        "norm",
        "heads",
    }
    spec = Spec("s4d", d_model=8, n_layers=2, d_state=4)
    both.load_pretrained(zoo.build(spec, F, H, seed=5).state_dict())
    assert torch.equal(both.blocks[0].mix.weight, zoo.build(spec, F, H, seed=5).encoder.blocks[0].mix.weight)
    with pytest.raises(StateError, match="pretrained ssm part are missing or of another shape, the first embedding"):
        both.load_pretrained(zoo.build(replace(spec, d_model=16), F, H).state_dict())


def test_a_fold_fits_the_pretrained_half_alone_and_then_the_rest(market, tmp_path) -> None:
    arguments = market.arguments("ssm_gnn")
    spec = replace(arguments["spec"], options={"pretrained": "ssm", "frozen": True})
    fit = partial(fit_fold, **{**arguments, "spec": spec}, artifact=tmp_path / "both.safetensors")
    fitted = fit()
    (half_path,) = set(tmp_path.glob("*.safetensors")) - {fitted.artifact}
    written_at = half_path.stat().st_mtime_ns
    half, both = (load_artifact(path).network.state_dict() for path in (half_path, fitted.artifact))
    frozen = [name for name in both if name.startswith(("embedding", "blocks"))]
    assert frozen and all(torch.equal(half[name], both[name]) for name in frozen)
    assert not any(name.startswith("exchanges") for name in half)
    assert fit().sha256 == fitted.sha256 and half_path.stat().st_mtime_ns == written_at
    half_path.write_bytes(half_path.read_bytes()[:400])
    assert fit().sha256 == fitted.sha256
    assert predict_fold(fitted.artifact, market.features, market.side_inputs, market.folds[0]).valid.any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fusion": "stacked"}, SizeError, "fusion is 'stacked'; choose one of sequential, interleaved, parallel"),
        ({"order": "both"}, SizeError, "order is 'both'"),
        ({"parts": "none"}, SizeError, "parts is 'none'"),
        ({"pooling": "max"}, SizeError, "pooling is 'max'"),
        ({"message_passing": "gin"}, SizeError, "message_passing is 'gin'; choose one of gcn, gat, gatv2, sage"),
        ({"layer": "s6"}, SizeError, "no sequence layer 's6'"),
        ({"heads": 3}, SizeError, "d_model 8 is not divisible by 3 heads"),
        ({"hops": 0}, SizeError, "hops is 0"),
        ({"graph": "attention", "top_k": 0}, SizeError, "top_k is 0"),
        ({"graph": "attention", "message_passing": "sage"}, SizeError, "sage reads no edge weights"),
        ({"frozen": True}, SizeError, "say which is pretrained"),
        ({"pretrained": "ssm", "parts": "ssm"}, SizeError, "there is no other part"),
        ({"bidirectional": True}, NotCausalError, "bars that are still to come"),
        ({"depth": 2}, TypeError, "depth"),
    ],
)
def test_options_that_cannot_be_built_are_refused_by_name(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_network(**options)


def test_a_batch_without_the_graph_and_a_state_of_another_network_are_refused() -> None:
    network = make_network()
    batch = make_batch()
    with pytest.raises(ShapeError, match="reads the correlation graph of its bars; the batch has none"):
        network(replace(batch, graph=None))
    with pytest.raises(StateError, match="the state has 0 parts, this network 2"):
        network.step(batch.bars(0, 1), ())


def test_the_options_of_a_spec_select_the_graph_whose_snapshots_are_read() -> None:
    assert zoo.graph_of(Spec("ssm_gnn")) == "correlation"
    assert zoo.graph_of(Spec("ssm_gnn", options={"graph": "sector"})) == "sector"
    assert zoo.graph_of(Spec("ssm_gnn", options={"graph": "attention"})) is None
    assert zoo.graph_of(Spec("ssm_gnn", options={"parts": "ssm"})) is None
    assert zoo.graph_of(Spec("ssm_gnn_sector")) == "sector"
    assert zoo.graph_of(Spec("s4d")) is None
    assert zoo.graph_of(Spec("ssm")) is None
    assert zoo.graph_of(Spec("ssm", options={"parts": "both"})) == "correlation"
    assert zoo.graph_of(Spec("ssm_gnn_attention", options={"graph": "sector"})) == "sector"


def test_the_heads_forecast_return_volatility_and_class() -> None:
    """HYB-16."""
    forecast: Forecast = make_network(fusion="interleaved")(make_batch())
    assert forecast.returns.shape == (B, L, N, H)
    assert forecast.log_volatility.shape == (B, L, N)
    assert forecast.logits.shape == (B, L, N, 5)
