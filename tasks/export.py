"""Export: writes a fitted network of the warehouse as files that other programs can run (safetensors and ONNX)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from models import zoo
from models.training.artifact import load_artifact
from models.training.errors import DamagedArtifactError, MissingArtifactError
from models.training.export import OnnxFile, export_onnx
from tasks.errors import NoModelError
from warehouse.connect import Warehouse
from warehouse.publish import read_published
from warehouse.tables import read_query


@dataclass(frozen=True)
class ExportedModel:
    """The exported files of one fold, and the night (the run for one as-of date) that published the fold.

    ``onnx_files`` are the step form and the sequence form of the network, in this order.
    """

    source: str
    night: date
    fold: int
    weights: Path
    onnx_files: tuple[OnnxFile, OnnxFile]


def export_model(
    warehouse: Warehouse, universe: str, model: str, folder: Path, bars: int, assets: int
) -> ExportedModel:
    """Writes the newest published fold of a model to model.safetensors, step.onnx and sequence.onnx, all or none.

    ``bars`` is the fixed sequence length of sequence.onnx, ``assets`` the fixed number of assets of both ONNX files.
    Raises NotPublishedError before the first published night, NoModelError for a model without a published fold,
    ArtifactError for a missing or changed model file, and ExportError for a network without an ONNX form.
    """
    try:
        zoo.find_network(model)
    except zoo.UnknownModelError as exc:
        raise NoModelError(f"{exc}; only networks are exported") from exc
    with read_published(warehouse) as con:
        rows = read_query(con, "newest_fold", source=None, universe=universe, model=model).to_pylist()
    if not rows:
        raise NoModelError(
            f"no published night of {universe} has a fold of {model}; run one to its end with this model first, or see "
            "which there are: SELECT universe, model, night FROM model_registry"
        )
    (row,) = rows
    contents = _read_verified(warehouse.artifacts / row["artifact"], row["artifact_sha256"])
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    partial = weights.with_name(f"{weights.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(contents)
        onnx_files = export_onnx(load_artifact(partial), folder, n_bars=bars, n_assets=assets)
        partial.replace(weights)
    finally:
        partial.unlink(missing_ok=True)
    return ExportedModel(row["source"], row["night"], row["fold"], weights, onnx_files)


def _read_verified(artifact: Path, sha256: str) -> bytes:
    """The file's bytes. Raises MissingArtifactError, or DamagedArtifactError if their SHA-256 is not ``sha256``."""
    try:
        contents = artifact.read_bytes()
    except FileNotFoundError as exc:
        raise MissingArtifactError(
            f"no model file at {artifact}; run the night again, it fits what is missing"
        ) from exc
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise DamagedArtifactError(f"{artifact}: not the file that the fold wrote; delete it and run the night again")
    return contents
