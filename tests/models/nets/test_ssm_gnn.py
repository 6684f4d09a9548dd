"""The fusions of SSM-GNN networks: the order of their modules, which bars messages reach, and what is refused.

Glossary: b chunks · l bars · n assets · f features · h horizons. Ids such as HYB-02: .github/sources.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from models import zoo
from models.layers.errors import NotCausalError, ShapeError, SizeError, StateError
from models.layers.message_passing import GAT, GCN, MESSAGE_LAYERS, SAGE, GATv2
from models.nets.forecast import N_CLASSES, Batch, Forecast, GraphSteps
from models.nets.sequence import flatten_state
from models.nets.spec import Spec
from models.nets.ssm_gnn import LEARNED, WEIGHT_DECIMALS, SsmGnn, build_ssm_gnn, learned_snapshot
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
every_fusion = pytest.mark.parametrize("fusion_options", FUSIONS, ids=lambda o: "_".join(str(v) for v in o.values()))


def make_network(**options: Any) -> SsmGnn:
    """A small network in evaluation mode with random heads, whose forecasts are not near 0."""
    torch.manual_seed(0)
    spec = Spec("ssm_gnn", d_model=8, n_layers=2, d_state=4, dropout=0.0)
    network = build_ssm_gnn(spec, F, H, **options).eval()
    for parameter in network.heads.parameters():
        nn.init.normal_(parameter)
    return network


def make_batch(adjacency: Tensor | None = None) -> Batch:
    """Random bars, none missing, and one graph in effect from bar 2 on.

    ``adjacency`` (n, n): the weight of the edge from j to i at [i, j]; None for edges between all assets.
    """
    torch.manual_seed(1)
    if adjacency is None:
        adjacency = torch.ones(N, N)
    snapshot_index = torch.where(torch.arange(L) < 2, -1, 0).expand(B, L)
    return Batch(
        x=torch.randn(B, L, N, F),
        mask=torch.ones(B, L, N, dtype=torch.bool),
        gaps=torch.ones(B, L),
        graph=GraphSteps(adjacency[None], snapshot_index),
    )


def with_graph_at(batch: Batch, bar: int) -> Batch:
    """The batch with its graph in effect at one bar alone."""
    assert batch.graph is not None
    snapshot_index = torch.where(torch.arange(L) == bar, 0, -1).expand(B, L)
    return replace(batch, graph=replace(batch.graph, snapshot_index=snapshot_index))


def nudge(batch: Batch, bar: int, asset: int) -> Batch:
    """The batch with 1 added to the features of one bar of one asset."""
    x = batch.x.clone()
    x[:, bar, asset] += 1.0
    return replace(batch, x=x)


def is_changed_by_nudge(network: SsmGnn, batch: Batch, bar: int, asset: int) -> Tensor:
    """Mask (b, l, n) bool, True for the forecasts that ``nudge`` changes."""
    with torch.no_grad():
        return (network(batch).returns != network(nudge(batch, bar, asset)).returns).any(-1)


@pytest.mark.parametrize(("layer", "messages"), [*product(["s4d", "mamba", "gru"], MESSAGE_LAYERS)])
@pytest.mark.parametrize("fusion", ["sequential", "interleaved", "parallel"])
def test_steps_equal_the_whole_sequence_with_every_layer_and_message_kind(
    fusion: str, layer: str, messages: str
) -> None:
    """HYB-02: also with Mamba. HYB-34: bar by bar, as a live program computes them."""
    network = make_network(fusion=fusion, layer=layer, message_passing=messages)
    batch = make_batch()
    expected = network(batch).returns
    state = network.initial_state(B, N)
    steps = []
    for bar in range(L):
        forecast, state = network.step(batch.bars(bar, bar + 1), state)
        steps.append(forecast.returns)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-5)
    for part in state:
        assert type(part) is tuple
        assert all(type(tensor) is Tensor for tensor in part)


@pytest.mark.parametrize(("name", "kind"), [("gcn", GCN), ("gat", GAT), ("gatv2", GATv2), ("sage", SAGE)])
def test_the_option_message_passing_selects_the_message_layer(name: str, kind: type[nn.Module]) -> None:
    network = make_network(message_passing=name, hops=3)
    assert [type(exchange.messages) for exchange in network.exchanges] == [kind] * 3


def expected_hidden(network: SsmGnn, batch: Batch, fusion_options: dict[str, Any]) -> Tensor:
    """The hidden values (b, l, n, d) before the last norm, by the formulas in the docstring of ssm_gnn.py."""
    adjacency = batch.graph.at_bars(batch.mask)

    def run_over_time(h: Tensor, *blocks: nn.Module) -> Tensor:
        for block in blocks:
            outputs = [block(h[:, :, asset])[0] for asset in range(N)]
            h = torch.stack(outputs, dim=2)
        return h

    def pass_messages(h: Tensor, *exchanges: nn.Module) -> Tensor:
        for exchange in exchanges:
            messages = [exchange.messages(exchange.norm(h[:, bar]), adjacency[:, bar]) for bar in range(L)]
            h = h + elu(torch.stack(messages, dim=1))
        return h

    h = network.embedding(batch)
    running_means = torch.stack([h[:, : bar + 1].mean(1) for bar in range(L)], dim=1)
    if fusion_options.get("fusion") == "interleaved":
        for block, exchange in zip(network.blocks, network.exchanges, strict=True):
            if fusion_options["order"] == "ssm_gnn":
                h = pass_messages(run_over_time(h, block), exchange)
            else:
                h = run_over_time(pass_messages(h, exchange), block)
        return h
    if fusion_options.get("fusion") == "parallel":
        message_input = h if fusion_options.get("pooling") == "last" else running_means
        halves = [run_over_time(h, *network.blocks), pass_messages(message_input, *network.exchanges)]
        return network.join(torch.cat(halves, dim=-1))
    if fusion_options.get("parts") == "gnn":
        return pass_messages(running_means, *network.exchanges)
    return pass_messages(run_over_time(h, *network.blocks), *network.exchanges)


@every_fusion
def test_every_fusion_equals_its_formula(fusion_options: dict[str, Any]) -> None:
    """HYB-12 to HYB-15: from the features through both halves to the heads."""
    network = make_network(**fusion_options)
    batch = make_batch()
    h = expected_hidden(network, batch, fusion_options)
    torch.testing.assert_close(network(batch).returns, network.heads(network.norm(h), batch.mask).returns)


@every_fusion
@pytest.mark.parametrize("learned", [False, True])
def test_a_changed_bar_changes_its_neighbours_at_that_bar_and_never_earlier(
    fusion_options: dict[str, Any], learned: bool
) -> None:
    network = make_network(**fusion_options, **({"graph": LEARNED} if learned else {}))
    is_changed = is_changed_by_nudge(network, make_batch(), bar=4, asset=0)
    assert not is_changed[:, :4].any()
    assert is_changed[:, 4].all()


@pytest.mark.parametrize(("order", "changes_later_bars"), [("ssm_gnn", False), ("gnn_ssm", True)])
def test_messages_change_later_bars_only_if_they_come_before_the_sequence_layer(
    order: str, changes_later_bars: bool
) -> None:
    """The receiver gets messages of the sender at one bar only, in a network with one block."""
    sender = 0
    receiver = 1
    bar = 4
    adjacency = torch.eye(N)
    adjacency[receiver, sender] = 1.0
    spec = Spec("ssm_gnn", d_model=8, n_layers=1, d_state=4, dropout=0.0)
    network = build_ssm_gnn(spec, F, H, fusion="interleaved", order=order).eval()
    nn.init.normal_(network.heads.weight)
    is_changed = is_changed_by_nudge(network, with_graph_at(make_batch(adjacency), bar), bar, asset=sender)
    assert is_changed[:, bar, receiver].all()
    assert bool(is_changed[:, bar + 1 :, receiver].any()) == changes_later_bars


@every_fusion
def test_an_asset_without_a_bar_sends_no_messages(fusion_options: dict[str, Any]) -> None:
    """The graph is in effect at bar 4 alone, where asset 0 has no bar: its earlier bars reach no other asset."""
    batch = with_graph_at(make_batch(), bar=4)
    batch.mask[:, 4, 0] = False
    is_changed = is_changed_by_nudge(make_network(**fusion_options), batch, bar=3, asset=0)
    assert not is_changed[:, :, 1:].any()


def test_a_network_without_messages_reads_each_asset_by_itself() -> None:
    network = make_network(parts="ssm")
    assert len(network.exchanges) == 0
    assert not is_changed_by_nudge(network, make_batch(), bar=4, asset=0)[:, :, 1:].any()


def test_a_network_without_sequence_layers_reads_each_bar_by_itself_and_has_no_state() -> None:
    network = make_network(parts="gnn")
    assert len(network.blocks) == 0
    assert not is_changed_by_nudge(network, make_batch(), bar=4, asset=0)[:, 5:].any()
    assert network.initial_state(B, N) == ()


def test_a_network_of_messages_between_running_means_keeps_only_the_state_of_the_mean() -> None:
    state = make_network(parts="gnn", pooling="mean").initial_state(B, N)
    assert len(flatten_state(state)) == 2  # sum and count


@pytest.mark.parametrize("messages", ["gcn", "gat", "gatv2"])
def test_learned_edges_have_a_gradient(messages: str) -> None:
    """HYB-10."""
    network = make_network(graph=LEARNED, message_passing=messages, top_k=2).train()
    network(make_batch()).returns.square().sum().backward()
    for parameter in network.exchanges[0].edges.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_a_learned_graph_becomes_a_snapshot() -> None:
    """The edges at the last bar, where the last asset is missing: it sends no edge, and every asset receives ``top_k``
    edges."""
    top_k = 2
    network = make_network(graph=LEARNED, top_k=top_k)
    batch = make_batch()
    batch.mask[0, -1, -1] = False
    edges = network(batch).edges[0, -1].detach()
    nodes = ("A", "B", "C", "D")
    as_of = np.datetime64("2024-06-28", "us")
    snapshot = learned_snapshot(LEARNED, edges.double().numpy(), as_of, nodes)
    assert snapshot.graph == LEARNED
    assert snapshot.as_of == as_of
    assert snapshot.nodes == nodes
    assert snapshot.directed
    assert nodes.index("D") not in snapshot.src
    assert (snapshot.src != snapshot.dst).all()
    assert np.bincount(snapshot.dst).tolist() == [top_k] * len(nodes)
    np.testing.assert_allclose(snapshot.weight, edges[snapshot.dst, snapshot.src], atol=10.0**-WEIGHT_DECIMALS)
    assert np.array_equal(snapshot.weight, np.round(snapshot.weight, WEIGHT_DECIMALS))


def test_steps_learn_the_same_graph_as_the_whole_sequence() -> None:
    network = make_network(graph=LEARNED, top_k=2)
    batch = make_batch()
    batch.mask[0, -1, 3] = False
    state = network.initial_state(B, N)
    for bar in range(L):
        last_step, state = network.step(batch.bars(bar, bar + 1), state)
    torch.testing.assert_close(last_step.edges[:, 0], network(batch).edges[:, -1], rtol=0, atol=1e-6)


def test_a_forecast_from_stored_snapshots_has_no_edges() -> None:
    assert make_network()(make_batch()).edges is None


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_a_network_with_a_learned_graph_reads_no_later_bar(top_k: int | None) -> None:
    network = make_network(graph=LEARNED, top_k=top_k, fusion="interleaved")
    is_changed = is_changed_by_nudge(network, make_batch(), bar=4, asset=0)
    assert not is_changed[:, :4].any()
    assert is_changed[:, 4:].any()


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_a_learned_graph_is_reordered_with_the_assets(top_k: int | None) -> None:
    network = make_network(graph=LEARNED, top_k=top_k, fusion="interleaved")
    batch = make_batch()
    order = [2, 0, 3, 1]
    shuffled = network(replace(batch, x=batch.x[:, :, order]))
    forecast = network(batch)
    torch.testing.assert_close(shuffled.returns, forecast.returns[:, :, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.edges, forecast.edges[:, :, order][:, :, :, order], rtol=1e-4, atol=1e-5)


def test_in_training_a_forecast_has_no_edges() -> None:
    assert make_network(graph=LEARNED).train()(make_batch()).edges is None


def test_a_pretrained_half_is_loaded_from_a_network_of_that_half() -> None:
    """HYB-12."""
    half = make_network(parts="ssm")
    whole = make_network(pretrained="ssm")
    with torch.no_grad():
        half.blocks[0].mix.weight.normal_()
    whole.load_pretrained(half.state_dict())
    assert torch.equal(whole.blocks[0].mix.weight, half.blocks[0].mix.weight)


def test_a_pretrained_half_is_loaded_from_the_sequence_network_of_its_layer() -> None:
    sequence_network = zoo.build(Spec("s4d", d_model=8, n_layers=2, d_state=4), F, H, seed=5)
    whole = make_network(pretrained="ssm")
    whole.load_pretrained(sequence_network.state_dict())
    assert torch.equal(whole.blocks[0].mix.weight, sequence_network.encoder.blocks[0].mix.weight)


def test_a_pretrained_half_of_another_size_is_refused() -> None:
    larger = zoo.build(Spec("s4d", d_model=16, n_layers=2, d_state=4), F, H)
    with pytest.raises(StateError, match="pretrained ssm part are missing or of another shape, the first embedding"):
        make_network(pretrained="ssm").load_pretrained(larger.state_dict())


def test_a_frozen_half_and_the_embedding_are_not_trained() -> None:
    network = make_network(pretrained="ssm", frozen=True)
    trained_modules = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained_modules == {"exchanges", "norm", "heads"}


def test_a_fold_fits_the_pretrained_half_alone_and_then_the_rest(market: Any, tmp_path: Path) -> None:
    """A second fit reads the file of the half; a damaged file is fitted again."""
    arguments = market.arguments("ssm_gnn")
    spec = replace(arguments["spec"], options={"pretrained": "ssm", "frozen": True})
    fit = partial(fit_fold, **{**arguments, "spec": spec}, artifact=tmp_path / "whole.safetensors")
    fitted = fit()
    (half_path,) = set(tmp_path.glob("*.safetensors")) - {fitted.artifact}
    written_at = half_path.stat().st_mtime_ns
    half_weights = load_artifact(half_path).network.state_dict()
    whole_weights = load_artifact(fitted.artifact).network.state_dict()
    frozen_names = [name for name in whole_weights if name.startswith(("embedding", "blocks"))]
    assert frozen_names
    assert all(torch.equal(half_weights[name], whole_weights[name]) for name in frozen_names)
    assert not any(name.startswith("exchanges") for name in half_weights)
    assert fit().sha256 == fitted.sha256
    assert half_path.stat().st_mtime_ns == written_at
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


def test_a_batch_without_the_graph_is_refused() -> None:
    with pytest.raises(ShapeError, match="reads the correlation graph of its bars; the batch has none"):
        make_network()(replace(make_batch(), graph=None))


def test_a_state_of_another_network_is_refused() -> None:
    with pytest.raises(StateError, match="the state has 0 parts, this network 2"):
        make_network().step(make_batch().bars(0, 1), ())


@pytest.mark.parametrize(
    ("model", "options", "graph"),
    [
        ("ssm_gnn", {}, "correlation"),
        ("ssm_gnn", {"graph": "sector"}, "sector"),
        ("ssm_gnn", {"graph": LEARNED}, None),
        ("ssm_gnn", {"parts": "ssm"}, None),
        ("ssm_gnn_sector", {}, "sector"),
        ("s4d", {}, None),
        ("ssm", {}, None),
        ("ssm", {"parts": "both"}, "correlation"),
        ("ssm_gnn_attention", {"graph": "sector"}, "sector"),
    ],
)
def test_the_options_of_a_spec_select_the_graph_whose_snapshots_are_read(
    model: str, options: dict[str, str], graph: str | None
) -> None:
    assert zoo.graph_of(Spec(model, options=options)) == graph


def test_the_heads_forecast_return_volatility_and_class() -> None:
    """HYB-16."""
    forecast: Forecast = make_network(fusion="interleaved")(make_batch())
    assert forecast.returns.shape == (B, L, N, H)
    assert forecast.log_volatility.shape == (B, L, N)
    assert forecast.logits.shape == (B, L, N, N_CLASSES)
