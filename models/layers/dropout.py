"""Dropout with a random generator per layer.

``nn.Dropout`` draws from the process's generator, so two fits that run side by side in one process would change each
other's draws and neither could be reproduced. Networks of the zoo use this module; training reseeds it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class RandomModule(nn.Module):
    """A module that draws random numbers from its own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self._generator: torch.Generator | None = None

    def reseed(self, seed: int) -> None:
        """Restarts the generator from ``seed``: later draws depend on it alone."""
        self.seed = seed
        self._generator = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator on ``device``; created from the seed at the first call and after ``reseed``."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator


class Dropout(RandomModule):
    """Sets each value to zero with probability ``p`` in training and scales the others by 1 / (1 − p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x with some values dropped, or x itself in evaluation."""
        if not self.training or self.p == 0:
            return x
        mask = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator(x.device))
        return x * mask.div_(1 - self.p)


def reseed(network: nn.Module, *seed: int) -> None:
    """Reseeds every RandomModule of ``network``, from the numbers ``seed`` and the module's position in the network."""
    layers = [m for m in network.modules() if isinstance(m, RandomModule)]
    for position, layer in enumerate(layers):
        layer.reseed(seed_of(*seed, position))


def seed_of(*numbers: int) -> int:
    """One seed in [0, 2⁶³) computed from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8]) >> 1
