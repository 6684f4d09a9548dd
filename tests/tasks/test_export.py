"""Export of a published fold: the newest fold of the model, with unchanged weights, all three files or none.

A published fold belongs to a trial that a published night (the run for one as-of date) registered.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from models.features.scaling import Scaler
from models.training.artifact import FitResult, Header, file_hash, save_artifact
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError, ExportError, MissingArtifactError
from models.zoo import Spec, build
from tasks.errors import NoModelError
from tasks.export import export_model
from tests.desk import Desk
from warehouse.connect import Warehouse
from warehouse.errors import NotPublishedError
from warehouse.publish import publish_copy
from warehouse.tables import append

KEYS = {"source": "recorded", "universe": "stocks"}
DAY_US = 86_400_000_000  # length of a daily bar in microseconds
FILES = ["model.safetensors", "sequence.onnx", "step.onnx"]


def june(day: int) -> datetime:
    """Midnight (UTC) of a day in June 2024."""
    return datetime(2024, 6, day, tzinfo=UTC)


def save_model_file(warehouse: Warehouse, name: str, model: str, seed: int) -> str:
    """Writes the model file of a fitted network; returns its sha256."""
    spec = Spec(model, d_model=8, n_layers=1, d_state=4)
    scaler = Scaler(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    fit_result = FitResult(
        epochs=1,
        validation_loss=0.5,
        train_rows=10,
        validation_rows=5,
        parameters=1,
        data_hash="d",
        code_version="c",
    )
    header = Header(spec, TrainConfig(), scaler, (1, 5), DAY_US, fit_result)
    return save_artifact(warehouse.artifacts / name, header, build(spec, 2, 2, seed).state_dict())


def store_fold(warehouse: Warehouse, trial: str, fold: int, model: str = "gru") -> None:
    """Writes the model file and the row of one fold; its weights are seeded by ``fold``."""
    name = f"{trial}-{fold}.safetensors"
    row = {"fold": fold, "fold_key": name, "purge_bars": 0, "embargo_bars": 0, "train_rows": 10, "validation_rows": 5}
    row |= {"train_start": june(1), "train_end": june(2), "last_label_end": june(3)}
    row |= {"test_start": june(5 + fold), "epochs": 1, "data_hash": "d", "code_version": "c"}
    row |= {"artifact": name, "artifact_sha256": save_model_file(warehouse, name, model, fold)}
    with warehouse.write("fold") as con:
        append(con, "store.folds", pa.Table.from_pylist([row]), **KEYS, trial_id=trial, run_id="r")


def publish_night(warehouse: Warehouse, day: int, trials: dict[str, list[str]]) -> None:
    """Publishes a night of June; ``trials`` has the trial ids by model, and its first model is the champion."""
    keys = {"night": date(2024, 6, day), **KEYS, "run_id": f"r{day}"}
    night_row = {"clock": june(day), "settings": "{}", "settings_hash": "", "state": "published"}
    night_row |= {"published_at": june(day)}
    registry = [
        {"role": "champion" if not k else "challenger", "model": model, "trial_ids": ids, "reason": "best"}
        for k, (model, ids) in enumerate(trials.items())
    ]
    with warehouse.write("night") as con:
        append(con, "store.nights", pa.Table.from_pylist([night_row]), **keys)
        append(con, "store.model_registry", pa.Table.from_pylist(registry), **keys)
    publish_copy(warehouse, *KEYS.values())


@pytest.fixture
def warehouse(desk: Desk) -> Warehouse:
    """A warehouse with a published night of gru (trial t1 with folds 0 and 1, t2 with fold 1) and ssm_gnn (trial g).

    Trial t9 has the newest fold, but no published night registered it.
    """
    for trial, fold, model in [("t1", 0, "gru"), ("t1", 1, "gru"), ("t2", 1, "gru"), ("g", 0, "ssm_gnn")]:
        store_fold(desk.warehouse, trial, fold, model)
    store_fold(desk.warehouse, "t9", 9)
    publish_night(desk.warehouse, 20, {"gru": ["t1", "t2"], "ssm_gnn": ["g"]})
    return desk.warehouse


def test_the_newest_published_fold_is_exported_with_all_files(warehouse: Warehouse, tmp_path: Path) -> None:
    exported = export_model(warehouse, "stocks", "gru", tmp_path / "a" / "out", bars=4, assets=1)
    assert (exported.source, exported.night, exported.fold) == ("recorded", date(2024, 6, 20), 1)
    assert sorted(p.name for p in (tmp_path / "a" / "out").iterdir()) == FILES
    assert file_hash(exported.weights) == file_hash(warehouse.artifacts / "t1-1.safetensors")
    assert [file.path for file in exported.onnx_files] == [
        exported.weights.with_name(f"{name}.onnx") for name in ("step", "sequence")
    ]


@pytest.mark.parametrize(
    ("universe", "model", "message"),
    [
        ("stocks", "s4d", "no published night of stocks has a fold of s4d; run one to its end"),
        ("elsewhere", "gru", "no published night of elsewhere has a fold of gru"),
        ("stocks", "momentum", "model 'momentum' is a rule"),
        ("stocks", "nought", "unknown model 'nought'; the zoo has"),
    ],
)
def test_a_model_without_a_published_fold_is_refused(
    warehouse: Warehouse, tmp_path: Path, universe: str, model: str, message: str
) -> None:
    with pytest.raises(NoModelError, match=message):
        export_model(warehouse, universe, model, tmp_path / "out", bars=4, assets=1)
    assert not (tmp_path / "out").exists()


def test_before_the_first_publish_there_is_nothing_to_export(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(NotPublishedError, match="run a night to its end first"):
        export_model(desk.warehouse, "stocks", "gru", tmp_path / "out", bars=4, assets=1)


def test_a_file_that_the_fold_did_not_write_is_not_exported(warehouse: Warehouse, tmp_path: Path) -> None:
    artifact = warehouse.artifacts / "t1-1.safetensors"
    save_model_file(warehouse, artifact.name, "gru", seed=7)  # a valid file with other weights
    with pytest.raises(DamagedArtifactError, match=r"t1-1\.safetensors: not the file that the fold wrote"):
        export_model(warehouse, "stocks", "gru", tmp_path / "out", bars=4, assets=1)
    artifact.unlink()
    with pytest.raises(MissingArtifactError, match="run the night again"):
        export_model(warehouse, "stocks", "gru", tmp_path / "out", bars=4, assets=1)
    assert not (tmp_path / "out").exists()


def test_a_network_without_an_onnx_form_leaves_no_file(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="reads the correlation graph"):
        export_model(warehouse, "stocks", "ssm_gnn", tmp_path, bars=4, assets=1)
    assert list(tmp_path.glob("*.onnx*")) == list(tmp_path.glob("*.safetensors*")) == []
