"""Dropout from a generator of its own."""

import torch
from torch import nn

from models.layers.dropout import Dropout, reseed, seed_of


def test_drops_its_share_and_keeps_the_mean() -> None:
    layer, x = Dropout(0.25), torch.ones(100_000)
    y = layer(x)
    assert abs(float((y == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(y.mean()) - 1.0) < 0.01


def test_evaluation_is_the_identity() -> None:
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x


def test_the_same_seed_draws_the_same_and_leaves_the_process_generator_alone() -> None:
    network, x = nn.Sequential(Dropout(0.5), Dropout(0.5)), torch.ones(64)
    before = torch.get_rng_state()
    reseed(network, 3, 1)
    first = network(x)
    assert not torch.equal(network(x), first)
    reseed(network, 3, 1)
    assert torch.equal(network(x), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_layer_and_every_epoch_draws_its_own() -> None:
    network, x = nn.Sequential(Dropout(0.5), Dropout(0.5)), torch.ones(64)
    reseed(network, 3, 1)
    assert not torch.equal(network[0](x), network[1](x))
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400
