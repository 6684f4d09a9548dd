"""Graph attention against the paper's sum over edges (HYB-04 to HYB-06)."""

import pytest
import torch

from models.layers.message_passing import GraphAttention


def random_graphs(s: int, n: int) -> torch.Tensor:
    weights = torch.rand(s, n, n) * 2 - 1
    edges = torch.rand(s, n, n) < 0.4
    edges = edges | edges.transpose(1, 2) | torch.eye(n, dtype=torch.bool)
    return torch.where(edges, weights, 0.0)


def test_dense_form_equals_edge_by_edge() -> None:
    torch.manual_seed(0)
    layer, h, adjacency = GraphAttention(8, heads=2), torch.randn(3, 6, 8), random_graphs(3, 6)
    with torch.no_grad():
        layer.gain.normal_()
        layer.bias.normal_()
        torch.testing.assert_close(layer(h, adjacency), layer.reference(h, adjacency), rtol=1e-4, atol=1e-5)


def test_a_node_hears_its_neighbours_and_nobody_else() -> None:
    layer, h = GraphAttention(8, heads=2), torch.randn(1, 3, 8)
    adjacency = torch.eye(3)[None].clone()
    adjacency[0, 0, 1] = adjacency[0, 1, 0] = 0.8
    changed = h.clone()
    changed[0, 1] += 1.0
    before, after = layer(h, adjacency), layer(changed, adjacency)
    assert not torch.allclose(before[0, 0], after[0, 0])
    assert torch.equal(before[0, 2], after[0, 2])


def test_with_only_its_own_loop_a_node_is_its_own_projection() -> None:
    layer, h = GraphAttention(8, heads=2), torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(h, torch.eye(3).expand(2, 3, 3)), layer.project(h))


def test_the_gain_makes_heavier_edges_count_more() -> None:
    layer, h = GraphAttention(4, heads=1), torch.randn(1, 3, 4)
    adjacency = torch.tensor([[[1.0, 2.0, 0.1], [2.0, 1.0, 0.0], [0.1, 0.0, 1.0]]])
    with torch.no_grad():
        layer.gain.fill_(100.0)
    torch.testing.assert_close(layer(h, adjacency)[0, 0], layer.project(h)[0, 1])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        GraphAttention(8, heads=3)
