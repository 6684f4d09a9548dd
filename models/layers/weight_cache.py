"""Arrays that depend on a layer's weights alone, kept between bars as long as the weights do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn


class WeightCache:
    """The result of ``make``, a method of a layer; recomputed when weights of that layer have changed.

    A change is detected by the version that torch counts on every tensor. Fused optimisers change weights without
    counting, so nothing is cached while a layer is in training, and ``CachingModule`` clears the cache when training
    begins or ends. A write through ``weight.data`` in evaluation is not detected: call ``layer.eval()`` after it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Any = make
        self._versions: list[tuple[int, int]] | None = None
        self._value: Any = None

    def __call__(self) -> Any:
        """The result of ``make`` for the present weights."""
        layer = self._make.__self__
        if layer.training:
            return self._make()
        try:
            versions = [(p.data_ptr(), p._version) for p in layer._parameters.values()]
        except RuntimeError:  # a tensor created in inference mode counts no versions
            return self._make()
        if versions != self._versions:
            self._value = self._make()
            self._versions = versions
        return self._value

    def clear(self) -> None:
        """Drops the cached result."""
        self._versions = None
        self._value = None


class CachingModule(nn.Module):
    """A layer with WeightCache attributes, which are cleared whenever it changes between training and evaluation."""

    def train(self, mode: bool = True) -> Self:
        """Sets the mode as ``nn.Module.train`` does and clears the caches."""
        for value in vars(self).values():
            if isinstance(value, WeightCache):
                value.clear()
        return super().train(mode)
