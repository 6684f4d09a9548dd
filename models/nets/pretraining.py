"""Networks with a part that is fitted first, by itself, and then loaded into the whole network (HYB-12, TGN-21)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.layers.errors import StateError


class PretrainingPhase(NamedTuple):
    """How the part is fitted. ``options``: build the network that consists of this part alone; ``settings``: fields of
    TrainConfig that replace those of the whole network."""

    options: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})


def load_pretrained(modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor], part: str) -> None:
    """Loads ``weights`` into the ``modules`` of a part, given by their names in the network. Raises StateError where a
    weight is missing or has another shape."""
    for name, module in modules.items():
        expected = module.state_dict()
        part_weights = {key: weights.get(f"{name}.{key}") for key in expected}
        wrong = [key for key, value in expected.items() if getattr(part_weights[key], "shape", None) != value.shape]
        if wrong:
            raise StateError(
                f"{len(wrong)} weights of the pretrained {part} part are missing or of another shape, the first "
                f"{name}.{wrong[0]}; fit that part alone with the same sizes and layer"
            )
        module.load_state_dict(part_weights)
