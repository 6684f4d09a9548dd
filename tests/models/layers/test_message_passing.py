"""Message passing against the papers' sums over edges and against torch_geometric (HYB-04 to HYB-06).

Glossary: s graphs · n nodes · d channels.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.layers import message_passing
from models.layers.errors import ShapeError, SizeError
from models.layers.kernels import attention_cpu, edges_cpu
from models.layers.learned_edges import LearnedEdges
from models.layers.message_passing import GAT, GCN, MESSAGE_LAYERS, SAGE, GATv2

S, N, D, HEADS = 3, 6, 8, 2
every_kind = pytest.mark.parametrize("kind", MESSAGE_LAYERS)


def make_layer(kind: str) -> nn.Module:
    """A layer with random weights and biases; gains have their first values."""
    torch.manual_seed(0)
    layer = MESSAGE_LAYERS[kind](D)
    with torch.no_grad():
        layer.get_parameter("hear.bias" if kind == "sage" else "bias").normal_()
    return layer


def make_graphs(signed: bool = False, directed: bool = True, n: int = N) -> Tensor:
    """Random adjacencies (s, n, n) whose last node has no edges but its self-loop."""
    torch.manual_seed(1)
    weights = torch.rand(S, n, n) + 0.1
    edges = torch.rand(S, n, n) < 0.4
    if signed:
        weights *= torch.where(torch.rand(S, n, n) < 0.5, 1, -1)
    if not directed:
        weights = weights.triu() + weights.triu(1).mT
        edges = edges.triu() | edges.triu(1).mT
    edges[:, -1] = False
    edges[:, :, -1] = False
    return torch.where(torch.eye(n, dtype=torch.bool), 1.0, torch.where(edges, weights, 0.0))


@every_kind
@pytest.mark.parametrize("signed", [False, True])
def test_the_layer_equals_its_edge_by_edge_reference(kind: str, signed: bool) -> None:
    layer = make_layer(kind)
    h = torch.randn(S, N, D)
    adjacency = make_graphs(signed)
    if hasattr(layer, "gain"):
        nn.init.normal_(layer.gain)
    torch.testing.assert_close(layer(h, adjacency), layer.reference(h, adjacency), rtol=1e-4, atol=1e-5)


def edge_list(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """All graphs as one, in torch_geometric's format: ``edge_index`` (2, e), from and to, and ``weight`` (e,)."""
    s, i, j = adjacency.nonzero(as_tuple=True)
    return torch.stack([s * adjacency.shape[1] + j, s * adjacency.shape[1] + i]), adjacency[s, i, j]


def torch_geometric_output(layer: nn.Module, h: Tensor, adjacency: Tensor) -> Tensor:
    """The output of torch_geometric's layer with the same weights on the same graphs."""
    conv = pytest.importorskip("torch_geometric.nn", reason="pip install '.[bench]'")
    index, weight = edge_list(adjacency)
    width = {"heads": layer.heads, "out_channels": D // layer.heads} if hasattr(layer, "heads") else {}
    x = h.flatten(0, 1)
    if isinstance(layer, GCN):
        peer = conv.GCNConv(D, D)
        peer.load_state_dict({"lin.weight": layer.project.weight, "bias": layer.bias})
        y = peer(x, index, weight)
    elif isinstance(layer, GAT):
        peer = conv.GATConv(D, **width)
        ours = {"att_src": layer.send[None], "att_dst": layer.receive[None], "bias": layer.bias}
        peer.load_state_dict({**ours, "lin.weight": layer.project.weight})
        y = peer(x, index)
    elif isinstance(layer, GATv2):
        peer = conv.GATv2Conv(D, **width)
        sides = {"lin_l": layer.send, "lin_r": layer.receive}
        linear = {f"{name}.{key}": value for name, side in sides.items() for key, value in side.state_dict().items()}
        peer.load_state_dict({**linear, "att": layer.attention[None], "bias": layer.bias})
        y = peer(x, index)
    else:
        peer = conv.SAGEConv(D, D)
        sides = {"lin_l": layer.hear, "lin_r": layer.keep}
        peer.load_state_dict({f"{k}.{key}": v for k, side in sides.items() for key, v in side.state_dict().items()})
        y = peer(x, index[:, index[0] != index[1]])
    return y.unflatten(0, h.shape[:2])


@every_kind
@pytest.mark.parametrize("directed", [False, True])
def test_outputs_and_gradients_equal_torch_geometrics(kind: str, directed: bool) -> None:
    layer = make_layer(kind)
    adjacency = make_graphs(directed=directed)
    ours, theirs = (torch.randn(S, N, D, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    y = layer(ours, adjacency)
    expected = torch_geometric_output(layer, theirs, adjacency)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_a_signed_graph_is_normalised_by_its_absolute_weights() -> None:
    """torch_geometric would take square roots of negative degrees, so the weights are normalised before its layer."""
    conv = pytest.importorskip("torch_geometric.nn", reason="pip install '.[bench]'")
    layer = make_layer("gcn")
    h = torch.randn(S, N, D)
    adjacency = make_graphs(signed=True)
    peer = conv.GCNConv(D, D, normalize=False)
    peer.load_state_dict({"lin.weight": layer.project.weight, "bias": layer.bias})
    degree = adjacency.abs().sum(-1)
    index, weight = edge_list(adjacency / (degree[:, :, None] * degree[:, None]).sqrt())
    torch.testing.assert_close(layer(h, adjacency), peer(h.flatten(0, 1), index, weight).unflatten(0, (S, N)))


@every_kind
def test_a_node_receives_messages_from_its_neighbours_only(kind: str) -> None:
    layer = make_layer(kind)
    h = torch.randn(1, 3, D)
    adjacency = torch.eye(3)[None].clone()
    adjacency[0, 0, 1] = 0.8  # from 1 to 0
    changed = h.clone()
    changed[0, 1] += 1.0
    before = layer(h, adjacency)
    after = layer(changed, adjacency)
    assert not torch.allclose(before[0, 0], after[0, 0])
    assert torch.equal(before[0, 2], after[0, 2])


@every_kind
def test_reversed_edges_give_another_result(kind: str) -> None:
    layer = make_layer(kind)
    h = torch.randn(S, N, D)
    adjacency = make_graphs()
    assert not torch.allclose(layer(h, adjacency), layer(h, adjacency.mT))


@every_kind
@pytest.mark.parametrize("self_loop", [0.0, 1.0])
def test_the_output_of_a_node_without_neighbours_is_finite(kind: str, self_loop: float) -> None:
    y = make_layer(kind)(torch.randn(2, 3, D), self_loop * torch.eye(3).expand(2, 3, 3))
    assert torch.isfinite(y).all()


def test_hand_numbers_of_a_mean_and_of_a_normalised_sum() -> None:
    """Node 0 has edges from 1 (weight 1) and from 2 (weight 2); W is the identity."""
    h = torch.tensor([[[1.0], [2.0], [6.0]]])
    adjacency = torch.eye(3)[None].clone()
    adjacency[0, 0, 1] = 1.0
    adjacency[0, 0, 2] = 2.0
    sage = SAGE(1)
    gcn = GCN(1)
    with torch.no_grad():
        for weight in (sage.hear.weight, sage.keep.weight, gcn.project.weight):
            weight.fill_(1.0)
        sage.hear.bias.zero_()
    assert sage(h, adjacency)[0, :, 0].tolist() == [4.0 + 1.0, 2.0, 6.0]
    torch.testing.assert_close(gcn(h, adjacency)[0, 0, 0], torch.tensor(1 / 4 + 2 / 4**0.5 + 2 * 6 / 4**0.5))


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
def test_the_gain_makes_heavier_edges_count_more(kind: str) -> None:
    layer = make_layer(kind)
    h = torch.randn(1, 3, D)
    adjacency = torch.tensor([[[1.0, 2.0, 0.1], [2.0, 1.0, 0.0], [0.1, 0.0, 1.0]]])
    with torch.no_grad():
        layer.gain.fill_(100.0)
    values = layer.project(h) if kind == "gat" else layer.send(h)
    torch.testing.assert_close(layer(h, adjacency)[0, 0], values[0, 1] + layer.bias)


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
@pytest.mark.parametrize("width", [D, 2, 48])
def test_every_form_gives_the_same_values_and_gradients(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel along edges, matrix products, and those in chunks; heads narrower and wider than a SIMD vector."""
    results = []
    for form, chunk in (("_sparse", message_passing.CHUNK), ("_dense", message_passing.CHUNK), ("_dense", 1)):
        monkeypatch.setattr(message_passing, "CHUNK", chunk)
        torch.manual_seed(0)
        layer = MESSAGE_LAYERS[kind](width, heads=2)
        nn.init.normal_(layer.gain)
        h = torch.randn(S, N, width).requires_grad_()
        adjacency = make_graphs(signed=True).requires_grad_()
        y = message_passing.attend_in_chunks(getattr(layer, form), h, adjacency, size=1)
        y.square().sum().backward()
        trained = [p.grad for p in layer.parameters() if p is not layer.bias]
        results.append([y, h.grad, *trained, torch.where(adjacency != 0, adjacency.grad, 0.0)])
        with torch.no_grad():
            torch.testing.assert_close(layer(h, adjacency), y + layer.bias)
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, D, 48])
@pytest.mark.parametrize("n", [2, N, 37])
def test_means_along_the_edges_equal_means_by_matrix_product(width: int, n: int) -> None:
    adjacency = make_graphs(signed=True, n=n)
    results = []
    adjacency[0, 0, 0] = 0.0  # a missing self-loop changes nothing
    for form in (edges_cpu.neighbour_means, SAGE._dense):
        h = torch.randn(S, n, width, generator=torch.Generator().manual_seed(2)).requires_grad_()
        y = form(h, adjacency)
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), h)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_edges_are_listed_by_node_and_every_node_has_one_self_loop(n: int) -> None:
    adjacency = make_graphs(signed=True, n=n)
    adjacency[1] *= 1 - torch.eye(n)
    first, senders = edges_cpu.edge_lists(adjacency)
    expected = ((adjacency != 0) | torch.eye(n, dtype=torch.bool)).flatten(0, 1)
    assert len(first) == S * n + 1 and first[-1] == len(senders)
    for row, edges in enumerate(expected):
        assert sorted(senders[first[row] : first[row + 1]].tolist()) == edges.nonzero()[:, 0].tolist()


def test_dense_graphs_use_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "attend", pytest.fail)
    assert GAT(D, dense=True)(torch.randn(S, N, D), torch.ones(S, N, N)).shape == (S, N, D)


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
def test_two_threads_give_the_same_result_as_one(kind: str) -> None:
    layer = make_layer(kind)
    h = torch.randn(S, N, D, requires_grad=True)
    adjacency = make_graphs()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = layer(h, adjacency)
        results.append((y, *torch.autograd.grad(y.square().sum(), [h, layer.gain])))
    torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@every_kind
def test_wrong_shapes_are_refused(kind: str) -> None:
    layer = make_layer(kind)
    with pytest.raises(ShapeError, match=r"h is \(6, 8\); give \(graphs, nodes, channels\)"):
        layer(torch.randn(N, D), torch.eye(N))
    with pytest.raises(ShapeError, match="one node or more"):
        layer(torch.randn(S, 0, D), torch.zeros(S, 0, 0))
    with pytest.raises(ShapeError, match=r"the adjacency is \(6, 6\); give \(3, 6, 6\)"):
        layer(torch.randn(S, N, D), torch.eye(N))


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
def test_heads_must_divide_the_width(kind: str) -> None:
    with pytest.raises(SizeError, match="not divisible by 3 heads"):
        MESSAGE_LAYERS[kind](8, heads=3)


def test_learned_edges_equal_the_mean_softmax_of_the_heads() -> None:
    torch.manual_seed(0)
    layer = LearnedEdges(D, HEADS)
    h = torch.randn(S, N, D)
    is_present = torch.rand(S, N) < 0.7
    expected = torch.eye(N).repeat(S, 1, 1)
    for s in range(S):
        for i in range(N):
            others = [j for j in range(N) if j != i and is_present[s, j]]
            for q, p in zip(layer.query(h[s, i]).split(D // HEADS), layer.key(h[s]).split(D // HEADS, 1), strict=True):
                expected[s, i, others] += torch.softmax(p[others] @ q / (D / HEADS) ** 0.5, 0) / HEADS
    torch.testing.assert_close(layer(h, is_present), expected)


def test_only_the_top_k_edges_and_ties_with_them_remain() -> None:
    torch.manual_seed(0)
    h = torch.randn(S, N, D)
    is_present = torch.ones(S, N, dtype=torch.bool)
    layer = LearnedEdges(D, HEADS)
    all_edges = layer(h, is_present) - torch.eye(N)
    layer.top_k = 2
    edges = layer(h, is_present) - torch.eye(N)
    assert torch.equal(edges > 0, all_edges >= all_edges.topk(2, dim=-1).values[..., 1:])
    assert torch.equal(edges[edges > 0], all_edges[edges > 0])
    tied_edges = layer(h[:, :1].expand(-1, N, -1), is_present)
    assert torch.equal(tied_edges > 0, torch.ones(S, N, N, dtype=torch.bool))


def test_without_other_nodes_no_edges_are_learned_and_gradients_are_finite() -> None:
    layer = LearnedEdges(D, HEADS)
    h = torch.randn(2, 3, D, requires_grad=True)
    is_present = torch.tensor([[True, False, False], [False, False, False]])
    edges = layer(h, is_present)
    assert edges[1].equal(torch.eye(3)) and edges[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert edges[0, 1:, 0].tolist() == [1.0, 1.0]
    edges.square().sum().backward()
    assert h.grad is not None and torch.isfinite(h.grad).all()
