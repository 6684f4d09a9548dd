"""Fits and forecasts: they learn, and every bit follows from what was known."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer import trainer

from models import zoo
from models.graphs.context import SideInputs
from models.training import fit as fit_module
from models.training.artifact import load_artifact, read_header
from models.training.data import FoldData
from models.training.errors import DivergedFitError, ForeignArtifactError
from models.training.estimate import leave_unscaled
from models.training.fit import FittedFold, fit_fold, predict_fold
from models.training.losses import forecast_loss
from models.zoo import ENTRIES, Network

NETWORKS = [name for name, entry in ENTRIES.items() if isinstance(entry, Network)]
IN_ONE_GO = ["ridge", "gradient_boosting", "garch"]


@pytest.fixture(scope="session")
def market(market):
    """The market with a column that GARCH can take for the one-bar return."""
    return replace(market, features=replace(market.features, columns=("return_1", "noise", "volatility_60")))


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_after(epoch: int) -> Callable[[int, float], None]:
    def on_epoch(done: int, loss: float) -> None:
        if done == epoch:
            raise KilledError

    return on_epoch


@pytest.fixture
def fitted(market, tmp_path: Path) -> FittedFold:
    return fit_fold(**market.arguments(), artifact=tmp_path / "undisturbed.safetensors")


def test_a_planted_signal_is_learned(market, tmp_path: Path) -> None:
    config = replace(market.arguments()["config"], epochs=30, patience=30, lr=0.02)
    artifact = tmp_path / "m.safetensors"
    fit_fold(**market.arguments(config=config), artifact=artifact)
    made = predict_fold(artifact, market.features, market.side_inputs, market.folds[0])
    window = slice(market.folds[0].test_start, market.folds[0].test_stop)
    for h in range(2):
        known = made.valid & ~np.isnan(market.labels.returns[window, :, h])
        actual = market.labels.returns[window, :, h][known]
        assert np.corrcoef(made.returns[..., h][known], actual)[0, 1] > 0.7
    classes = market.labels.class_5[window]
    known = made.valid & (classes >= 0)
    assert (made.probabilities.argmax(axis=-1)[known] == classes[known]).mean() > 0.45


def test_the_outcome_says_what_the_fit_came_to(market, fitted: FittedFold) -> None:
    header = read_header(fitted.artifact)
    assert header.outcome == fitted.outcome
    assert fitted.outcome.epochs == 3
    assert fitted.outcome.parameters == sum(p.numel() for p in load_artifact(fitted.artifact).network.parameters())
    data = FoldData(header.config, market.features, market.labels, SideInputs(), market.folds[0])
    assert (fitted.outcome.train_rows, fitted.outcome.validation_rows) == (data.train_rows, data.validation_rows)
    assert data.validation_rows > 50 and data.train_rows > 200


@pytest.mark.parametrize("model", NETWORKS)
def test_fitting_again_gives_the_same_file(market, tmp_path: Path, model: str) -> None:
    torch.manual_seed(1)
    first = fit_fold(**market.arguments(model), artifact=tmp_path / "a.safetensors")
    torch.manual_seed(2)
    torch.rand(3)
    second = fit_fold(**market.arguments(model), artifact=tmp_path / "b.safetensors")
    assert first.sha256 == second.sha256
    assert first.artifact.read_bytes() == second.artifact.read_bytes()


def test_another_seed_gives_other_weights(market, tmp_path: Path, fitted: FittedFold) -> None:
    config = replace(market.arguments()["config"], seed=1)
    other = fit_fold(**market.arguments(config=config), artifact=tmp_path / "b.safetensors")
    assert other.outcome.validation_loss != fitted.outcome.validation_loss


@pytest.mark.parametrize(
    ("model", "epoch"), [*((model, epoch) for model in ("s4d", "ssm_gnn") for epoch in range(3)), ("tgn_links", 0)]
)
def test_killed_after_any_epoch_and_resumed_it_ends_as_undisturbed(
    market, tmp_path: Path, model: str, epoch: int
) -> None:
    """Epoch 2 is the last one: killed between its checkpoint and the model file."""
    arguments = market.arguments(model)
    undisturbed = fit_fold(**arguments, artifact=tmp_path / "a.safetensors")
    artifact, checkpoint, seen = tmp_path / "b.safetensors", tmp_path / "b.ckpt", []
    with pytest.raises(KilledError):
        fit_fold(**arguments, artifact=artifact, checkpoint=checkpoint, on_epoch=kill_after(epoch))
    assert checkpoint.exists() and not artifact.exists()
    resumed = fit_fold(
        **arguments, artifact=artifact, checkpoint=checkpoint, on_epoch=lambda done, loss: seen.append(done)
    )
    assert seen == list(range(epoch + 1, 3))
    assert resumed.sha256 == undisturbed.sha256
    assert not checkpoint.exists()


def test_killed_inside_an_epoch_it_goes_on_from_the_last_whole_one(
    market, tmp_path: Path, fitted: FittedFold, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, calls = tmp_path / "b.ckpt", []

    def dying(*arguments, **more):
        calls.append(1)
        if len(calls) == 5:  # three batches an epoch, the last of them validation
            raise KilledError
        return forecast_loss(*arguments, **more)

    arguments = {**market.arguments(), "artifact": tmp_path / "b.safetensors", "checkpoint": checkpoint}
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr("models.training.module.forecast_loss", dying)
        fit_fold(**arguments)
    assert checkpoint.exists()
    assert fit_fold(**arguments).sha256 == fitted.sha256


def test_killed_after_early_stopping_decided_it_does_not_go_on(market, tmp_path: Path) -> None:
    config = replace(market.arguments()["config"], epochs=50, patience=2, lr=1.0)
    arguments = market.arguments(config=config)
    losses: list[float] = []
    undisturbed = fit_fold(
        **arguments, artifact=tmp_path / "a.safetensors", on_epoch=lambda e, loss: losses.append(loss)
    )
    last = undisturbed.outcome.epochs - 1
    assert last < 49 and int(np.argmin(losses)) == last - 2
    again = {**arguments, "artifact": tmp_path / "b.safetensors", "checkpoint": tmp_path / "b.ckpt"}
    with pytest.raises(KilledError):
        fit_fold(**again, on_epoch=kill_after(last))
    assert fit_fold(**again).sha256 == undisturbed.sha256


def test_a_fit_whose_loss_is_never_finite_is_refused_and_one_bad_epoch_is_not_kept(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([math.nan, 2.0, math.nan])
    on_end = "models.training.module.FoldModule.on_validation_epoch_end"
    monkeypatch.setattr(on_end, lambda module: setattr(module, "validation_loss", next(losses, math.nan)))
    assert fit_fold(**market.arguments(), artifact=tmp_path / "a.safetensors").outcome.validation_loss == 2.0
    with pytest.raises(DivergedFitError, match="fold 0: the s4d network's loss is nan after 3 epochs; lower lr"):
        fit_fold(**market.arguments(), artifact=tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_damaged_checkpoint_is_reported_and_fitted_anew(
    market, tmp_path: Path, fitted: FittedFold, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "b.ckpt"
    checkpoint.write_bytes(b"half a file")
    with caplog.at_level(logging.WARNING):
        again = fit_fold(**market.arguments(), artifact=tmp_path / "b.safetensors", checkpoint=checkpoint)
    assert again.sha256 == fitted.sha256
    assert "cannot be resumed from" in caplog.text


def test_the_weights_kept_are_those_of_the_best_epoch(market, tmp_path: Path) -> None:
    config = replace(market.arguments()["config"], epochs=6, patience=6, lr=2.0)
    losses: list[float] = []
    artifact = tmp_path / "m.safetensors"
    fitted = fit_fold(
        **market.arguments(config=config), artifact=artifact, on_epoch=lambda e, loss: losses.append(loss)
    )
    assert np.argmin(losses) < 5
    assert fitted.outcome.validation_loss == min(losses)
    data = FoldData(config, market.features, market.labels, SideInputs(), market.folds[0])
    network = load_artifact(artifact).network
    with torch.no_grad():
        parts = [
            (float((~torch.isnan(t.returns)).sum()), float(forecast_loss(network(b), t, config)))
            for b, t in data.val_dataloader()
        ]
    assert sum(k * v for k, v in parts) / sum(k for k, _ in parts) == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize("model", IN_ONE_GO)
def test_a_model_fitted_in_one_go_is_validated_as_every_network(market, tmp_path: Path, model: str) -> None:
    seen: list[tuple[int, float]] = []
    arguments = {**market.arguments(model), "artifact": tmp_path / "m.safetensors"}
    fitted = fit_fold(**arguments, on_epoch=lambda epoch, loss: seen.append((epoch, loss)))
    loaded = load_artifact(fitted.artifact)
    data = FoldData(loaded.header.config, market.features, market.labels, SideInputs(), market.folds[0])
    if model == "garch":
        leave_unscaled(data, market.features)
    total = known = 0.0
    for batch, targets in data.val_dataloader():
        count = float((~torch.isnan(targets.returns)).sum())
        total += count * float(forecast_loss(loaded.network(batch), targets, loaded.header.config))
        known += count
    assert fitted.outcome.validation_loss == pytest.approx(total / known, rel=1e-5)
    assert seen == [(0, fitted.outcome.validation_loss)]
    assert (fitted.outcome.epochs, fitted.outcome.parameters) == (1, loaded.network.fitted_numbers)


@pytest.mark.parametrize("model", IN_ONE_GO)
def test_a_model_fitted_in_one_go_and_killed_is_fitted_again(market, tmp_path: Path, model: str) -> None:
    arguments = {**market.arguments(model), "artifact": tmp_path / "a.safetensors", "checkpoint": tmp_path / "a.ckpt"}
    with pytest.raises(KilledError):
        fit_fold(**arguments, on_epoch=kill_after(0))
    assert list(tmp_path.iterdir()) == []
    assert fit_fold(**arguments).sha256 == fit_fold(**{**arguments, "artifact": tmp_path / "b.safetensors"}).sha256


@pytest.mark.parametrize("model", NETWORKS)
def test_fit_and_forecasts_are_bit_for_bit_those_of_a_panel_that_ends_there(market, tmp_path: Path, model: str) -> None:
    fold = market.folds[0]
    stop = fold.test_start + 7
    early = market.until(stop)
    then = fit_fold(**early.arguments(model), artifact=tmp_path / "then.safetensors")
    now = fit_fold(**market.arguments(model), artifact=tmp_path / "now.safetensors")
    assert then.sha256 == now.sha256
    short = predict_fold(then.artifact, early.features, early.side_inputs, early.folds[0])
    long = predict_fold(now.artifact, market.features, market.side_inputs, fold)
    assert (len(short.ts), len(long.ts)) == (7, 25)
    for name in ("ts", "returns", "volatility", "probabilities", "valid"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:7])


@pytest.mark.slow
def test_two_fits_side_by_side_are_the_two_fits_alone(market, tmp_path: Path) -> None:
    """While other threads load model files, which builds networks too."""

    def run(name: str, model: str) -> str:
        artifact = tmp_path / name
        sha256 = fit_fold(**market.arguments(model), artifact=artifact).sha256
        predict_fold(artifact, market.features, market.side_inputs, market.folds[0])
        return sha256

    names = [name for name in NETWORKS for _ in range(3)]
    alone = {name: run(name, name) for name in NETWORKS}
    with ThreadPoolExecutor(4) as pool:
        beside = pool.map(run, map(str, range(len(names))), names)
        assert list(beside) == [alone[name] for name in names]


def test_the_generator_is_put_back_only_while_nobody_draws(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning puts torch's generator back before the first epoch, also under a network that another thread draws."""
    held = []

    @contextmanager
    def isolated() -> Iterator[None]:
        held.append(zoo.RNG_LOCK.locked())
        yield

    monkeypatch.setattr(trainer, "isolate_rng", isolated)
    fit_fold(**market.arguments("s4d"), artifact=tmp_path / "m.safetensors")
    assert held == [True]
    assert not zoo.RNG_LOCK.locked()


@pytest.mark.parametrize("model", ["s4d", *IN_ONE_GO])
def test_a_fit_says_nothing_and_leaves_nothing_behind(
    market,
    model: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    fit_fold(**market.arguments(model), artifact=tmp_path / "m.safetensors", checkpoint=tmp_path / "m.ckpt")
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert torch.equal(torch.get_rng_state(), before)


def test_forecasts_cover_the_test_window_and_only_cells_that_can_be_known(market, fitted: FittedFold) -> None:
    fold = market.folds[0]
    made = predict_fold(fitted.artifact, market.features, market.side_inputs, fold)
    window = market.features.rows(fold.test_start, fold.test_stop)
    np.testing.assert_array_equal(made.ts, window.ts)
    np.testing.assert_array_equal(made.valid, window.mask & ~np.isnan(window.column("volatility_60")))
    assert not made.valid.all()
    for values in (made.returns, made.probabilities, made.volatility[..., None]):
        np.testing.assert_array_equal(np.isfinite(values).all(axis=-1), made.valid)
        np.testing.assert_array_equal(np.isnan(values).all(axis=-1), ~made.valid)
    np.testing.assert_allclose(made.probabilities[made.valid].sum(axis=-1), 1.0)
    assert (made.volatility[made.valid] > 0).all()


def test_forecasts_are_in_log_returns_and_volatility_per_bar(market, fitted: FittedFold) -> None:
    """A network without an opinion forecasts no return, σ as it was, five equal classes."""
    loaded = load_artifact(fitted.artifact)
    with torch.no_grad():
        for parameter in loaded.network.heads.parameters():
            parameter.zero_()
        loaded.network.heads.bias[0, :2] = torch.tensor([1.0, 0.5])
    fit_module.save_artifact(fitted.artifact, loaded.header, loaded.network.state_dict())
    fold = market.folds[0]
    made = predict_fold(fitted.artifact, market.features, market.side_inputs, fold)
    sigma = market.features.column("volatility_60")[fold.test_start : fold.test_stop][made.valid]
    np.testing.assert_allclose(made.returns[made.valid], np.column_stack([sigma, 0.5 * np.sqrt(5) * sigma]))
    np.testing.assert_allclose(made.volatility[made.valid], sigma)
    np.testing.assert_allclose(made.probabilities[made.valid], 0.2)


@pytest.mark.parametrize("segment", [1, 4, 512])
def test_forecasts_from_a_later_bar_on_are_the_same_rows(
    market, fitted: FittedFold, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    monkeypatch.setattr(fit_module, "SEGMENT_BARS", segment)
    fold = market.folds[0]
    whole = predict_fold(fitted.artifact, market.features, market.side_inputs, fold)
    for first in (fold.test_start - 5, fold.test_start + 1, fold.test_start + 9, fold.test_stop - 1, fold.test_stop):
        part = predict_fold(fitted.artifact, market.features, market.side_inputs, fold, first)
        skipped = max(0, first - fold.test_start)
        np.testing.assert_array_equal(part.ts, whole.ts[skipped:])
        np.testing.assert_array_equal(part.returns, whole.returns[skipped:])
        np.testing.assert_array_equal(part.probabilities, whole.probabilities[skipped:])


def test_history_before_the_window_is_heard_as_far_as_the_context_goes(market, fitted: FittedFold) -> None:
    fold, context = market.folds[0], read_header(fitted.artifact).config.context_bars
    before = predict_fold(fitted.artifact, market.features, market.side_inputs, fold).returns[0]
    for bar, heard in ((fold.test_start - context - 1, False), (fold.test_start - 1, True)):
        values = market.features.values.copy()
        values[bar, :, 0] += 3.0
        after = predict_fold(
            fitted.artifact, replace(market.features, values=values), market.side_inputs, fold
        ).returns[0]
        assert (not np.array_equal(before, after, equal_nan=True)) == heard


def test_other_features_are_refused(market, fitted: FittedFold) -> None:
    renamed = replace(market.features, columns=("signal", "rumour", "volatility_60"))
    with pytest.raises(ForeignArtifactError, match="fitted on other features"):
        predict_fold(fitted.artifact, renamed, market.side_inputs, market.folds[0])


def test_a_model_file_works_wherever_it_lies(market, fitted: FittedFold, tmp_path: Path) -> None:
    moved = Path(shutil.move(fitted.artifact, tmp_path / "elsewhere"))
    assert predict_fold(moved, market.features, market.side_inputs, market.folds[0]).valid.any()


@pytest.mark.gpu
@pytest.mark.parametrize("model", NETWORKS)
def test_a_gpu_fit_comes_out_close_to_the_cpu_one(market, tmp_path: Path, model: str) -> None:
    losses = {}
    for precision in ("auto", "32-true"):
        config = replace(market.arguments()["config"], precision=precision)
        losses[precision] = fit_fold(**market.arguments(model, config=config), artifact=tmp_path / precision).outcome
    assert losses["auto"].validation_loss == pytest.approx(losses["32-true"].validation_loss, rel=0.05)
