"""Fits one fold into a model file, and computes forecasts from that file.

Glossary: t bars, n assets, h horizons · σ trailing volatility per bar. A segment is a run of bars that are forecast in
one pass.

The weights and the forecasts do not change by a bit if the panel has more bars than they need, or if a fit is killed
and resumed. Four rules ensure this: no transform mixes later bars into earlier ones, segments have a fixed shape, every
epoch has its own seed, and a fit uses one thread.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback

from models.features.labels import Labels
from models.graphs.context import SideInputs
from models.nets.estimators import Estimator
from models.nets.forecast import N_CLASSES, Forecast
from models.panel import Panel
from models.scoring.folds import Fold
from models.training.artifact import Artifact, FitResult, Header, load_artifact, save_artifact
from models.training.config import TrainConfig
from models.training.data import FoldData, Inputs, trailing_sigma
from models.training.errors import DivergedFitError, ForeignArtifactError
from models.training.estimate import fit_estimator
from models.training.incremental_inference import IncrementalForecaster, can_step
from models.training.keys import code_version, data_hash, fold_key, inputs_for
from models.training.module import BestEpoch, FoldModule, OnEpoch
from models.training.pretraining import fitted_weights, pretraining_fit
from models.zoo import RNG_LOCK, Spec, build

__all__ = [
    *("FittedFold", "Predictions", "TrainConfig"),
    *(
        "fit_fold",
        "max_parallel_fits",
        "fold_key",
        "predict_fold",
        "predictions_from_forecasts",
        "segment_bars",
        "make_deterministic",
    ),
]
logger = logging.getLogger(__name__)

MAX_SEGMENT_BARS = 512
MAX_SEGMENT_PAIRS = 1 << 24  # bars · assets² of a segment, which graph attention holds in memory at once


@dataclass(frozen=True)
class FittedFold:
    """A model file, its sha256, and the result of the fit."""

    artifact: Path
    sha256: str
    fit_result: FitResult


@dataclass(frozen=True, eq=False)
class Predictions:
    """Forecasts made at the closes of the bars that open at ``ts`` (t,) datetime64[us].

    ``returns`` (t, n, h): log returns. ``volatility`` (t, n): per bar. ``probabilities`` (t, n, 5): of the classes of
    models.features.labels. ``valid`` (t, n) bool: True where the asset has a bar and a trailing volatility;
    ``returns``, ``volatility`` and ``probabilities`` are NaN where it is False. ``edges`` (t, n, n): the graph that the
    network learned, as in a Forecast; None for a network that learns no graph.
    """

    ts: np.ndarray
    symbols: tuple[str, ...]
    horizons: tuple[int, ...]
    returns: np.ndarray
    volatility: np.ndarray
    probabilities: np.ndarray
    valid: np.ndarray
    edges: np.ndarray | None = None


def fit_fold(
    spec: Spec,
    config: TrainConfig,
    features: Panel,
    labels: Labels,
    side_inputs: SideInputs,
    fold: Fold,
    artifact: Path,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> FittedFold:
    """Fits the network of ``spec`` to the fold and writes it to the model file ``artifact``.

    With ``checkpoint`` the fit resumes from the checkpoint at that path if there is one, writes one after every epoch,
    and deletes it at the end. ``on_epoch(epoch, validation_loss)`` is called after each epoch; epochs count from 0. A
    network with a pretraining phase is first fitted in that phase, into a model file of its own beside ``artifact``.
    Raises EmptyFoldError, and DivergedFitError if no epoch has a finite loss.
    """
    make_deterministic()
    network_inputs = inputs_for(spec, side_inputs, features.ts[: fold.train[-1] + 1])
    data = FoldData(config, features, labels, network_inputs, fold)
    network: Any = build(spec, len(features.columns), len(labels.horizons), config.seed)
    pretraining = pretraining_fit(spec, config, network)
    if pretraining is not None:
        arguments = (*pretraining, features, labels, side_inputs, fold)
        pretrained_file = artifact.with_name(f"{fold_key(*arguments)}.safetensors")
        network.load_pretrained(fitted_weights(pretrained_file, partial(fit_fold, *arguments), on_epoch))
    best = BestEpoch(config.patience, checkpoint, on_epoch)
    if isinstance(network, Estimator):
        fit_estimator(network, data, features, labels.horizons, best)
    else:
        _train(FoldModule(network, config), data, best)
    if not math.isfinite(best.loss):
        raise DivergedFitError(
            f"fold {fold.index}: the {spec.model} network's loss is {best.loss} after {best.n_epochs} epochs; lower "
            "lr, or look for wild feature values"
        )
    if isinstance(network, Estimator):
        n_parameters = network.n_parameters
    else:
        n_parameters = sum(p.numel() for p in network.parameters())
    fit_result = FitResult(
        epochs=best.n_epochs,
        validation_loss=best.loss,
        train_rows=data.train_rows,
        validation_rows=data.validation_rows,
        parameters=n_parameters,
        data_hash=data_hash(spec, config, features, labels, side_inputs, fold),
        code_version=code_version(),
    )
    header = Header(
        spec=spec,
        config=config,
        scaler=data.scaler,
        horizons=labels.horizons,
        bar_us=data.bar_us,
        fit_result=fit_result,
    )
    sha256 = save_artifact(artifact, header, best.weights)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return FittedFold(artifact, sha256, fit_result)


def predict_fold(
    artifact: Path,
    features: Panel,
    side_inputs: SideInputs,
    fold: Fold,
    first: int | None = None,
    keep_state: bool = False,
) -> Predictions:
    """Forecasts of the panel's bars in the fold's test window, from bar position ``first`` on.

    With ``first`` None they begin with the window. The window is divided into segments at fixed positions. The network
    runs on each segment separately, after ``context_bars`` of history. A segment that the panel does not fill is padded
    with masked bars to its full length. With ``keep_state`` the network's state after the panel's last bar is saved in
    the folder of the model file, so that a later night computes each new bar by one step. Raises the errors of
    ``load_artifact``, and ForeignArtifactError if the feature columns differ from those of the fit.
    """
    make_deterministic()
    model = load_artifact(artifact)
    header = model.header
    if features.columns != header.scaler.columns:
        raise ForeignArtifactError(f"{artifact}: fitted on other features; fit the fold again")
    stop = min(fold.test_stop, len(features))
    first = fold.test_start if first is None else max(fold.test_start, first)
    first = min(first, stop)
    length = segment_bars(fold.test_stop - fold.test_start, len(features.symbols))
    first_segment = fold.test_start + (first - fold.test_start) // length * length
    last_segment = fold.test_start + (max(first, stop - 1) - fold.test_start) // length * length
    context_bars = header.config.context_bars
    forecaster = IncrementalForecaster(artifact, model, features, side_inputs, last_segment - context_bars)
    is_incremental = keep_state and can_step(model.network) and first < stop == len(features)
    if is_incremental and first >= last_segment:
        forecasts = forecaster.forecasts(first, stop)
        if forecasts is not None:
            return predictions_from_forecasts(forecasts, header.horizons, features.slice_bars(first, stop))
    segment_starts = range(first_segment, stop, length)
    segments = [_forecast_segment(model, features, side_inputs, start, length) for start in segment_starts]
    if is_incremental:
        forecaster.save_state(stop)
    return _join_segments(segments, header.horizons, features, first_segment, first, stop)


def segment_bars(test_bars: int, n_assets: int) -> int:
    """The number of bars of a segment, after which the network's state is reset: at most the test window's length."""
    return min(MAX_SEGMENT_BARS, test_bars, max(1, MAX_SEGMENT_PAIRS // n_assets**2))


def predictions_from_forecasts(
    forecasts: Sequence[Forecast], horizons: tuple[int, ...], features: Panel
) -> Predictions:
    """Predictions in units of returns from one forecast (1, 1, n, …) for each bar of ``features``."""
    segments = [_forecast_arrays(forecast, slice(None)) for forecast in forecasts]
    return _join_segments(segments, horizons, features, 0, 0, len(features))


def max_parallel_fits() -> int:
    """The number of fits that this machine runs in parallel: one per core, but a single one if there is a GPU."""
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train(module: FoldModule, data: FoldData, best: BestEpoch) -> None:
    """Trains the network until ``best`` stops it or its last epoch ends; resumes from a readable checkpoint."""
    config = module.config
    resume_path = best.checkpoint
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    if resume_path is not None and not _is_readable(resume_path):
        resume_path = None
    # before the first epoch Lightning restores torch's generator, which must not happen while another thread draws the
    # initial weights of a network: the lock is held until the training starts
    lock_until_start = ExitStack()
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        max_epochs=config.epochs,
        gradient_clip_val=config.clip_norm,
        deterministic=True,
        callbacks=[best, LambdaCallback(on_train_start=lambda *_: lock_until_start.close())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with lock_until_start:
        lock_until_start.enter_context(RNG_LOCK)
        trainer.fit(module, datamodule=data, ckpt_path=resume_path, weights_only=True)


def _is_readable(checkpoint: Path) -> bool:
    """True if torch can load the checkpoint; an unreadable one is logged as a warning."""
    if not checkpoint.exists():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch documents no error type for a file that it cannot read
        logger.warning("%s cannot be resumed from, the fold is fitted from its start (%s)", checkpoint, exc)
        return False
    return True


def make_deterministic() -> None:
    """Sets the process-wide options of torch and Lightning. They are always the same, so fits can run in parallel.

    A fit uses one thread. At these sizes a second thread gains little, it stalls when another program uses its core,
    and it would make the last digits depend on the number of cores. Several cores run several fits.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for deterministic algorithms
    torch.use_deterministic_algorithms(True)
    # every buffer is written before it is read
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # raised inside Lightning


# arrays of successive bars, each with the bar as its first axis: returns in units of σ · √horizon, log(volatility ÷ σ),
# class probabilities and, if the network learns a graph, edges
Segment = tuple[np.ndarray, ...]


def _forecast_segment(model: Artifact, features: Panel, side_inputs: SideInputs, start: int, length: int) -> Segment:
    """The forecasts of the bars [start, start + length), computed in one pass of fixed shape."""
    header = model.header
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context_bars = header.config.context_bars
    begin = max(0, start - context_bars)
    panel = features.slice_bars(begin, start + length)
    inputs = Inputs.from_panel(panel, header.scaler, header.bar_us, inputs_for(header.spec, side_inputs, panel.ts))
    bars = torch.arange(start - context_bars, start + length) - begin
    with torch.inference_mode():
        forecast = model.network.to(device)(inputs.batch(bars[None]).to(device))
    return _forecast_arrays(forecast, slice(context_bars, None))


def _forecast_arrays(forecast: Forecast, bars: slice) -> Segment:
    """The selected ``bars`` of a forecast (1, l, n, …) as arrays."""
    probabilities = torch.softmax(forecast.logits.double(), dim=-1)
    tensors = (forecast.returns, forecast.log_volatility, probabilities)
    arrays = tuple(tensor[0, bars].double().cpu().numpy() for tensor in tensors)
    return arrays if forecast.edges is None else (*arrays, forecast.edges[0, bars].cpu().numpy())


def _join_segments(
    segments: Sequence[Segment], horizons: tuple[int, ...], features: Panel, start: int, first: int, stop: int
) -> Predictions:
    """Predictions of the bars [first, stop) in units of returns; ``segments`` are successive, the first from ``start``.

    Without a segment the predictions have no bar.
    """
    n = len(features.symbols)
    empty_segment = (np.empty((0, n, len(horizons))), np.empty((0, n)), np.empty((0, n, N_CLASSES)))
    bars = slice(first - start, stop - start)
    returns, log_volatility, probabilities, *edges = (
        np.concatenate(arrays)[bars] for arrays in zip(*(segments or [empty_segment]), strict=True)
    )
    panel = features.slice_bars(first, stop)
    sigma = trailing_sigma(panel)
    valid = ~np.isnan(sigma)
    return Predictions(
        ts=panel.ts,
        symbols=panel.symbols,
        horizons=horizons,
        returns=returns * sigma[:, :, None] * np.sqrt(horizons),
        volatility=np.exp(log_volatility) * sigma,
        probabilities=np.where(valid[:, :, None], probabilities, np.nan),
        valid=valid,
        edges=edges[0] if edges else None,
    )
