"""Dropout with a generator per layer."""

import torch
from torch import nn

from models.layers.dropout import Dropout, reseed, seed_of


def test_dropout_zeroes_its_share_of_values_and_preserves_the_mean() -> None:
    layer = Dropout(0.25)
    x = torch.ones(100_000)
    y = layer(x)
    assert abs(float((y == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(y.mean()) - 1.0) < 0.01


def test_dropout_is_the_identity_in_evaluation() -> None:
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x


def test_the_same_seed_gives_the_same_draws_and_does_not_touch_the_process_generator() -> None:
    network = nn.Sequential(Dropout(0.5), Dropout(0.5))
    x = torch.ones(64)
    before = torch.get_rng_state()
    reseed(network, 3, 1)
    first = network(x)
    assert not torch.equal(network(x), first)
    reseed(network, 3, 1)
    assert torch.equal(network(x), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_layer_and_every_epoch_has_different_draws() -> None:
    network = nn.Sequential(Dropout(0.5), Dropout(0.5))
    x = torch.ones(64)
    reseed(network, 3, 1)
    assert not torch.equal(network[0](x), network[1](x))
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400
