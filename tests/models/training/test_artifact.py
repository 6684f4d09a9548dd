"""Model files: read completely or refused with the right error, and never executed."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.features.scaling import Scaler
from models.training.artifact import (
    METADATA_KEY,
    FitResult,
    Header,
    file_hash,
    load_artifact,
    read_header,
    save_artifact,
)
from models.training.config import TrainConfig
from models.training.errors import DamagedArtifactError, ForeignArtifactError, MissingArtifactError
from models.zoo import Spec, build

HEADER = Header(
    spec=Spec("mamba", d_model=8, n_layers=1, d_state=4, options={"expand": 1}),
    config=TrainConfig(epochs=3, seed=7),
    scaler=Scaler(("a", "b"), centre=(0.1, 1 / 3), scale=(1.0, 2.0)),
    horizons=(1, 24),
    bar_us=3_600_000_000,
    fit_result=FitResult(
        epochs=3,
        validation_loss=1.25,
        train_rows=100,
        validation_rows=20,
        parameters=999,
        data_hash="data",
        code_version="code",
    ),
)


def make_weights() -> dict[str, torch.Tensor]:
    """The initial weights of the network of HEADER, the same in every call."""
    return build(HEADER.spec, len(HEADER.scaler.columns), len(HEADER.horizons)).state_dict()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A model file with HEADER and the weights of ``make_weights``."""
    path = tmp_path / "model.safetensors"
    save_artifact(path, HEADER, make_weights())
    return path


def rewrite_header(path: Path, **changes: object) -> None:
    """Replaces entries of the header in the file's metadata."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(weights, path, metadata={METADATA_KEY: json.dumps(header | changes)})


def test_a_header_is_read_as_it_was_written(artifact: Path) -> None:
    assert read_header(artifact) == HEADER
    assert load_artifact(artifact).network.training is False
    assert [p.name for p in artifact.parent.iterdir()] == ["model.safetensors"]


def test_the_same_header_and_weights_give_the_same_file(artifact: Path) -> None:
    second = artifact.with_name("second.safetensors")
    assert save_artifact(second, HEADER, make_weights()) == file_hash(artifact)
    assert second.read_bytes() == artifact.read_bytes()


def test_a_truncated_file_is_damaged(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-100])
    with pytest.raises(DamagedArtifactError, match=r"model\.safetensors: not a readable model file; delete it"):
        load_artifact(artifact)


def test_one_flipped_bit_of_a_weight_is_detected(artifact: Path) -> None:
    contents = bytearray(artifact.read_bytes())
    contents[-3] ^= 1
    artifact.write_bytes(contents)
    with pytest.raises(DamagedArtifactError, match="the weights are not those that were written"):
        read_header(artifact)


def test_an_empty_file_is_damaged(artifact: Path) -> None:
    artifact.write_bytes(b"")
    with pytest.raises(DamagedArtifactError):
        load_artifact(artifact)


def test_a_safetensors_file_of_another_program_is_damaged(artifact: Path) -> None:
    save_file({"w": torch.zeros(2)}, artifact)
    with pytest.raises(DamagedArtifactError):
        load_artifact(artifact)


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_refused_and_not_executed(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(artifact.parent)
    artifact.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedArtifactError):
        load_artifact(artifact)
    torch.save({"w": Bomb()}, artifact)
    with pytest.raises(DamagedArtifactError):
        load_artifact(artifact)
    assert not Path("exploded").exists()


def test_a_path_without_a_file_is_a_missing_artifact(tmp_path: Path) -> None:
    for read in (load_artifact, read_header, file_hash):
        with pytest.raises(MissingArtifactError, match=r"no model file at .*none; fit the fold again"):
            read(tmp_path / "none")


def test_weights_of_another_network_are_foreign(artifact: Path) -> None:
    rewrite_header(artifact, spec=Spec("mamba", d_model=16, n_layers=1, d_state=4).to_json())
    with pytest.raises(ForeignArtifactError, match="its weights do not fit the mamba network"):
        load_artifact(artifact)


def test_a_file_of_a_newer_format_is_foreign(artifact: Path) -> None:
    rewrite_header(artifact, format=99)
    with pytest.raises(ForeignArtifactError, match="model file format 99, this program reads 1"):
        load_artifact(artifact)


def test_a_failed_write_leaves_the_previous_file(artifact: Path) -> None:
    before = artifact.read_bytes()
    with pytest.raises(RuntimeError, match="share memory"):
        shared = torch.zeros(4)
        save_artifact(artifact, HEADER, {"a": shared, "b": shared[:]})
    assert artifact.read_bytes() == before
    assert len(list(artifact.parent.iterdir())) == 1
