"""Pretraining: the pretrained part is fitted once, and its weights are loaded unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.nets.tgn import LINKS_ONLY_SETTINGS
from models.training import fit as fit_module
from models.training.artifact import load_artifact, read_header
from models.training.fit import fit_fold
from models.training.module import FoldModule


class KilledError(Exception):
    """Raised by a test in place of the end of the process."""


def test_a_fit_starts_with_exactly_the_weights_of_the_pretrained_link_model(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial_weights = []
    train = fit_module._train

    def record_and_train(module: FoldModule, *arguments) -> None:
        initial_weights.append({name: value.clone() for name, value in module.network.state_dict().items()})
        train(module, *arguments)

    # records the weights with which each of the two fits starts
    monkeypatch.setattr(fit_module, "_train", record_and_train)
    losses: list[float] = []
    fitted = fit_fold(
        **market.arguments("tgn_pretrained"),
        artifact=tmp_path / "m.safetensors",
        on_epoch=lambda epoch, loss: losses.append(loss),
    )
    (pretrained_file,) = set(tmp_path.glob("*.safetensors")) - {fitted.artifact}
    header = read_header(pretrained_file)
    pretrained_weights = load_artifact(pretrained_file).network.state_dict()
    assert header.spec.options["links"] == "alone"
    assert {name: getattr(header.config, name) for name in LINKS_ONLY_SETTINGS} == LINKS_ONLY_SETTINGS
    link_model, forecaster = initial_weights
    assert set(link_model) - set(forecaster) == {name for name in link_model if name.startswith("links.")}
    for name, value in forecaster.items():
        expected = pretrained_weights[name] if name.startswith("graph.") else link_model[name]
        assert torch.equal(value, expected), name
    assert any(not torch.equal(forecaster[name], link_model[name]) for name in forecaster)
    n_epochs = market.arguments()["config"].epochs
    assert len(losses) == 2 * n_epochs
    best_link_loss = min(losses[:n_epochs])
    assert 0 < best_link_loss < 1.05 * np.log(2)  # log 2 is the loss of zero logits
    assert header.fit_result.validation_loss == best_link_loss


def test_a_fit_killed_during_pretraining_resumes_there_and_gives_the_same_file(market, tmp_path: Path) -> None:
    arguments = market.arguments("tgn_pretrained")
    undisturbed_artifact = tmp_path / "undisturbed" / "m.safetensors"
    killed_artifact = tmp_path / "killed" / "m.safetensors"
    undisturbed_artifact.parent.mkdir()
    killed_artifact.parent.mkdir()
    undisturbed = fit_fold(**arguments, artifact=undisturbed_artifact)

    def kill_in_epoch_1(epoch: int, loss: float) -> None:
        if epoch == 1:
            raise KilledError

    with pytest.raises(KilledError):
        fit_fold(**arguments, artifact=killed_artifact, on_epoch=kill_in_epoch_1)
    assert [path.suffix for path in killed_artifact.parent.iterdir()] == [".ckpt"]
    epochs: list[int] = []
    resumed = fit_fold(**arguments, artifact=killed_artifact, on_epoch=lambda epoch, loss: epochs.append(epoch))
    assert epochs == [2, 0, 1, 2]  # the last epoch of the pretraining, then all three of the fit
    assert resumed.sha256 == undisturbed.sha256
    assert not list(killed_artifact.parent.glob("*.ckpt"))
