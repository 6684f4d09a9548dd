"""Dropout with a random generator per layer.

``nn.Dropout`` draws from the generator of the process. Two fits that run in parallel threads would change each other's
draws, and neither could be reproduced. The networks use this module instead, and training reseeds it.
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
        """Restarts the generator from ``seed``: later draws depend on the seed alone."""
        self.seed = seed
        self._generator = None

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator on ``device``.

        It starts from the seed at the first call, after ``reseed``, and on a new device.
        """
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator


class Dropout(RandomModule):
    """In training, sets each value to zero with probability ``p`` in [0, 1), and divides the others by 1 − p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x with some values set to zero; in evaluation, or with p = 0, the same tensor x."""
        if not self.training or self.p == 0:
            return x
        mask = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator(x.device))
        return x * mask.div_(1 - self.p)


def reseed(network: nn.Module, *seed: int) -> None:
    """Reseeds every RandomModule of ``network``.

    The seed of each depends on the numbers ``seed`` and on its position among the random modules of the network.
    """
    random_modules = [m for m in network.modules() if isinstance(m, RandomModule)]
    for position, module in enumerate(random_modules):
        module.reseed(derive_seed(*seed, position))


def derive_seed(*numbers: int) -> int:
    """One seed in [0, 2⁶³) from several numbers: a hash of their decimal text, so their order matters."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8]) >> 1
