"""Pretraining: a part of a network is fitted by itself and then loaded into the whole network (HYB-12, TGN-21;
ids: .github/sources.md)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from models.layers.errors import StateError


class PretrainingPhase(NamedTuple):
    """How a part is pretrained.

    ``options``: options of the Spec that build a network of this part alone. ``settings``: fields of TrainConfig that
    replace those of the whole network during pretraining.
    """

    options: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})


def load_pretrained(modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor], part: str) -> None:
    """Loads ``weights``, the state dict of a pretrained network, into ``modules``.

    The keys of ``modules`` are the modules' names in that state dict; weights of other modules are ignored. ``part``:
    name of the part for error messages. Raises StateError where a weight is missing or has another shape.
    """
    for name, module in modules.items():
        expected = module.state_dict()
        part_weights = {key: weights.get(f"{name}.{key}") for key in expected}
        misfit_names = [
            key for key, value in expected.items() if getattr(part_weights[key], "shape", None) != value.shape
        ]
        if misfit_names:
            raise StateError(
                f"{len(misfit_names)} weights of the pretrained {part} part are missing or of another shape, the first "
                f"{name}.{misfit_names[0]}; fit that part alone with the same sizes and layer"
            )
        module.load_state_dict(part_weights)
