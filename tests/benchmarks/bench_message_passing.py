"""Speed of dense message passing, compared with torch_geometric's layers, and the cost of a hybrid's messages.

``pytest tests/benchmarks/bench_message_passing.py -m benchmark -s``. A contender is a forward and
backward pass with one thread, and the process keeps freed memory, as in a fit. Every node has its eight strongest
neighbours, as in the graphs of a night (the run for one as-of date). Times vary, so the assertions are loose.

Glossary: s graphs, n nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.layers.message_passing import MESSAGE_LAYERS
from models.nets.forecast import Batch, GraphSteps
from models.nets.spec import Spec
from models.nets.ssm_gnn import build_ssm_gnn
from models.training.allocator import tune_allocator
from tests.benchmarks.contest import contest

pytestmark = pytest.mark.benchmark
D = 32  # channels
HEADS = 2
NEIGHBOURS = 8
ROUNDS = 5
BUDGET_S = 10.0
SIZES = [(2048, 6), (1024, 12), (384, 30), (384, 130), (96, 500)]  # (s, n)


def random_adjacencies(s: int, n: int) -> Tensor:
    """Symmetric adjacency matrices (s, n, n): weights in [0.3, 1], 0 where there is no edge, 1 on the diagonal."""
    rng = torch.Generator().manual_seed(0)
    strength = torch.rand(s, n, n, generator=rng).triu(1)
    strength = strength + strength.mT
    if n > NEIGHBOURS + 1:
        kth = strength.topk(NEIGHBOURS, dim=-1).values[..., -1:]
        strength = torch.where((strength >= kth) | (strength >= kth.mT), strength, 0.0)
    return torch.where(strength > 0, 0.3 + 0.7 * strength, 0.0) + torch.eye(n)


def geometric_layer(name: str) -> Any:
    """torch_geometric's layer of this kind. Skips the test if the package is not installed."""
    conv = pytest.importorskip("torch_geometric.nn", reason="pip install '.[bench]'")
    if name in ("gat", "gatv2"):
        return {"gat": conv.GATConv, "gatv2": conv.GATv2Conv}[name](D, D // HEADS, HEADS, add_self_loops=False)
    return conv.GCNConv(D, D, add_self_loops=False) if name == "gcn" else conv.SAGEConv(D, D)


@pytest.mark.parametrize(("s", "n"), SIZES)
@pytest.mark.parametrize("name", MESSAGE_LAYERS)
def test_dense_layers_are_faster_than_torch_geometric(name: str, s: int, n: int) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours: nn.Module = MESSAGE_LAYERS[name](D, **({"heads": HEADS} if name in ("gat", "gatv2") else {}))
    theirs = geometric_layer(name)
    adjacency = random_adjacencies(s, n)
    h = torch.randn(s, n, D, requires_grad=True)
    graph, dst, src = adjacency.nonzero(as_tuple=True)
    index = torch.stack([graph * n + src, graph * n + dst])
    weight = adjacency[graph, dst, src]
    edges = (index, weight) if name == "gcn" else (index if name != "sage" else index[:, src != dst],)

    def with_backward(forward: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: forward().square().mean().backward()

    contenders = {
        "ours": with_backward(lambda: ours(h, adjacency)),
        "torch_geometric": with_backward(lambda: theirs(h.flatten(0, 1), *edges)),
    }
    result = contest(contenders, ROUNDS, BUDGET_S)
    result.report(f"{name}, {s} graphs of {n} nodes, {len(weight) / s / n:.0f} edges a node", "ours")
    if n <= 130 or name == "gatv2":  # with 500 nodes and eight neighbours a matrix product multiplies mostly zeros
        assert result.ratio("torch_geometric", "ours") > 1


def hybrid_pass(fusion: str, name: str, bars: int, assets: int, d: int) -> Callable[[], None]:
    """A function that runs a forward and backward pass of a hybrid with ``d`` channels over all bars."""
    torch.manual_seed(0)
    network = build_ssm_gnn(Spec("ssm_gnn", d_model=d, dropout=0.0), 8, 3, fusion=fusion, message_passing=name)
    step = (torch.arange(bars) // 5)[None]
    graph = GraphSteps(random_adjacencies(int(step.max()) + 1, assets), step)
    batch = Batch(
        torch.randn(1, bars, assets, 8), torch.ones(1, bars, assets, dtype=torch.bool), torch.ones(1, bars), graph
    )
    return lambda: network(batch).returns.square().mean().backward()


@pytest.mark.parametrize("name", MESSAGE_LAYERS)
def test_messages_in_every_layer_cost_at_most_three_times_messages_after_the_last(name: str) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    contenders = {fusion: hybrid_pass(fusion, name, 256, 100, 64) for fusion in ("interleaved", "sequential")}
    result = contest(contenders, ROUNDS, BUDGET_S)
    result.report(f"{name}, 256 bars of 100 assets, 64 channels", "sequential")
    assert result.ratio("interleaved", "sequential") <= 3
