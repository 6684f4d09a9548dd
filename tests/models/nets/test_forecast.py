"""Batches, the adjacency at every bar, and heads."""

import torch

from models.nets.forecast import Batch, GraphSteps, Heads


def test_each_bar_has_the_snapshot_in_force_and_only_self_loops_before_the_first() -> None:
    """HYB-07."""
    adjacency = torch.stack([torch.full((2, 2), 0.5), torch.full((2, 2), 0.7)])
    by_bar = GraphSteps(adjacency, torch.tensor([[-1, 0, 1]])).at_bars(torch.ones(1, 3, 2, dtype=torch.bool))
    assert torch.equal(by_bar[0], torch.cat([torch.eye(2)[None], adjacency]))


def test_an_asset_without_a_bar_has_no_outgoing_edge_but_its_self_loop() -> None:
    adjacency = torch.full((1, 3, 3), 0.5) + 0.5 * torch.eye(3)
    mask = torch.tensor([[[True, False, True]]])
    by_bar = GraphSteps(adjacency, torch.zeros(1, 1, dtype=torch.int64)).at_bars(mask)
    assert by_bar[0, 0].tolist() == [[1.0, 0.0, 0.5], [0.5, 1.0, 0.5], [0.5, 0.0, 1.0]]


def test_bars_slices_every_part_of_a_batch() -> None:
    graph = GraphSteps(torch.eye(4)[None], torch.arange(6)[None])
    batch = Batch(torch.randn(1, 6, 4, 2), torch.rand(1, 6, 4) < 0.5, torch.arange(6.0)[None], graph)
    part = batch.bars(2, 5)
    assert torch.equal(part.x, batch.x[:, 2:5]) and torch.equal(part.mask, batch.mask[:, 2:5])
    assert part.gaps.tolist() == [[2, 3, 4]]
    assert part.graph is not None and part.graph.step.tolist() == [[2, 3, 4]]


def test_new_heads_forecast_almost_no_move() -> None:
    forecast = Heads(32, 3)(torch.nn.functional.layer_norm(torch.randn(1, 50, 4, 32), (32,)), torch.ones(1, 50, 4) > 0)
    assert forecast.returns.abs().max() < 1 and forecast.log_volatility.abs().max() < 1
    assert torch.softmax(forecast.logits, dim=-1).max() < 0.4
