"""Dropout with a generator per layer."""

import torch
from torch import nn

from models.layers.dropout import Dropout, derive_seed, reseed


def test_dropout_zeroes_a_share_p_of_the_values_and_preserves_the_mean() -> None:
    layer = Dropout(0.25)
    x = torch.ones(100_000)
    y = layer(x)  # the standard error of the share is 0.0014, of the mean 0.0018
    assert abs(float((y == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(y.mean()) - 1.0) < 0.01


def test_dropout_is_the_identity_in_evaluation() -> None:
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x


def test_a_seed_reproduces_the_draws_without_the_generator_of_the_process() -> None:
    network = nn.Sequential(Dropout(0.5), Dropout(0.5))
    x = torch.ones(64)
    process_state = torch.get_rng_state()
    reseed(network, 3, 1)
    first = network(x)
    assert not torch.equal(network(x), first)
    reseed(network, 3, 1)
    assert torch.equal(network(x), first)
    assert torch.equal(torch.get_rng_state(), process_state)


def test_every_layer_of_a_network_has_different_draws() -> None:
    network = nn.Sequential(Dropout(0.5), Dropout(0.5))
    x = torch.ones(64)
    reseed(network, 3, 1)
    assert not torch.equal(network[0](x), network[1](x))


def test_different_numbers_give_different_seeds() -> None:
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 20 * 20
