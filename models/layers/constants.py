"""What follows from a layer's weights alone, kept between bars while they stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Constants:
    """Calls ``make``, a method of a layer, when weights of that layer have changed since the last call.

    A change is seen by the version that torch counts on every tensor; weights made in inference mode have none, and
    nothing is kept of them.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Any = make
        self._seen: list[tuple[int, int]] | None = None
        self._made: Any = None

    def __call__(self) -> Any:
        """What ``make`` gives for the weights as they are."""
        try:
            seen = [(p.data_ptr(), p._version) for p in self._make.__self__._parameters.values()]
        except RuntimeError:  # a tensor made in inference mode counts no versions
            return self._make()
        if seen != self._seen:
            self._made, self._seen = self._make(), seen
        return self._made
