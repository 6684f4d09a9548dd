"""Dense message passing against torch_geometric's layers with the same weights, and what a hybrid's messages cost.

``pytest tests/benchmarks/bench_message_passing.py -m benchmark -s``. Forward and backward, one thread and freed memory
kept, as in a fit; graphs as the night stores them: every node keeps its eight strongest neighbours. The assertions are
loose, as a clock is.
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
from models.nets.ssm_gnn import ssm_gnn
from models.training.allocator import tune_allocator
from tests.benchmarks.contest import contest

pytestmark = pytest.mark.benchmark
D, HEADS, NEIGHBOURS, ROUNDS, BUDGET_S = 32, 2, 8, 5, 10.0
SIZES = [(2048, 6), (1024, 12), (384, 30), (384, 130), (96, 500)]  # graphs (chunks · bars), nodes


def graphs(s: int, n: int) -> Tensor:
    """Symmetric adjacencies (s, n, n) with weights from 0.3 to 1 and 1 on the diagonal."""
    draw = torch.Generator().manual_seed(0)
    strength = torch.rand(s, n, n, generator=draw).triu(1)
    strength = strength + strength.mT
    if n > NEIGHBOURS + 1:
        kth = strength.topk(NEIGHBOURS, dim=-1).values[..., -1:]
        strength = torch.where((strength >= kth) | (strength >= kth.mT), strength, 0.0)
    return torch.where(strength > 0, 0.3 + 0.7 * strength, 0.0) + torch.eye(n)


def peer_of(name: str) -> Any:
    """torch_geometric's layer."""
    conv = pytest.importorskip("torch_geometric.nn", reason="pip install '.[bench]'")
    if name in ("gat", "gatv2"):
        return {"gat": conv.GATConv, "gatv2": conv.GATv2Conv}[name](D, D // HEADS, HEADS, add_self_loops=False)
    return conv.GCNConv(D, D, add_self_loops=False) if name == "gcn" else conv.SAGEConv(D, D)


@pytest.mark.parametrize(("s", "n"), SIZES)
@pytest.mark.parametrize("name", MESSAGE_LAYERS)
def test_dense_against_torch_geometric(name: str, s: int, n: int) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours: nn.Module = MESSAGE_LAYERS[name](D, **({"heads": HEADS} if name in ("gat", "gatv2") else {}))
    theirs, adjacency, h = peer_of(name), graphs(s, n), torch.randn(s, n, D, requires_grad=True)
    graph, to, source = adjacency.nonzero(as_tuple=True)
    index, weight = torch.stack([graph * n + source, graph * n + to]), adjacency[graph, to, source]
    given = (index, weight) if name == "gcn" else (index if name != "sage" else index[:, source != to],)

    def both(forward: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: forward().square().mean().backward()

    works = {"ours": both(lambda: ours(h, adjacency)), "torch_geometric": both(lambda: theirs(h.flatten(0, 1), *given))}
    result = contest(works, ROUNDS, BUDGET_S)
    result.report(f"{name}, {s} graphs of {n} nodes, {len(weight) / s / n:.0f} edges a node", "ours")
    if n <= 130 or name == "gatv2":  # with 500 nodes and eight neighbours a matrix product multiplies mostly zeros
        assert result.ratio("torch_geometric", "ours") > 1


def hybrid(fusion: str, name: str, bars: int, assets: int, d: int) -> Callable[[], None]:
    """A pass of two S4D layers and their messages over all bars."""
    torch.manual_seed(0)
    network = ssm_gnn(Spec("ssm_gnn", d_model=d, dropout=0.0), 8, 3, fusion=fusion, message_passing=name)
    step = (torch.arange(bars) // 5)[None]
    graph = GraphSteps(graphs(int(step.max()) + 1, assets), step)
    batch = Batch(
        torch.randn(1, bars, assets, 8), torch.ones(1, bars, assets, dtype=torch.bool), torch.ones(1, bars), graph
    )
    return lambda: network(batch).returns.square().mean().backward()


@pytest.mark.parametrize("name", MESSAGE_LAYERS)
def test_messages_in_every_layer_cost_at_most_three_times_those_after_the_last(name: str) -> None:
    tune_allocator()
    torch.set_num_threads(1)
    works = {fusion: hybrid(fusion, name, 256, 100, 64) for fusion in ("interleaved", "sequential")}
    result = contest(works, ROUNDS, BUDGET_S)
    result.report(f"{name}, 256 bars of 100 assets, 64 channels", "sequential")
    assert result.ratio("interleaved", "sequential") <= 3
