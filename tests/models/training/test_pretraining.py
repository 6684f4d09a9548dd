"""Networks a part of which is fitted first: it is fitted once, and taken over as it was."""

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
    """Stands for the end of the process."""


def test_links_are_fitted_first_and_the_forecasts_begin_with_exactly_what_was_learned(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, run = [], fit_module._run

    def noted(module: FoldModule, *more) -> None:
        begun.append({name: value.clone() for name, value in module.network.state_dict().items()})
        run(module, *more)

    monkeypatch.setattr(fit_module, "_run", noted)
    losses: list[float] = []
    fitted = fit_fold(
        **market.arguments("tgn_pretrained"),
        artifact=tmp_path / "m.safetensors",
        on_epoch=lambda epoch, loss: losses.append(loss),
    )
    (first,) = set(tmp_path.glob("*.safetensors")) - {fitted.artifact}
    header, learned = read_header(first), load_artifact(first).network.state_dict()
    assert header.spec.options["links"] == "alone"
    assert {name: getattr(header.config, name) for name in LINKS_ONLY} == LINKS_ONLY
    alone, whole = begun
    assert set(alone) - set(whole) == {name for name in alone if name.startswith("links.")}
    for name, value in whole.items():
        assert torch.equal(value, learned[name] if name.startswith("graph.") else alone[name]), name
    assert any(not torch.equal(whole[name], alone[name]) for name in whole)
    assert len(losses) == 6 and 0 < header.outcome.validation_loss == min(losses[:3]) < 1.05 * np.log(2)


def test_killed_while_its_first_part_is_fitted_it_goes_on_there_and_ends_as_undisturbed(market, tmp_path: Path) -> None:
    arguments, seen = market.arguments("tgn_pretrained"), []
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    undisturbed = fit_fold(**arguments, artifact=folders[0] / "m.safetensors")

    def killed(epoch: int, loss: float) -> None:
        if epoch == 1:
            raise KilledError

    with pytest.raises(KilledError):
        fit_fold(**arguments, artifact=folders[1] / "m.safetensors", on_epoch=killed)
    assert [path.suffix for path in folders[1].iterdir()] == [".ckpt"]
    resumed = fit_fold(
        **arguments, artifact=folders[1] / "m.safetensors", on_epoch=lambda epoch, loss: seen.append(epoch)
    )
    assert seen == [2, 0, 1, 2]
    assert resumed.sha256 == undisturbed.sha256
    assert not list(folders[1].glob("*.ckpt"))
