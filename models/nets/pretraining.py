"""Networks a part of which is fitted first, by itself, and then adopted by the whole (inventory HYB-12, TGN-21)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.layers.errors import StateError


class PretrainingPhase(NamedTuple):
    """How the part is fitted: ``options`` that make the network that part alone, and ``settings`` of a TrainConfig that
    are others than the whole network's."""

    options: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})


def load_pretrained(modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor], part: str) -> None:
    """Gives the ``modules`` of a part, by their names in the network, what ``weights`` says of them. Raises StateError
    where it says nothing of a weight, or has it in another shape."""
    for name, module in modules.items():
        expected = module.state_dict()
        own = {key: weights.get(f"{name}.{key}") for key in expected}
        wrong = [key for key, value in expected.items() if getattr(own[key], "shape", None) != value.shape]
        if wrong:
            raise StateError(
                f"{len(wrong)} weights of the pretrained {part} part are missing or of another shape, the first "
                f"{name}.{wrong[0]}; fit that part alone with the same sizes and layer"
            )
        module.load_state_dict(own)
