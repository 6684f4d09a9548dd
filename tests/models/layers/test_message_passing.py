"""Message passing equals the papers' sums over edges and torch_geometric (HYB-04 to HYB-06).

Glossary: s graphs · n nodes · d channels. An adjacency has shape (s, n, n); [i, j] is the weight of the edge from j to
i.

Ids such as HYB-04: .github/sources.md.
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

S = 3
N = 6
D = 8
HEADS = 2
every_kind = pytest.mark.parametrize("kind", MESSAGE_LAYERS)


def make_layer(kind: str) -> nn.Module:
    """A layer with random weights and biases; gains have their initial values."""
    torch.manual_seed(0)
    layer = MESSAGE_LAYERS[kind](D)
    with torch.no_grad():
        layer.get_parameter("hear.bias" if kind == "sage" else "bias").normal_()
    return layer


def make_graphs(is_signed: bool = False, is_directed: bool = True, n: int = N) -> Tensor:
    """Random adjacencies (s, n, n) whose last node has no edge except its self-loop."""
    torch.manual_seed(1)
    weights = torch.rand(S, n, n) + 0.1
    has_edge = torch.rand(S, n, n) < 0.4
    if is_signed:
        weights *= torch.where(torch.rand(S, n, n) < 0.5, 1, -1)
    if not is_directed:
        weights = weights.triu() + weights.triu(1).mT
        has_edge = has_edge.triu() | has_edge.triu(1).mT
    has_edge[:, -1] = False
    has_edge[:, :, -1] = False
    return torch.where(torch.eye(n, dtype=torch.bool), 1.0, torch.where(has_edge, weights, 0.0))


@every_kind
@pytest.mark.parametrize("is_signed", [False, True])
def test_the_layer_equals_its_edge_by_edge_reference(kind: str, is_signed: bool) -> None:
    layer = make_layer(kind)
    h = torch.randn(S, N, D)
    adjacency = make_graphs(is_signed)
    if hasattr(layer, "gain"):
        nn.init.normal_(layer.gain)
    torch.testing.assert_close(layer(h, adjacency), layer.reference(h, adjacency), rtol=1e-4, atol=1e-5)


def edge_list(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """All graphs as one graph in torch_geometric's format: edge index (2, e) of senders and receivers, weights (e,)."""
    s, i, j = adjacency.nonzero(as_tuple=True)
    return torch.stack([s * adjacency.shape[1] + j, s * adjacency.shape[1] + i]), adjacency[s, i, j]


def prefixed_weights(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights of ``module``, named as part ``prefix`` of a larger module."""
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def torch_geometric_output(layer: nn.Module, h: Tensor, adjacency: Tensor) -> Tensor:
    """The output of torch_geometric's layer with the same weights on the same graphs."""
    conv = pytest.importorskip("torch_geometric.nn", reason="pip install '.[bench]'")
    edge_index, weight = edge_list(adjacency)
    head_sizes = {"heads": layer.heads, "out_channels": D // layer.heads} if hasattr(layer, "heads") else {}
    x = h.flatten(0, 1)
    if isinstance(layer, GCN):
        peer = conv.GCNConv(D, D)
        peer.load_state_dict({"lin.weight": layer.project.weight, "bias": layer.bias})
        y = peer(x, edge_index, weight)
    elif isinstance(layer, GAT):
        peer = conv.GATConv(D, **head_sizes)
        vectors = {"att_src": layer.send[None], "att_dst": layer.receive[None], "bias": layer.bias}
        peer.load_state_dict({**vectors, "lin.weight": layer.project.weight})
        y = peer(x, edge_index)
    elif isinstance(layer, GATv2):
        peer = conv.GATv2Conv(D, **head_sizes)
        projections = {**prefixed_weights("lin_l", layer.send), **prefixed_weights("lin_r", layer.receive)}
        peer.load_state_dict({**projections, "att": layer.attention[None], "bias": layer.bias})
        y = peer(x, edge_index)
    else:
        peer = conv.SAGEConv(D, D)
        peer.load_state_dict({**prefixed_weights("lin_l", layer.hear), **prefixed_weights("lin_r", layer.keep)})
        y = peer(x, edge_index[:, edge_index[0] != edge_index[1]])  # without self-loops
    return y.unflatten(0, h.shape[:2])


@every_kind
@pytest.mark.parametrize("is_directed", [False, True])
def test_outputs_and_gradients_equal_torch_geometrics(kind: str, is_directed: bool) -> None:
    layer = make_layer(kind)
    adjacency = make_graphs(is_directed=is_directed)
    ours = torch.randn(S, N, D, generator=torch.Generator().manual_seed(2)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
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
    adjacency = make_graphs(is_signed=True)
    peer = conv.GCNConv(D, D, normalize=False)
    peer.load_state_dict({"lin.weight": layer.project.weight, "bias": layer.bias})
    degree = adjacency.abs().sum(-1)
    edge_index, weight = edge_list(adjacency / (degree[:, :, None] * degree[:, None]).sqrt())
    torch.testing.assert_close(layer(h, adjacency), peer(h.flatten(0, 1), edge_index, weight).unflatten(0, (S, N)))


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
def test_reversed_edges_change_the_result(kind: str) -> None:
    layer = make_layer(kind)
    h = torch.randn(S, N, D)
    adjacency = make_graphs()
    assert not torch.allclose(layer(h, adjacency), layer(h, adjacency.mT))


@every_kind
@pytest.mark.parametrize("self_loop", [0.0, 1.0])
def test_the_output_of_a_node_without_neighbours_is_finite(kind: str, self_loop: float) -> None:
    y = make_layer(kind)(torch.randn(2, 3, D), self_loop * torch.eye(3).expand(2, 3, 3))
    assert torch.isfinite(y).all()


def test_sage_and_gcn_give_hand_computed_numbers() -> None:
    """Node 0 has edges from node 1 (weight 1) and from node 2 (weight 2); all weights of the layers are 1."""
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
    assert sage(h, adjacency)[0, :, 0].tolist() == [(2.0 + 6.0) / 2 + 1.0, 2.0, 6.0]
    # degrees with self-loops: 4, 1 and 1; each term is A_ij h_j / √(degree i · degree j)
    torch.testing.assert_close(gcn(h, adjacency)[0, 0, 0], torch.tensor(1 / 4 + 2 / 4**0.5 + 2 * 6 / 4**0.5))


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
def test_the_gain_makes_heavier_edges_count_more(kind: str) -> None:
    """With a large gain the softmax gives node 0 the value of node 1, whose edge to it is the heaviest."""
    layer = make_layer(kind)
    h = torch.randn(1, 3, D)
    adjacency = torch.tensor([[[1.0, 2.0, 0.1], [2.0, 1.0, 0.0], [0.1, 0.0, 1.0]]])
    with torch.no_grad():
        layer.gain.fill_(100.0)
    values = layer.project(h) if kind == "gat" else layer.send(h)
    torch.testing.assert_close(layer(h, adjacency)[0, 0], values[0, 1] + layer.bias)


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
@pytest.mark.parametrize("width", [D, 2, 48])
def test_every_attention_implementation_gives_the_same_values_and_gradients(
    kind: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares the kernel along edges, matrix products, and matrix products of one graph at a time.

    Some heads are narrower than a SIMD vector, some wider.
    """
    results = []
    limit = message_passing.MAX_TEMPORARY_ELEMENTS
    for method, max_elements in (("_sparse", limit), ("_dense", limit), ("_dense", 1)):
        monkeypatch.setattr(message_passing, "MAX_TEMPORARY_ELEMENTS", max_elements)
        torch.manual_seed(0)
        layer = MESSAGE_LAYERS[kind](width, heads=2)
        nn.init.normal_(layer.gain)
        h = torch.randn(S, N, width).requires_grad_()
        adjacency = make_graphs(is_signed=True).requires_grad_()
        y = message_passing.attend_in_chunks(getattr(layer, method), h, adjacency, elements_per_graph=1)
        y.square().sum().backward()
        parameter_grads = [p.grad for p in layer.parameters() if p is not layer.bias]
        results.append([y, h.grad, *parameter_grads, torch.where(adjacency != 0, adjacency.grad, 0.0)])
        with torch.no_grad():
            torch.testing.assert_close(layer(h, adjacency), y + layer.bias)
    expected, *others = results
    for other in others:
        for actual, from_kernel in zip(other, expected, strict=True):
            torch.testing.assert_close(actual, from_kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, D, 48])
@pytest.mark.parametrize("n", [2, N, 37])
def test_means_along_the_edges_equal_means_by_matrix_product(width: int, n: int) -> None:
    adjacency = make_graphs(is_signed=True, n=n)
    results = []
    adjacency[0, 0, 0] = 0.0  # a missing self-loop changes nothing
    for compute_means in (edges_cpu.neighbour_means, SAGE._dense):
        h = torch.randn(S, n, width, generator=torch.Generator().manual_seed(2)).requires_grad_()
        y = compute_means(h, adjacency)
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), h)))
    for along_edges, by_product in zip(*results, strict=True):
        torch.testing.assert_close(along_edges, by_product)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_edges_are_listed_by_node_and_every_node_has_one_self_loop(n: int) -> None:
    adjacency = make_graphs(is_signed=True, n=n)
    adjacency[1] *= 1 - torch.eye(n)  # the second graph has no self-loops
    first_edge, senders = edges_cpu.list_edges(adjacency)
    has_edge = ((adjacency != 0) | torch.eye(n, dtype=torch.bool)).flatten(0, 1)
    assert len(first_edge) == S * n + 1 and first_edge[-1] == len(senders)
    for i in range(S * n):
        assert sorted(senders[first_edge[i] : first_edge[i + 1]].tolist()) == has_edge[i].nonzero()[:, 0].tolist()


def test_dense_graphs_use_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "attend", pytest.fail)  # the edge-by-edge kernel must not run
    assert GAT(D, dense=True)(torch.randn(S, N, D), torch.ones(S, N, N)).shape == (S, N, D)


@pytest.mark.parametrize("kind", message_passing.ATTENTION_KINDS)
def test_two_threads_give_the_same_result_as_one(kind: str) -> None:
    layer = make_layer(kind)
    h = torch.randn(S, N, D, requires_grad=True)
    adjacency = make_graphs()
    results = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        y = layer(h, adjacency)
        results.append((y, *torch.autograd.grad(y.square().sum(), [h, layer.gain])))
    torch.set_num_threads(1)
    assert all(torch.equal(by_one, by_two) for by_one, by_two in zip(*results, strict=True))


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
def test_heads_that_do_not_divide_the_width_are_refused(kind: str) -> None:
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
            queries = layer.query(h[s, i]).split(D // HEADS)
            keys = layer.key(h[s]).split(D // HEADS, 1)
            for query, key in zip(queries, keys, strict=True):
                expected[s, i, others] += torch.softmax(key[others] @ query / (D / HEADS) ** 0.5, 0) / HEADS
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
