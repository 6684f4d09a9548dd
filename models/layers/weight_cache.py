"""A cache for arrays that depend on a layer's weights alone, such as the matrices of a step.

The cached arrays are used for every bar and are recomputed after a weight has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn


class WeightCache:
    """The result of ``compute``, a method of a layer, recomputed after a parameter of the layer itself has changed.

    ``compute`` may read only the layer's own parameters, not those of its submodules, which are not watched. A change
    is detected by the version counter of each tensor. Fused optimisers do not raise this counter, so nothing is cached
    in training mode, and ``CachingModule`` clears the cache when the mode is set. A write through ``weight.data`` in
    evaluation mode is not detected: call ``layer.eval()`` after it.
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute: Any = compute
        self._versions: list[tuple[int, int]] | None = None
        self._value: Any = None

    def __call__(self) -> Any:
        """The result of ``compute`` for the current weights."""
        layer = self._compute.__self__
        if layer.training:
            return self._compute()
        try:
            versions = [(p.data_ptr(), p._version) for p in layer._parameters.values()]
        except RuntimeError:  # a tensor created in inference mode has no version counter
            return self._compute()
        if versions != self._versions:
            self._value = self._compute()
            self._versions = versions
        return self._value

    def clear(self) -> None:
        """Drops the cached result."""
        self._versions = None
        self._value = None


class CachingModule(nn.Module):
    """A layer with WeightCache attributes, which are cleared whenever training or evaluation mode is set."""

    def train(self, mode: bool = True) -> Self:
        """Sets the mode as ``nn.Module.train`` does and clears the caches."""
        for value in vars(self).values():
            if isinstance(value, WeightCache):
                value.clear()
        return super().train(mode)
