"""Networks one half of which is fitted first, alone, on the same fold (inventory HYB-12): never on bars after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from models.nets.ssm_gnn import SsmGnn
from models.training.artifact import load_artifact
from models.training.errors import ArtifactError
from models.training.module import OnEpoch
from models.zoo import Spec


def part_alone(spec: Spec, network: nn.Module) -> Spec | None:
    """The spec of the half that is fitted first; None for a network that is fitted in one go."""
    if not isinstance(network, SsmGnn) or network.hybrid.pretrained is None:
        return None
    alone = {"parts": network.hybrid.pretrained, "pretrained": None, "frozen": False}
    return replace(spec, options={**spec.options, **alone})


def fitted_weights(
    artifact: Path, fit: Callable[[Path, Path, OnEpoch | None], object], on_epoch: OnEpoch | None
) -> Mapping[str, Tensor]:
    """The weights in the model file ``artifact``, which ``fit`` writes if it is not there or cannot be read."""
    try:
        return load_artifact(artifact).network.state_dict()
    except ArtifactError:
        fit(artifact, artifact.with_suffix(".ckpt"), on_epoch)
    return load_artifact(artifact).network.state_dict()
