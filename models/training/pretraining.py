"""Pretraining: part of a network is fitted first, by itself, on the same fold and never on later bars (see
models/nets/pretraining.py)."""

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
    """Spec and config of the pretraining fit; None for a network without pretraining."""
    phase: PretrainingPhase | None = getattr(network, "pretraining", None)
    if phase is None:
        return None
    return replace(spec, options={**spec.options, **phase.options}), replace(config, **phase.settings)


def fitted_weights(
    artifact: Path, fit: Callable[[Path, Path, OnEpoch | None], object], on_epoch: OnEpoch | None
) -> Mapping[str, Tensor]:
    """The weights in the model file ``artifact``; ``fit`` writes the file first if it is missing or unreadable."""
    try:
        return load_artifact(artifact).network.state_dict()
    except ArtifactError:
        fit(artifact, artifact.with_suffix(".ckpt"), on_epoch)
    return load_artifact(artifact).network.state_dict()
