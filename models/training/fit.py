"""One fold: fitted into a model file, and forecasts from that file.

Both come out bit for bit the same whether the panel ends right after what they need or months later, and whether the
fit was killed in between or not. The arithmetic is arranged for it: no transform that mixes later bars into earlier
ones, windows of a fixed shape, a seed per epoch, one thread.
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
from models.nets.forecast import CLASSES, Forecast
from models.panel import Panel
from models.scoring.folds import Fold
from models.training.artifact import Header, Outcome, load_artifact, save_artifact
from models.training.config import TrainConfig
from models.training.data import FoldData, Inputs, known_sigma
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
        "predictions_of",
        "segment_bars",
        "make_deterministic",
    ),
]
logger = logging.getLogger(__name__)

SEGMENT_BARS = 512  # forecast in one forward pass
SEGMENT_PAIRS = 1 << 24  # bound on bars · assets² of a pass: what graph attention holds at once


@dataclass(frozen=True)
class FittedFold:
    """A model file, its sha256, and what the fit came to."""

    artifact: Path
    sha256: str
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class Predictions:
    """Forecasts of bars ``ts`` (t,) made at their closes: ``returns`` (t, n, h) log, ``volatility`` (t, n) per bar,
    ``probabilities`` (t, n, 5). ``valid`` (t, n): the asset has a bar and a trailing volatility; NaN elsewhere.
    ``edges`` (t, n, n): the graph that a network drew itself, as in a Forecast."""

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
    """The fold's network, fitted and written to ``artifact``.

    With ``checkpoint`` every epoch is kept there, a fit that finds one goes on from it, and it is gone at the end.
    ``on_epoch(epoch, validation_loss)`` is called after each. Raises EmptyFoldError, DivergedFitError.
    """
    make_deterministic()
    around = inputs_for(spec, side_inputs, features.ts[: fold.train[-1] + 1])
    data = FoldData(config, features, labels, around, fold)
    network: Any = build(spec, len(features.columns), len(labels.horizons), config.seed)
    pretraining = pretraining_fit(spec, config, network)
    if pretraining is not None:
        arguments = (*pretraining, features, labels, side_inputs, fold)
        first = artifact.with_name(f"{fold_key(*arguments)}.safetensors")
        network.load_pretrained(fitted_weights(first, partial(fit_fold, *arguments), on_epoch))
    best = BestEpoch(config.patience, checkpoint, on_epoch)
    if isinstance(network, Estimator):
        fit_estimator(network, data, features, labels.horizons, best)
    else:
        _run(FoldModule(network, config), data, best)
    if not math.isfinite(best.loss):
        raise DivergedFitError(
            f"fold {fold.index}: the {spec.model} network's loss is {best.loss} after {best.epochs} epochs; lower "
            "lr, or look for wild feature values"
        )
    trained = sum(p.numel() for p in network.parameters())
    parameters = network.fitted_numbers if isinstance(network, Estimator) else trained
    outcome = Outcome(
        best.epochs,
        best.loss,
        data.train_rows,
        data.validation_rows,
        parameters,
        data_hash(spec, config, features, labels, side_inputs, fold),
        code_version(),
    )
    header = Header(spec, config, data.scaler, labels.horizons, data.bar_us, outcome)
    sha256 = save_artifact(artifact, header, best.weights)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return FittedFold(artifact, sha256, outcome)


def predict_fold(
    artifact: Path,
    features: Panel,
    side_inputs: SideInputs,
    fold: Fold,
    first: int | None = None,
    keep_state: bool = False,
) -> Predictions:
    """Forecasts of the panel's bars in the fold's test window, from bar position ``first`` on if given.

    The window is cut into segments at fixed places; each is run on its own after ``context_bars`` of history, padded to
    its full length when the panel ends before it. With ``keep_state`` the network's state after the panel's last bar is
    kept beside the model file, and the bars after it cost a step each. Raises the errors of ``load_artifact``, and
    ForeignArtifactError when the features are not those it was fitted on.
    """
    make_deterministic()
    loaded = load_artifact(artifact)
    header, network = loaded.header, loaded.network
    if features.columns != header.scaler.columns:
        raise ForeignArtifactError(f"{artifact}: fitted on other features; fit the fold again")
    stop = min(fold.test_stop, len(features))
    first = min(max(fold.test_start, fold.test_start if first is None else first), stop)
    length = segment_bars(fold.test_stop - fold.test_start, len(features.symbols))
    start = fold.test_start + (first - fold.test_start) // length * length
    newest = fold.test_start + (max(first, stop - 1) - fold.test_start) // length * length
    walk = IncrementalForecaster(artifact, loaded, features, side_inputs, newest - header.config.context_bars)
    walks = keep_state and can_step(network) and first < stop == len(features)
    stepped = walk.forecasts(first, stop) if walks and first >= newest else None
    if stepped is not None:
        return predictions_of(stepped, header.horizons, features.rows(first, stop))
    rows = [_segment(network, header, features, side_inputs, bar, length) for bar in range(start, stop, length)]
    if walks:
        walk.save_state(stop)
    return _predictions(rows, header.horizons, features, start, first, stop)


def segment_bars(test_bars: int, assets: int) -> int:
    """How many bars of a test window are forecast in one pass, from which on the network begins anew."""
    return min(SEGMENT_BARS, test_bars, max(1, SEGMENT_PAIRS // assets**2))


def predictions_of(forecasts: Sequence[Forecast], horizons: tuple[int, ...], features: Panel) -> Predictions:
    """The forecasts of one bar each, all of ``features``, in units of returns."""
    rows = [_scaled(forecast, slice(None)) for forecast in forecasts]
    return _predictions(rows, horizons, features, 0, 0, len(features))


def max_parallel_fits() -> int:
    """How many fits this machine runs side by side: one a core, or one when there is a GPU to share."""
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(module: FoldModule, data: FoldData, best: BestEpoch) -> None:
    """Trains to the end, from the checkpoint where there is one that can be read."""
    config, resume = module.config, best.checkpoint
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    if resume is not None and not _readable(resume):
        resume = None
    starting = ExitStack()  # before its first epoch Lightning puts torch's generator back: not while a network is drawn
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        max_epochs=config.epochs,
        gradient_clip_val=config.clip_norm,
        deterministic=True,
        callbacks=[best, LambdaCallback(on_train_start=lambda *_: starting.close())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with starting:
        starting.enter_context(RNG_LOCK)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)


def _readable(checkpoint: Path) -> bool:
    if not checkpoint.exists():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch names no error of its own for a file that it cannot read
        logger.warning("%s cannot be resumed from, the fold is fitted from its start (%s)", checkpoint, exc)
        return False
    return True


def make_deterministic() -> None:
    """Sets what torch and Lightning keep per process; the same every time, so fits may run side by side in threads.

    One thread a fit: at these sizes a second gains little, stalls whenever another program wants its core, and would
    let the last digits depend on how many cores there are. Cores are for fits.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses the next line's promise
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # every buffer is written
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # Lightning's own affair


Segment = tuple[np.ndarray, ...]


def _segment(
    network: torch.nn.Module, header: Header, features: Panel, side_inputs: SideInputs, bar: int, length: int
) -> Segment:
    """Scaled returns, log-volatility, class probabilities and, if the network draws them, edges of bars [bar, bar +
    length): one pass of fixed shape."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = max(0, bar - header.config.context_bars)
    panel = features.rows(begin, bar + length)
    inputs = Inputs.of(panel, header.scaler, header.bar_us, inputs_for(header.spec, side_inputs, panel.ts))
    bars = torch.arange(bar - header.config.context_bars, bar + length) - begin
    with torch.inference_mode():
        forecast = network.to(device)(inputs.batch(bars[None]).to(device))
    return _scaled(forecast, slice(header.config.context_bars, None))


def _scaled(forecast: Forecast, bars: slice) -> Segment:
    """The same of those bars of the one chunk there is."""
    logits = torch.softmax(forecast.logits.double(), dim=-1)
    parts = (forecast.returns, forecast.log_volatility, logits)
    numbers = tuple(v[0, bars].double().cpu().numpy() for v in parts)
    return numbers if forecast.edges is None else (*numbers, forecast.edges[0, bars].cpu().numpy())


def _predictions(
    segments: Sequence[Segment], horizons: tuple[int, ...], features: Panel, start: int, first: int, stop: int
) -> Predictions:
    """The segments from bar ``start`` on, joined, cut to [first, stop) and back in units of returns."""
    n = len(features.symbols)
    empty = (np.empty((0, n, len(horizons))), np.empty((0, n)), np.empty((0, n, CLASSES)))
    cut = slice(first - start, stop - start)
    returns, log_volatility, probabilities, *edges = (
        np.concatenate(parts)[cut] for parts in zip(*(segments or [empty]), strict=True)
    )
    panel = features.rows(first, stop)
    sigma = known_sigma(panel)
    valid = ~np.isnan(sigma)
    return Predictions(
        panel.ts,
        panel.symbols,
        horizons,
        returns * sigma[:, :, None] * np.sqrt(horizons),
        np.exp(log_volatility) * sigma,
        np.where(valid[:, :, None], probabilities, np.nan),
        valid,
        *edges,
    )
