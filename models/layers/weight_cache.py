"""What follows from a layer's weights alone, kept between bars while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn


class WeightCache:
    """Calls ``make``, a method of a layer, when weights of that layer have changed since the last call.

    A change is seen by the version that torch counts on every tensor. Fused optimisers change weights without counting,
    so nothing is kept of a layer in training, and what was kept goes when training begins or ends (``CachingModule``). A
    write through ``weight.data`` in evaluation is seen by nobody: follow it by ``layer.eval()``.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Any = make
        self._seen: list[tuple[int, int]] | None = None
        self._made: Any = None

    def __call__(self) -> Any:
        """What ``make`` gives for the weights as they are."""
        layer = self._make.__self__
        if layer.training:
            return self._make()
        try:
            seen = [(p.data_ptr(), p._version) for p in layer._parameters.values()]
        except RuntimeError:  # a tensor made in inference mode counts no versions
            return self._make()
        if seen != self._seen:
            self._made, self._seen = self._make(), seen
        return self._made

    def clear(self) -> None:
        """Keeps nothing."""
        self._seen = self._made = None


class CachingModule(nn.Module):
    """A layer that keeps Constants: none of them outlives a change between training and evaluation."""

    def train(self, mode: bool = True) -> Self:
        """As every module's."""
        for value in vars(self).values():
            if isinstance(value, WeightCache):
                value.clear()
        return super().train(mode)
