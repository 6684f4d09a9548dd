"""Dropout that draws from a generator of its own.

``nn.Dropout`` draws from the process's generator: two fits side by side in one process would disturb each other, and
neither would come out the same twice. Networks of the zoo use this one; whoever trains them reseeds it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class RandomModule(nn.Module):
    """What draws at random, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self._generator: torch.Generator | None = None

    def reseed(self, seed: int) -> None:
        """What is drawn from now on follows from ``seed``."""
        self.seed, self._generator = seed, None

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator, as far as it has been drawn from since it was reseeded."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator


class Dropout(RandomModule):
    """Zeroes each value with probability ``p`` in training and scales the rest by 1 / (1 − p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x with some values dropped, or x itself in evaluation."""
        if not self.training or self.p == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator(x.device))
        return x * kept.div_(1 - self.p)


def reseed(network: nn.Module, *seed: int) -> None:
    """Reseeds all that draws in ``network``, from the numbers given and its place in the network."""
    layers = [m for m in network.modules() if isinstance(m, RandomModule)]
    for place, layer in enumerate(layers):
        layer.reseed(seed_of(*seed, place))


def seed_of(*numbers: int) -> int:
    """One seed that follows from several numbers, in [0, 2⁶³)."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8]) >> 1
