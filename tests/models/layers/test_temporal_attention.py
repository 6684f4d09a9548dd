"""Attention over neighbours: its fused form, its gathered form and the papers' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.layers import temporal_attention
from models.layers.errors import SizeError
from models.layers.temporal_attention import Slots, TemporalAttention, _attend

Q, K, NODES, F, P, D = 7, 5, 9, 3, 8, 12


def slots_of(m: int) -> Slots:
    """Random neighbours with gradients; the third node has none."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(-1, NODES, (Q, K), generator=draw)
    ids[2] = -1
    table, fade, said, frequency = (
        t.requires_grad_()
        for t in (
            torch.randn(NODES, m, generator=draw),
            torch.rand(Q, K, generator=draw),
            torch.randn(Q, K, F, generator=draw),
            torch.rand(P // 2, generator=draw),
        )
    )
    return Slots(table, ids, fade, said, 100 * torch.rand(Q, K, generator=draw), frequency)


def everything(layer: TemporalAttention, form: str, m: int) -> list[Tensor]:
    """Output and all gradients."""
    slots, z = slots_of(m), torch.randn(Q, D, generator=torch.Generator().manual_seed(2)).requires_grad_()
    layer.zero_grad()
    y = getattr(layer, form)(z, slots)
    y.sin().sum().backward()
    grads = [z.grad, slots.fade.grad, slots.said.grad, slots.frequency.grad, *(p.grad for p in layer.parameters())]
    found = [torch.zeros(1) if g is None else g.clone() for g in grads]
    return [y.detach(), *found, torch.zeros(1) if slots.table.grad is None else slots.table.grad]


@pytest.mark.parametrize("m", [12, 0])
def test_the_fused_form_and_its_gradients_are_the_papers(m: int) -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(D, m + F + P, heads=2)
    for fast, slow in zip(everything(layer, "forward", m), everything(layer, "reference", m), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_the_gathered_form_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(D, 12 + F + P, heads=3)
    fused = everything(layer, "forward", 12)

    class Gathered:
        @staticmethod
        def apply(asked: Tensor, *slots: Tensor) -> Tensor:
            return _attend(asked, Slots(*slots))

    monkeypatch.setattr(temporal_attention, "Attend", Gathered)
    for a, b in zip(everything(layer, "forward", 12), fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_node_without_neighbours_hears_nothing_and_an_empty_slot_is_never_read() -> None:
    torch.manual_seed(0)
    layer, slots, z = TemporalAttention(D, 12 + F + P, heads=2), slots_of(12), torch.randn(Q, D)
    expected = layer._merge(torch.cat([torch.zeros(1, D), z[2:3]], dim=1))
    torch.testing.assert_close(layer(z, slots)[2:3], expected)
    empty = slots.ids < 0
    said, elapsed = torch.where(empty[..., None], 99.0, slots.said), torch.where(empty, 99.0, slots.elapsed)
    other = slots._replace(said=said, elapsed=elapsed)
    assert torch.equal(layer(z, slots), layer(z, other))


def test_many_nodes_are_shared_among_threads_to_the_same_bits() -> None:
    torch.manual_seed(0)
    layer, threads = TemporalAttention(D, 12 + F + P, heads=2), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(everything(layer, "forward", 12)[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(SizeError, match="12 channels do not divide into 5 heads"):
        TemporalAttention(12, 3, heads=5)
