"""Model files (artifacts): the weights of a network and everything needed to use them, in one safetensors file.

The file's metadata contains one JSON text: spec, config, scaler (with the feature columns), horizons, length of a bar,
the result of the fit, and the hash of the weights. Reading a file never executes code from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.features.scaling import Scaler
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError, ForeignArtifactError, MissingArtifactError
from models.zoo import Spec, build

FORMAT = 1
METADATA_KEY = "nightgraph"


@dataclass(frozen=True)
class FitResult:
    """Numbers of one finished fit.

    ``epochs``: the number of epochs that were run. ``validation_loss``: the lowest one, of the epoch whose weights are
    kept. ``train_rows`` and ``validation_rows``: (bar, asset) pairs with a known label. ``parameters``: the number of
    the network's parameters. ``data_hash`` and ``code_version``: see models.training.keys.
    """

    epochs: int
    validation_loss: float
    train_rows: int
    validation_rows: int
    parameters: int
    data_hash: str
    code_version: str


@dataclass(frozen=True)
class Header:
    """The metadata of a model file. ``horizons``: in bars. ``bar_us``: the length of a bar in microseconds."""

    spec: Spec
    config: TrainConfig
    scaler: Scaler
    horizons: tuple[int, ...]
    bar_us: int
    fit_result: FitResult


@dataclass(frozen=True)
class Artifact:
    """The contents of a model file: its header, and the network with the stored weights in evaluation mode."""

    header: Header
    network: nn.Module


def save_artifact(path: Path, header: Header, weights: Mapping[str, Tensor]) -> str:
    """Writes a model file and returns its sha256. After a failure ``path`` still holds the previous file."""
    text = json.dumps(
        {
            "format": FORMAT,
            "spec": header.spec.to_json(),
            "config": header.config.to_json(),
            "scaler": header.scaler.to_dict(),
            "horizons": list(header.horizons),
            "bar_us": header.bar_us,
            "outcome": asdict(header.fit_result),
            "weights": weights_hash(weights),
        },
        sort_keys=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: value.contiguous() for name, value in weights.items()}, partial, metadata={METADATA_KEY: text})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return file_hash(path)


def read_header(path: Path) -> Header:
    """The header of the model file. Raises MissingArtifactError, DamagedArtifactError, ForeignArtifactError."""
    header, _ = _read(path)
    return header


def load_artifact(path: Path) -> Artifact:
    """The header and the network of a file. Raises MissingArtifactError, DamagedArtifactError, ForeignArtifactError."""
    header, weights = _read(path)
    network = build(header.spec, len(header.scaler.columns), len(header.horizons))
    try:
        network.load_state_dict(weights)
    except RuntimeError as exc:
        raise ForeignArtifactError(
            f"{path}: its weights do not fit the {header.spec.model} network of this program; delete it and fit again "
            f"({exc})"
        ) from exc
    return Artifact(header, network.eval())


def file_hash(path: Path) -> str:
    """The sha256 of a file. Raises MissingArtifactError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as exc:
        raise MissingArtifactError(f"no model file at {path}; fit the fold again") from exc


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the weights. Raises MissingArtifactError, DamagedArtifactError, ForeignArtifactError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})[METADATA_KEY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["format"] != FORMAT:
            raise ForeignArtifactError(
                f"{path}: model file format {metadata['format']}, this program reads {FORMAT}; fit again"
            )
        if metadata["weights"] != weights_hash(weights):
            raise DamagedArtifactError(f"{path}: the weights are not those that were written; delete it and fit again")
        return _parse_header(metadata), weights
    except FileNotFoundError as exc:
        raise MissingArtifactError(f"no model file at {path}; fit the fold again") from exc
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as exc:
        raise DamagedArtifactError(f"{path}: not a readable model file; delete it and fit again ({exc})") from exc


def _parse_header(metadata: Mapping[str, Any]) -> Header:
    """The header from the stored JSON object. Raises KeyError, TypeError or ValueError for other contents."""
    return Header(
        spec=Spec(**metadata["spec"]),
        config=TrainConfig(**metadata["config"]),
        scaler=Scaler.from_dict(metadata["scaler"]),
        horizons=tuple(metadata["horizons"]),
        bar_us=metadata["bar_us"],
        fit_result=FitResult(**metadata["outcome"]),
    )


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """The sha256 of the names, shapes, types and bytes of ``weights``."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
