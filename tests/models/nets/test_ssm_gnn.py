"""The fusions of the hybrids: what is run in which order, what is heard, what is learned, and what is refused.

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
from models.nets.sequence import flat
from models.nets.spec import Spec
from models.nets.ssm_gnn import SsmGnn, attention_edges, ssm_gnn
from models.training.artifact import load_artifact
from models.training.fit import fit_fold, predict_fold

B, L, N, F, H = 2, 9, 4, 3, 2
FUSIONS: list[dict[str, Any]] = [
    {"fusion": "sequential"},
    {"fusion": "interleaved", "order": "ssm_gnn"},
    {"fusion": "interleaved", "order": "gnn_ssm"},
    {"fusion": "parallel"},
    {"fusion": "parallel", "pooling": "last"},
    {"parts": "gnn", "pooling": "mean", "hops": 2},
]
every_fusion = pytest.mark.parametrize("fusion", FUSIONS, ids=lambda o: "_".join(str(v) for v in o.values()))


def network_of(**options: Any) -> SsmGnn:
    """A small network in evaluation mode that says something."""
    torch.manual_seed(0)
    spec = Spec("ssm_gnn", d_model=8, n_layers=2, d_state=4, dropout=0.0)
    network = ssm_gnn(spec, F, H, **options).eval()
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network


def batch_of(adjacency: Tensor | None = None) -> Batch:
    """Random bars, all there, and one graph in force from the third bar on."""
    torch.manual_seed(1)
    graph = (torch.ones(N, N) if adjacency is None else adjacency)[None]
    step = torch.where(torch.arange(L) < 2, -1, 0).expand(B, L)
    return Batch(
        torch.randn(B, L, N, F), torch.ones(B, L, N, dtype=torch.bool), torch.ones(B, L), GraphSteps(graph, step)
    )


def changed(network: SsmGnn, batch: Batch, other: Batch) -> Tensor:
    """Where a forecast moved, (b, l, n) bool."""
    with torch.no_grad():
        return (network(batch).returns != network(other).returns).any(-1)


def nudged(batch: Batch, bar: int, asset: int) -> Batch:
    x = batch.x.clone()
    x[:, bar, asset] += 1.0
    return replace(batch, x=x)


@pytest.mark.parametrize(("layer", "messages"), [*product(["s4d", "mamba", "gru"], MESSAGE_LAYERS)])
@pytest.mark.parametrize("fusion", ["sequential", "interleaved", "parallel"])
def test_any_layer_goes_with_any_messages_step_by_step_too(fusion: str, layer: str, messages: str) -> None:
    network, batch = network_of(fusion=fusion, layer=layer, message_passing=messages), batch_of()
    expected, state, steps = network(batch).returns, network.initial_state(B, N), []
    for t in range(L):
        forecast, state = network.step(batch.bars(t, t + 1), state)
        steps.append(forecast.returns)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-5)
    assert all(type(part) is tuple and all(type(t) is Tensor for t in part) for part in state)


@pytest.mark.parametrize(("name", "kind"), [("gcn", GCN), ("gat", GAT), ("gatv2", GATv2), ("sage", SAGE)])
def test_the_options_choose_the_messages(name: str, kind: type[nn.Module]) -> None:
    assert [type(e.messages) for e in network_of(message_passing=name, hops=3).exchanges] == [kind] * 3


def by_hand(network: SsmGnn, batch: Batch, fusion: dict[str, Any]) -> Tensor:
    """The hidden values before the last norm, the formulas of the module's docstring written out."""
    adjacency = batch.graph.at_bars(batch.mask)

    def over_time(block: nn.Module, h: Tensor) -> Tensor:
        return torch.stack([block(h[:, :, i])[0] for i in range(N)], dim=2)

    def messages(exchange: nn.Module, h: Tensor) -> Tensor:
        said = torch.stack([exchange.messages(exchange.norm(h[:, t]), adjacency[:, t]) for t in range(L)], dim=1)
        return h + elu(said)

    h, blocks, exchanges = network.embedding(batch), network.blocks, network.exchanges
    means = torch.stack([h[:, : t + 1].mean(1) for t in range(L)], dim=1)
    if fusion.get("fusion") == "interleaved":
        for block, exchange in zip(blocks, exchanges, strict=True):
            if fusion["order"] == "ssm_gnn":
                h = messages(exchange, over_time(block, h))
            else:
                h = over_time(block, messages(exchange, h))
    elif fusion.get("fusion") == "parallel":
        heard = messages(exchanges[0], h if fusion.get("pooling") == "last" else means)
        h = network.join(torch.cat([over_time(blocks[1], over_time(blocks[0], h)), heard], dim=-1))
    elif fusion.get("parts") == "gnn":
        h = messages(exchanges[1], messages(exchanges[0], means))
    else:
        h = messages(exchanges[0], over_time(blocks[1], over_time(blocks[0], h)))
    return h


@every_fusion
def test_a_fusion_is_its_formula(fusion: dict[str, Any]) -> None:
    network, batch = network_of(**fusion), batch_of()
    h = by_hand(network, batch, fusion)
    torch.testing.assert_close(network(batch).returns, network.heads(network.norm(h), batch.mask).returns)


@every_fusion
@pytest.mark.parametrize("learned", [False, True])
def test_news_reach_the_neighbours_at_their_bar_and_never_earlier(fusion: dict[str, Any], learned: bool) -> None:
    network = network_of(**fusion, **({"graph": "attention"} if learned else {}))
    moved = changed(network, batch_of(), nudged(batch_of(), bar=4, asset=0))
    assert not moved[:, :4].any()
    assert moved[:, 4].all()


def test_messages_before_the_layer_are_remembered_those_after_it_are_not() -> None:
    """Asset 1 hears asset 0 at bar 4 only. One block; what it heard before its layer is still in the layer's state."""
    adjacency = torch.eye(N)
    adjacency[1, 0] = 1.0
    batch = batch_of(adjacency)
    batch = replace(batch, graph=replace(batch.graph, step=torch.where(torch.arange(L) == 4, 0, -1).expand(B, L)))
    for order, later in (("ssm_gnn", False), ("gnn_ssm", True)):
        spec = Spec("ssm_gnn", d_model=8, n_layers=1, d_state=4, dropout=0.0)
        network = ssm_gnn(spec, F, H, fusion="interleaved", order=order).eval()
        nn.init.normal_(network.heads.weight)
        moved = changed(network, batch, nudged(batch, bar=4, asset=0))
        assert moved[:, 4, 1].all() and bool(moved[:, 5:, 1].any()) == later


@every_fusion
def test_an_asset_without_a_bar_is_heard_by_nobody(fusion: dict[str, Any]) -> None:
    """The graph is in force at bar 4 alone, where asset 0 has no bar: what it learned before stays its own."""
    network, batch = network_of(**fusion), batch_of()
    batch.mask[:, 4, 0] = False
    graph = replace(batch.graph, step=torch.where(torch.arange(L) == 4, 0, -1).expand(B, L))
    batch = replace(batch, graph=graph)
    assert not changed(network, batch, nudged(batch, bar=3, asset=0))[:, :, 1:].any()


def test_each_half_alone_is_the_whole_without_the_other() -> None:
    assert len(network_of(parts="ssm").exchanges) == 0 and len(network_of(parts="gnn").blocks) == 0
    assert not changed(network_of(parts="ssm"), batch_of(), nudged(batch_of(), 4, 0))[:, :, 1:].any()
    assert not changed(network_of(parts="gnn"), batch_of(), nudged(batch_of(), 4, 0))[:, 5:].any()
    assert network_of(parts="gnn").initial_state(B, N) == ()
    assert len(flat(network_of(parts="gnn", pooling="mean").initial_state(B, N))) == 2


@pytest.mark.parametrize("messages", ["gcn", "gat", "gatv2"])
def test_drawn_edges_are_learned(messages: str) -> None:
    network = network_of(graph="attention", message_passing=messages, top_k=2).train()
    network(batch_of()).returns.square().sum().backward()
    for parameter in network.exchanges[0].edges.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_the_drawn_graph_comes_back_as_a_table() -> None:
    network, batch = network_of(graph="attention", top_k=2), batch_of()
    mask = batch.mask.clone()
    mask[0, -1, 3] = False
    batch = Batch(batch.x[:1], mask[:1], batch.gaps[:1])
    names, bar = ("A", "B", "C", "D"), np.datetime64("2024-06-28", "us")
    drawn = attention_edges(network, batch, bar, names)
    assert (drawn.graph, drawn.as_of, drawn.nodes, drawn.directed) == ("attention", bar, names, True)
    assert 3 not in drawn.src and (drawn.src != drawn.dst).all()
    assert [np.count_nonzero(drawn.dst == i) for i in range(4)] == [2, 2, 2, 2]
    edges = network(batch).edges[0, -1].detach()
    np.testing.assert_allclose(drawn.weight, edges[drawn.dst, drawn.src], atol=1e-6)
    assert np.array_equal(drawn.weight, np.round(drawn.weight, 6))
    stepped, state = None, network.initial_state(1, N)
    for t in range(L):
        stepped, state = network.step(batch.bars(t, t + 1), state)
    torch.testing.assert_close(stepped.edges[0, 0], edges, rtol=0, atol=1e-6)
    with pytest.raises(SizeError, match="reads the correlation graph and draws none"):
        attention_edges(network_of(), batch_of(), bar, names)


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_a_drawn_graph_moves_with_the_assets_and_never_back_in_time(top_k: int | None) -> None:
    network, batch, order = network_of(graph="attention", top_k=top_k, fusion="interleaved"), batch_of(), [2, 0, 3, 1]
    moved = changed(network, batch, nudged(batch, bar=4, asset=0))
    assert not moved[:, :4].any() and moved[:, 4:].any()
    shuffled = network(replace(batch, x=batch.x[:, :, order]))
    forecast = network(batch)
    torch.testing.assert_close(shuffled.returns, forecast.returns[:, :, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.edges, forecast.edges[:, :, order][:, :, :, order], rtol=1e-4, atol=1e-5)


def test_in_training_no_graph_is_kept() -> None:
    assert network_of(graph="attention").train()(batch_of()).edges is None


def test_the_pretrained_half_is_taken_over_and_kept_when_frozen() -> None:
    alone, both = network_of(parts="ssm"), network_of(pretrained="ssm", frozen=True)
    with torch.no_grad():
        alone.blocks[0].mix.weight.normal_()
    both.load_pretrained(alone.state_dict())
    assert torch.equal(both.blocks[0].mix.weight, alone.blocks[0].mix.weight)
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


def test_a_fold_fits_the_first_half_on_itself_then_the_rest(market, tmp_path) -> None:
    arguments = market.arguments("ssm_gnn")
    spec = replace(arguments["spec"], options={"pretrained": "ssm", "frozen": True})
    fitted = fit_fold(**{**arguments, "spec": spec}, artifact=tmp_path / "both.safetensors")
    (first,) = set(tmp_path.glob("*.safetensors")) - {fitted.artifact}
    written = first.stat().st_mtime_ns
    alone, both = (load_artifact(path).network.state_dict() for path in (first, fitted.artifact))
    kept = [name for name in both if name.startswith(("embedding", "blocks"))]
    assert kept and all(torch.equal(alone[name], both[name]) for name in kept)
    assert not any(name.startswith("exchanges") for name in alone)
    again = fit_fold(**{**arguments, "spec": spec}, artifact=tmp_path / "both.safetensors")
    assert again.sha256 == fitted.sha256 and first.stat().st_mtime_ns == written
    first.write_bytes(first.read_bytes()[:400])
    assert fit_fold(**{**arguments, "spec": spec}, artifact=tmp_path / "both.safetensors").sha256 == fitted.sha256
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
        ({"graph": "attention", "message_passing": "sage"}, SizeError, "sage hears no weights"),
        ({"frozen": True}, SizeError, "say which is pretrained"),
        ({"pretrained": "ssm", "parts": "ssm"}, SizeError, "there is no other part"),
        ({"bidirectional": True}, NotCausalError, "bars that are still to come"),
        ({"depth": 2}, TypeError, "depth"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        network_of(**options)


def test_a_batch_without_the_graph_and_a_state_of_another_network_are_refused() -> None:
    network, batch = network_of(), batch_of()
    with pytest.raises(ShapeError, match="reads the correlation graph of its bars; the batch has none"):
        network(replace(batch, graph=None))
    with pytest.raises(StateError, match="the state has 0 parts, this network 2"):
        network.step(batch.bars(0, 1), ())


def test_options_of_a_spec_choose_the_graph_whose_snapshots_are_read() -> None:
    read = partial(Spec, "ssm_gnn")
    assert zoo.graph_of(read()) == "correlation"
    assert zoo.graph_of(read(options={"graph": "sector"})) == "sector"
    assert zoo.graph_of(read(options={"graph": "attention"})) is None
    assert zoo.graph_of(read(options={"parts": "ssm"})) is None
    assert zoo.graph_of(Spec("ssm_gnn_sector")) == "sector"
    assert zoo.graph_of(Spec("s4d")) is None
    assert zoo.graph_of(Spec("ssm")) is None
    assert zoo.graph_of(Spec("ssm", options={"parts": "both"})) == "correlation"
    assert zoo.graph_of(Spec("ssm_gnn_attention", options={"graph": "sector"})) == "sector"


def test_the_heads_forecast_return_volatility_and_class() -> None:
    forecast: Forecast = network_of(fusion="interleaved")(batch_of())
    assert forecast.returns.shape == (B, L, N, H)
    assert forecast.log_volatility.shape == (B, L, N)
    assert forecast.logits.shape == (B, L, N, 5) and forecast.logits_3.shape == (B, L, N, 3)
