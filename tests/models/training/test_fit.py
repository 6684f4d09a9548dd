"""Fits and forecasts: they learn, and every bit is determined by what was known at the time."""

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
from models.features.labels import UNKNOWN_CLASS
from models.graphs.context import SideInputs
from models.training import fit as fit_module
from models.training.artifact import load_artifact, read_header
from models.training.data import FoldData
from models.training.errors import DivergedFitError, ForeignArtifactError
from models.training.estimate import use_unscaled_features
from models.training.fit import FittedFold, fit_fold, predict_fold
from models.training.losses import forecast_loss
from models.zoo import ENTRIES, Network

NETWORKS = [name for name, entry in ENTRIES.items() if isinstance(entry, Network)]
ESTIMATORS = ["ridge", "gradient_boosting", "garch"]


@pytest.fixture(scope="session")
def market(market):
    """The market with its signal under the name of the one-bar return, which GARCH needs."""
    return replace(market, features=replace(market.features, columns=("return_1", "noise", "volatility_60")))


class KilledError(Exception):
    """Raised by a test in place of the end of the process."""


def kill_after(last_epoch: int) -> Callable[[int, float], None]:
    """An ``on_epoch`` that ends the fit after the epoch ``last_epoch``."""

    def on_epoch(epoch: int, loss: float) -> None:
        if epoch == last_epoch:
            raise KilledError

    return on_epoch


@pytest.fixture
def fitted(market, tmp_path: Path) -> FittedFold:
    """A fit of the small s4d network to the first fold."""
    return fit_fold(**market.arguments(), artifact=tmp_path / "undisturbed.safetensors")


def test_a_synthetic_signal_is_learned(market, tmp_path: Path) -> None:
    """The signal is correlated with the returns by 0.8 / √(0.8² + 0.3²) = 0.94; a random class is right in 20 %."""
    config = replace(market.arguments()["config"], epochs=30, patience=30, lr=0.02)
    artifact = tmp_path / "m.safetensors"
    fit_fold(**market.arguments(config=config), artifact=artifact)
    predictions = predict_fold(artifact, market.features, market.side_inputs, market.folds[0])
    window = slice(market.folds[0].test_start, market.folds[0].test_stop)
    for h in range(len(market.labels.horizons)):
        actual = market.labels.returns[window, :, h]
        has_label = predictions.valid & ~np.isnan(actual)
        correlation = np.corrcoef(predictions.returns[..., h][has_label], actual[has_label])[0, 1]
        assert correlation > 0.7
    actual_classes = market.labels.class_5[window]
    has_label = predictions.valid & (actual_classes != UNKNOWN_CLASS)
    is_correct = predictions.probabilities.argmax(axis=-1) == actual_classes
    assert is_correct[has_label].mean() > 0.45


def test_the_fit_result_counts_epochs_rows_and_parameters(market, fitted: FittedFold) -> None:
    header = read_header(fitted.artifact)
    assert header.fit_result == fitted.fit_result
    assert fitted.fit_result.epochs == 3
    assert fitted.fit_result.parameters == sum(p.numel() for p in load_artifact(fitted.artifact).network.parameters())
    data = FoldData(header.config, market.features, market.labels, SideInputs(), market.folds[0])
    assert (fitted.fit_result.train_rows, fitted.fit_result.validation_rows) == (data.train_rows, data.validation_rows)
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
    assert other.fit_result.validation_loss != fitted.fit_result.validation_loss


@pytest.mark.parametrize(
    ("model", "epoch"), [*((model, epoch) for model in ("s4d", "ssm_gnn") for epoch in range(3)), ("tgn_links", 0)]
)
def test_a_fit_killed_after_any_epoch_and_resumed_gives_the_same_file(
    market, tmp_path: Path, model: str, epoch: int
) -> None:
    """Epoch 2 is the last one: there the fit is killed between writing the checkpoint and the model file."""
    arguments = market.arguments(model)
    undisturbed = fit_fold(**arguments, artifact=tmp_path / "a.safetensors")
    artifact = tmp_path / "b.safetensors"
    checkpoint = tmp_path / "b.ckpt"
    epochs: list[int] = []
    with pytest.raises(KilledError):
        fit_fold(**arguments, artifact=artifact, checkpoint=checkpoint, on_epoch=kill_after(epoch))
    assert checkpoint.exists() and not artifact.exists()
    resumed = fit_fold(
        **arguments, artifact=artifact, checkpoint=checkpoint, on_epoch=lambda epoch, loss: epochs.append(epoch)
    )
    assert epochs == list(range(epoch + 1, 3))
    assert resumed.sha256 == undisturbed.sha256
    assert not checkpoint.exists()


def test_a_fit_killed_inside_an_epoch_resumes_from_the_last_complete_one(
    market, tmp_path: Path, fitted: FittedFold, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "b.ckpt"
    n_calls = 0

    def loss_killed_in_second_epoch(*arguments, **keywords):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:  # an epoch has three batches, the last one for validation
            raise KilledError
        return forecast_loss(*arguments, **keywords)

    arguments = {**market.arguments(), "artifact": tmp_path / "b.safetensors", "checkpoint": checkpoint}
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr("models.training.module.forecast_loss", loss_killed_in_second_epoch)
        fit_fold(**arguments)
    assert checkpoint.exists()
    assert fit_fold(**arguments).sha256 == fitted.sha256


def test_a_fit_killed_after_early_stopping_trains_no_further_epoch(market, tmp_path: Path) -> None:
    config = replace(market.arguments()["config"], epochs=50, patience=2, lr=1.0)
    arguments = market.arguments(config=config)
    losses: list[float] = []
    undisturbed = fit_fold(
        **arguments, artifact=tmp_path / "a.safetensors", on_epoch=lambda epoch, loss: losses.append(loss)
    )
    last_epoch = undisturbed.fit_result.epochs - 1
    assert last_epoch < config.epochs - 1
    assert int(np.argmin(losses)) == last_epoch - config.patience
    second = {**arguments, "artifact": tmp_path / "b.safetensors", "checkpoint": tmp_path / "b.ckpt"}
    with pytest.raises(KilledError):
        fit_fold(**second, on_epoch=kill_after(last_epoch))
    assert fit_fold(**second).sha256 == undisturbed.sha256


def test_a_fit_without_a_finite_loss_is_refused_and_a_single_nan_epoch_is_ignored(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([math.nan, 2.0, math.nan])
    loss_method = "models.training.module.FoldModule.on_validation_epoch_end"
    monkeypatch.setattr(loss_method, lambda module: setattr(module, "validation_loss", next(losses, math.nan)))
    assert fit_fold(**market.arguments(), artifact=tmp_path / "a.safetensors").fit_result.validation_loss == 2.0
    with pytest.raises(DivergedFitError, match="fold 0: the s4d network's loss is nan after 3 epochs; lower lr"):
        fit_fold(**market.arguments(), artifact=tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_damaged_checkpoint_is_logged_and_the_fit_starts_over(
    market, tmp_path: Path, fitted: FittedFold, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "b.ckpt"
    checkpoint.write_bytes(b"half a file")
    with caplog.at_level(logging.WARNING):
        second = fit_fold(**market.arguments(), artifact=tmp_path / "b.safetensors", checkpoint=checkpoint)
    assert second.sha256 == fitted.sha256
    assert "cannot be resumed from" in caplog.text


def test_the_weights_of_the_best_epoch_are_kept(market, tmp_path: Path) -> None:
    config = replace(market.arguments()["config"], epochs=6, patience=6, lr=2.0)
    losses: list[float] = []
    artifact = tmp_path / "m.safetensors"
    fitted = fit_fold(
        **market.arguments(config=config), artifact=artifact, on_epoch=lambda epoch, loss: losses.append(loss)
    )
    assert np.argmin(losses) < 5
    assert fitted.fit_result.validation_loss == min(losses)
    data = FoldData(config, market.features, market.labels, SideInputs(), market.folds[0])
    network = load_artifact(artifact).network
    n_returns = []
    batch_losses = []
    with torch.no_grad():
        for batch, targets in data.val_dataloader():
            n_returns.append(int((~torch.isnan(targets.returns)).sum()))
            batch_losses.append(float(forecast_loss(network(batch), targets, config)))
    assert np.average(batch_losses, weights=n_returns) == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize("model", ESTIMATORS)
def test_an_estimator_has_the_validation_loss_of_a_network(market, tmp_path: Path, model: str) -> None:
    epochs: list[tuple[int, float]] = []
    arguments = {**market.arguments(model), "artifact": tmp_path / "m.safetensors"}
    fitted = fit_fold(**arguments, on_epoch=lambda epoch, loss: epochs.append((epoch, loss)))
    artifact = load_artifact(fitted.artifact)
    data = FoldData(artifact.header.config, market.features, market.labels, SideInputs(), market.folds[0])
    if model == "garch":
        use_unscaled_features(data, market.features)
    n_returns = []
    batch_losses = []
    for batch, targets in data.val_dataloader():
        n_returns.append(int((~torch.isnan(targets.returns)).sum()))
        batch_losses.append(float(forecast_loss(artifact.network(batch), targets, artifact.header.config)))
    expected = np.average(batch_losses, weights=n_returns)
    assert fitted.fit_result.validation_loss == pytest.approx(expected, rel=1e-5)
    assert epochs == [(0, fitted.fit_result.validation_loss)]
    assert (fitted.fit_result.epochs, fitted.fit_result.parameters) == (1, artifact.network.n_parameters)


@pytest.mark.parametrize("model", ESTIMATORS)
def test_a_killed_fit_of_an_estimator_starts_over(market, tmp_path: Path, model: str) -> None:
    arguments = {**market.arguments(model), "artifact": tmp_path / "a.safetensors", "checkpoint": tmp_path / "a.ckpt"}
    with pytest.raises(KilledError):
        fit_fold(**arguments, on_epoch=kill_after(0))
    assert list(tmp_path.iterdir()) == []
    assert fit_fold(**arguments).sha256 == fit_fold(**{**arguments, "artifact": tmp_path / "b.safetensors"}).sha256


@pytest.mark.parametrize("model", NETWORKS)
def test_later_bars_change_no_bit_of_a_fit_or_of_its_forecasts(market, tmp_path: Path, model: str) -> None:
    fold = market.folds[0]
    n_test_bars = 7
    stop = fold.test_start + n_test_bars
    early_market = market.truncate(stop)
    early = fit_fold(**early_market.arguments(model), artifact=tmp_path / "early.safetensors")
    late = fit_fold(**market.arguments(model), artifact=tmp_path / "late.safetensors")
    assert early.sha256 == late.sha256
    short = predict_fold(early.artifact, early_market.features, early_market.side_inputs, early_market.folds[0])
    long = predict_fold(late.artifact, market.features, market.side_inputs, fold)
    assert len(short.ts) == n_test_bars
    assert len(long.ts) == fold.test_stop - fold.test_start
    for name in ("ts", "returns", "volatility", "probabilities", "valid"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:n_test_bars])


@pytest.mark.slow
def test_parallel_fits_give_the_same_files_as_sequential_ones(market, tmp_path: Path) -> None:
    """Meanwhile other threads load model files, which also builds networks."""

    def fit_and_predict(name: str, model: str) -> str:
        artifact = tmp_path / name
        sha256 = fit_fold(**market.arguments(model), artifact=artifact).sha256
        predict_fold(artifact, market.features, market.side_inputs, market.folds[0])
        return sha256

    names = [name for name in NETWORKS for _ in range(3)]
    sequential = {name: fit_and_predict(name, name) for name in NETWORKS}
    with ThreadPoolExecutor(4) as pool:
        parallel = pool.map(fit_and_predict, map(str, range(len(names))), names)
        assert list(parallel) == [sequential[name] for name in names]


def test_lightning_restores_the_generator_only_under_the_lock_of_the_generator(
    market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning restores torch's generator before the first epoch, even while another thread draws initial weights."""
    lock_states = []

    @contextmanager
    def isolate_rng() -> Iterator[None]:
        lock_states.append(zoo.RNG_LOCK.locked())
        yield

    monkeypatch.setattr(trainer, "isolate_rng", isolate_rng)
    fit_fold(**market.arguments("s4d"), artifact=tmp_path / "m.safetensors")
    assert lock_states == [True]
    assert not zoo.RNG_LOCK.locked()


@pytest.mark.parametrize("model", ["s4d", *ESTIMATORS])
def test_a_fit_prints_nothing_and_leaves_only_the_model_file(
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


def test_forecasts_cover_the_test_window_and_are_nan_without_a_bar_or_a_volatility(market, fitted: FittedFold) -> None:
    fold = market.folds[0]
    predictions = predict_fold(fitted.artifact, market.features, market.side_inputs, fold)
    valid = predictions.valid
    window = market.features.slice_bars(fold.test_start, fold.test_stop)
    np.testing.assert_array_equal(predictions.ts, window.ts)
    np.testing.assert_array_equal(valid, window.mask & ~np.isnan(window.column("volatility_60")))
    assert not valid.all()
    for values in (predictions.returns, predictions.probabilities, predictions.volatility[..., None]):
        np.testing.assert_array_equal(np.isfinite(values).all(axis=-1), valid)
        np.testing.assert_array_equal(np.isnan(values).all(axis=-1), ~valid)
    np.testing.assert_allclose(predictions.probabilities[valid].sum(axis=-1), 1.0)
    assert (predictions.volatility[valid] > 0).all()


def test_forecasts_are_in_log_returns_and_volatility_per_bar(market, fitted: FittedFold) -> None:
    """Heads with zero weights forecast the returns of their bias in units of σ, σ itself, and five equal classes."""
    artifact = load_artifact(fitted.artifact)
    with torch.no_grad():
        for parameter in artifact.network.heads.parameters():
            parameter.zero_()
        artifact.network.heads.bias[0, :2] = torch.tensor([1.0, 0.5])
    fit_module.save_artifact(fitted.artifact, artifact.header, artifact.network.state_dict())
    fold = market.folds[0]
    predictions = predict_fold(fitted.artifact, market.features, market.side_inputs, fold)
    valid = predictions.valid
    sigma = market.features.column("volatility_60")[fold.test_start : fold.test_stop][valid]
    np.testing.assert_allclose(predictions.returns[valid], np.column_stack([sigma, 0.5 * np.sqrt(5) * sigma]))
    np.testing.assert_allclose(predictions.volatility[valid], sigma)
    np.testing.assert_allclose(predictions.probabilities[valid], 0.2)


@pytest.mark.parametrize("max_segment_bars", [1, 4, 512])
def test_forecasts_from_a_later_bar_on_are_the_same_rows(
    market, fitted: FittedFold, monkeypatch: pytest.MonkeyPatch, max_segment_bars: int
) -> None:
    monkeypatch.setattr(fit_module, "MAX_SEGMENT_BARS", max_segment_bars)
    fold = market.folds[0]
    whole = predict_fold(fitted.artifact, market.features, market.side_inputs, fold)
    for first in (fold.test_start - 5, fold.test_start + 1, fold.test_start + 9, fold.test_stop - 1, fold.test_stop):
        part = predict_fold(fitted.artifact, market.features, market.side_inputs, fold, first)
        n_skipped = max(0, first - fold.test_start)
        np.testing.assert_array_equal(part.ts, whole.ts[n_skipped:])
        np.testing.assert_array_equal(part.returns, whole.returns[n_skipped:])
        np.testing.assert_array_equal(part.probabilities, whole.probabilities[n_skipped:])


def test_forecasts_depend_on_the_context_before_the_window_and_on_no_earlier_bar(market, fitted: FittedFold) -> None:
    fold = market.folds[0]
    context_bars = read_header(fitted.artifact).config.context_bars
    original = predict_fold(fitted.artifact, market.features, market.side_inputs, fold).returns[0]
    for bar, is_read in ((fold.test_start - context_bars - 1, False), (fold.test_start - 1, True)):
        values = market.features.values.copy()
        values[bar, :, 0] += 3.0
        changed = predict_fold(
            fitted.artifact, replace(market.features, values=values), market.side_inputs, fold
        ).returns[0]
        assert (not np.array_equal(original, changed, equal_nan=True)) == is_read


def test_feature_columns_other_than_those_of_the_fit_are_refused(market, fitted: FittedFold) -> None:
    renamed = replace(market.features, columns=("signal", "rumour", "volatility_60"))
    with pytest.raises(ForeignArtifactError, match="fitted on other features"):
        predict_fold(fitted.artifact, renamed, market.side_inputs, market.folds[0])


def test_a_model_file_can_be_moved(market, fitted: FittedFold, tmp_path: Path) -> None:
    moved = Path(shutil.move(fitted.artifact, tmp_path / "elsewhere"))
    assert predict_fold(moved, market.features, market.side_inputs, market.folds[0]).valid.any()


@pytest.mark.gpu
@pytest.mark.parametrize("model", NETWORKS)
def test_a_gpu_fit_has_almost_the_loss_of_a_cpu_fit(market, tmp_path: Path, model: str) -> None:
    losses = {}
    for precision in ("auto", "32-true"):
        config = replace(market.arguments()["config"], precision=precision)
        fitted = fit_fold(**market.arguments(model, config=config), artifact=tmp_path / precision)
        losses[precision] = fitted.fit_result.validation_loss
    assert losses["auto"] == pytest.approx(losses["32-true"], rel=0.05)
