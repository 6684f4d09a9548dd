"""Pretraining: the pretrained part is fitted once, and its weights are loaded unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.nets.tgn import LINKS_ONLY
from models.training import fit as fit_module
from models.training.artifact import load_artifact, read_header
from models.training.fit import fit_fold
from models.training.module import FoldModule


class KilledError(Exception):
    """Simulates the end of the process."""


def test_the_network_starts_from_exactly_the_weights_of_the_pretrained_link_model(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial_weights = []
    train = fit_module._train

    def record_and_train(module: FoldModule, *arguments) -> None:
        initial_weights.append({name: value.clone() for name, value in module.network.state_dict().items()})
        train(module, *arguments)

    monkeypatch.setattr(fit_module, "_train", record_and_train)
    losses: list[float] = []
    fitted = fit_fold(
        **market.arguments("tgn_pretrained"),
        artifact=tmp_path / "m.safetensors",
        on_epoch=lambda epoch, loss: losses.append(loss),
    )
    (pretrained,) = set(tmp_path.glob("*.safetensors")) - {fitted.artifact}
    header = read_header(pretrained)
    pretrained_weights = load_artifact(pretrained).network.state_dict()
    assert header.spec.options["links"] == "alone"
    assert {name: getattr(header.config, name) for name in LINKS_ONLY} == LINKS_ONLY
    link_model, forecaster = initial_weights
    assert set(link_model) - set(forecaster) == {name for name in link_model if name.startswith("links.")}
    for name, value in forecaster.items():
        expected = pretrained_weights[name] if name.startswith("graph.") else link_model[name]
        assert torch.equal(value, expected), name
    assert any(not torch.equal(forecaster[name], link_model[name]) for name in forecaster)
    assert len(losses) == 6 and 0 < header.fit_result.validation_loss == min(losses[:3]) < 1.05 * np.log(2)


def test_a_fit_killed_during_pretraining_resumes_there_and_gives_the_same_file(market, tmp_path: Path) -> None:
    arguments = market.arguments("tgn_pretrained")
    epochs: list[int] = []
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    undisturbed = fit_fold(**arguments, artifact=folders[0] / "m.safetensors")

    def kill_in_epoch_1(epoch: int, loss: float) -> None:
        if epoch == 1:
            raise KilledError

    with pytest.raises(KilledError):
        fit_fold(**arguments, artifact=folders[1] / "m.safetensors", on_epoch=kill_in_epoch_1)
    assert [path.suffix for path in folders[1].iterdir()] == [".ckpt"]
    resumed = fit_fold(
        **arguments, artifact=folders[1] / "m.safetensors", on_epoch=lambda epoch, loss: epochs.append(epoch)
    )
    assert epochs == [2, 0, 1, 2]
    assert resumed.sha256 == undisturbed.sha256
    assert not list(folders[1].glob("*.ckpt"))
