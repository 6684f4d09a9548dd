"""Batches, the adjacency at every bar, and heads. Ids such as HYB-07: .github/sources.md."""

import torch

from models.nets.forecast import N_CLASSES, Batch, GraphSteps, Heads


def test_each_bar_has_its_snapshot_and_bars_before_the_first_snapshot_have_only_self_loops() -> None:
    """HYB-07."""
    adjacency = torch.stack([torch.full((2, 2), 0.5), torch.full((2, 2), 0.7)])
    graph = GraphSteps(adjacency, snapshot_index=torch.tensor([[-1, 0, 1]]))
    by_bar = graph.at_bars(torch.ones(1, 3, 2, dtype=torch.bool))
    assert torch.equal(by_bar[0], torch.cat([torch.eye(2)[None], adjacency]))


def test_the_only_outgoing_edge_of_an_asset_without_a_bar_is_its_self_loop() -> None:
    """An element is the weight of the edge from the column's asset to the row's asset."""
    adjacency = torch.full((1, 3, 3), 0.5) + 0.5 * torch.eye(3)
    mask = torch.tensor([[[True, False, True]]])
    by_bar = GraphSteps(adjacency, snapshot_index=torch.zeros(1, 1, dtype=torch.int64)).at_bars(mask)
    assert by_bar[0, 0].tolist() == [[1.0, 0.0, 0.5], [0.5, 1.0, 0.5], [0.5, 0.0, 1.0]]


def test_bars_slices_every_part_of_a_batch() -> None:
    graph = GraphSteps(torch.eye(4)[None], snapshot_index=torch.arange(6)[None])
    batch = Batch(x=torch.randn(1, 6, 4, 2), mask=torch.rand(1, 6, 4) < 0.5, gaps=torch.arange(6.0)[None], graph=graph)
    sliced = batch.bars(2, 5)
    assert torch.equal(sliced.x, batch.x[:, 2:5])
    assert torch.equal(sliced.mask, batch.mask[:, 2:5])
    assert sliced.gaps.tolist() == [[2, 3, 4]]
    assert sliced.graph is not None
    assert sliced.graph.snapshot_index.tolist() == [[2, 3, 4]]


def test_new_heads_forecast_small_returns_and_nearly_equal_class_probabilities() -> None:
    d = 32
    h = torch.nn.functional.layer_norm(torch.randn(1, 50, 4, d), (d,))
    forecast = Heads(d, n_horizons=3)(h, mask=torch.ones(1, 50, 4, dtype=torch.bool))
    one_sigma = 1
    assert forecast.returns.abs().max() < one_sigma
    assert forecast.log_volatility.abs().max() < 1
    assert torch.softmax(forecast.logits, dim=-1).max() < 2 / N_CLASSES
