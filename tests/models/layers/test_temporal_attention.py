"""Attention over neighbours: the fused kernel and the gathered tensors equal the papers' definition.

Ids such as TGN-04: .github/sources.md.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.layers import temporal_attention
from models.layers.errors import SizeError
from models.layers.temporal_attention import Slots, TemporalAttention, _attend_gathered

# Sizes, named as in temporal_attention.py
Q = 7  # query nodes
K = 5  # slots a node
N = 9  # nodes with a memory
M = 12  # numbers of a memory
F = 3  # features of an event
P = 8  # numbers of a time encoding
D = 12  # channels


def make_slots(m: int) -> Slots:
    """Random neighbours with gradients; the third node has no neighbours."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(-1, N, (Q, K), generator=generator)
    ids[2] = -1
    table, fade, features, frequency = (
        t.requires_grad_()
        for t in (
            torch.randn(N, m, generator=generator),
            torch.rand(Q, K, generator=generator),
            torch.randn(Q, K, F, generator=generator),
            torch.rand(P // 2, generator=generator),
        )
    )
    return Slots(table, ids, fade, features, 100 * torch.rand(Q, K, generator=generator), frequency)


def output_and_gradients(layer: TemporalAttention, method: str, m: int) -> list[Tensor]:
    """The output of ``layer.method``, then all gradients, the table's last; torch.zeros(1) for a missing gradient."""
    slots = make_slots(m)
    z = torch.randn(Q, D, generator=torch.Generator().manual_seed(2)).requires_grad_()
    layer.zero_grad()
    y = getattr(layer, method)(z, slots)
    y.sin().sum().backward()
    grads = [z.grad, slots.fade.grad, slots.features.grad, slots.frequency.grad, *(p.grad for p in layer.parameters())]
    grads = [torch.zeros(1) if g is None else g.clone() for g in grads]
    return [y.detach(), *grads, torch.zeros(1) if slots.table.grad is None else slots.table.grad]


@pytest.mark.parametrize("m", [M, 0])
def test_the_fused_kernel_and_its_gradients_equal_the_papers_definition(m: int) -> None:
    """TGN-04: a node attends to the memories of its newest neighbours."""
    torch.manual_seed(0)
    layer = TemporalAttention(D, m + F + P, heads=2)
    fused = output_and_gradients(layer, "forward", m)
    expected_results = output_and_gradients(layer, "reference", m)
    for actual, expected in zip(fused, expected_results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_the_gathered_tensors_give_the_result_of_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(D, M + F + P, heads=3)
    fused = output_and_gradients(layer, "forward", M)

    class GatheredAttend:
        @staticmethod
        def apply(query: Tensor, *slots: Tensor) -> Tensor:
            return _attend_gathered(query, Slots(*slots))

    monkeypatch.setattr(temporal_attention, "Attend", GatheredAttend)  # replaces the fused kernel
    gathered = output_and_gradients(layer, "forward", M)
    for actual, expected in zip(gathered, fused, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_node_without_neighbours_attends_to_zero_and_empty_slots_are_not_read() -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(D, M + F + P, heads=2)
    slots = make_slots(M)
    z = torch.randn(Q, D)
    expected = layer._merge(torch.cat([torch.zeros(1, D), z[2:3]], dim=1))  # the third node has no neighbours
    torch.testing.assert_close(layer(z, slots)[2:3], expected)
    is_empty = slots.ids < 0
    features = torch.where(is_empty[..., None], 99.0, slots.features)
    elapsed = torch.where(is_empty, 99.0, slots.elapsed)
    changed = slots._replace(features=features, elapsed=elapsed)
    assert torch.equal(layer(z, slots), layer(z, changed))


def test_the_gradient_of_the_table_is_bit_identical_with_one_and_three_threads() -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(D, M + F + P, heads=2)
    n_threads_before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            results.append(output_and_gradients(layer, "forward", M)[-1])
    finally:
        torch.set_num_threads(n_threads_before)
    assert torch.equal(*results)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(SizeError, match="12 channels do not divide into 5 heads"):
        TemporalAttention(12, 3, heads=5)
