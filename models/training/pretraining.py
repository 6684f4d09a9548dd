"""Pretraining: a part of a network is fitted alone, on the same fold, before the whole network is fitted.

The phases are defined in models/nets/pretraining.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from models.nets.pretraining import PretrainingPhase
from models.training.artifact import load_artifact
from models.training.config import TrainConfig
from models.training.errors import ArtifactError
from models.training.module import OnEpoch
from models.zoo import Spec


def pretraining_fit(spec: Spec, config: TrainConfig, network: nn.Module) -> tuple[Spec, TrainConfig] | None:
    """The spec and the config of the pretraining fit of ``network``; None for a network without pretraining."""
    phase: PretrainingPhase | None = getattr(network, "pretraining", None)
    if phase is None:
        return None
    return replace(spec, options={**spec.options, **phase.options}), replace(config, **phase.settings)


def fitted_weights(
    artifact: Path, fit: Callable[[Path, Path, OnEpoch | None], object], on_epoch: OnEpoch | None
) -> Mapping[str, Tensor]:
    """The weights in the model file ``artifact``. If it is missing or invalid, ``fit`` writes it first.

    ``fit(artifact, checkpoint, on_epoch)`` is called with a checkpoint file beside the model file. Raises the errors of
    ``load_artifact`` for the file that ``fit`` has written.
    """
    try:
        return load_artifact(artifact).network.state_dict()
    except ArtifactError:
        fit(artifact, artifact.with_suffix(".ckpt"), on_epoch)
    return load_artifact(artifact).network.state_dict()
