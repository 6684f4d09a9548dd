"""Train: fits the folds of the night's networks that are not fitted yet, and forecasts test bars that are due.

A night is the run for one as-of date; see ``tasks/night.py``. A fold is a training window and the test window after it.
A trial is one network trained with one seed on all folds of a universe. A test bar is due when it has no forecast, or
when an input of its forecast has changed. Glossary: t bars.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from models import zoo
from models.features.labels import Labels, compute_labels
from models.graphs.context import BarEvents, SideInputs
from models.graphs.snapshot import Snapshot
from models.hashing import short_hash
from models.panel import Panel
from models.scoring.folds import Fold, walk_forward
from models.sessions import bar_after
from models.training.allocator import tune_allocator
from models.training.artifact import FitResult, file_hash, read_header
from models.training.errors import ArtifactError, FitError
from models.training.fit import TrainConfig, fit_fold, fold_key, max_parallel_fits, predict_fold
from models.zoo import Spec
from tasks.errors import NoFoldsError
from tasks.forecasts import RULE, Contender, prediction_rows, utc_datetime
from tasks.learned_graphs import learned_snapshots, with_trailing_snapshots, write_learned_graphs
from tasks.night import Night
from tasks.panels import (
    column_to_datetime64,
    first_unseen_bar,
    load_bar_events,
    load_bars,
    load_features,
    load_snapshots,
)
from warehouse.tables import append, read_query, replace_slice

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]  # receives the number of folds done, the number of folds, and a label


@dataclass(frozen=True)
class Recipe:
    """How the networks of a universe are trained: labels, walk-forward windows in bars, and settings of a fit.

    ``horizons`` are the forecast horizons in bars; ``class_horizon`` is the horizon of the class labels. ``folds`` are
    the keyword arguments of ``walk_forward``. ``train`` holds the fields of TrainConfig that differ from its defaults.
    """

    horizons: tuple[int, ...]
    class_horizon: int
    folds: Mapping[str, int]
    train: Mapping[str, Any] = field(default_factory=dict)

    def config(self, seed: int) -> TrainConfig:
        """The settings of a fit with this seed."""
        return TrainConfig(**{**self.train, "seed": seed})


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data of a universe's networks, on a grid of t bars.

    ``snapshots`` maps a graph's name to its snapshots, oldest first. ``events`` is None when no network reads events.
    The last two arrays hold open times (datetime64[us], UTC, ascending) of bars to forecast again:
    ``bars_with_new_features`` those with a feature row that no published night has written, ``bars_with_new_events``
    all bars from the first event on that no published night has read.
    """

    features: Panel
    labels: Labels
    snapshots: Mapping[str, list[Snapshot]]
    folds: list[Fold]
    bars_with_new_features: np.ndarray
    events: BarEvents | None
    bars_with_new_events: np.ndarray

    def side_inputs_of(self, spec: Spec) -> SideInputs:
        """The events, and the snapshots of the graph that the network of ``spec`` reads (None if it reads no graph)."""
        graph = zoo.graph_of(spec)
        return SideInputs(None if graph is None else self.snapshots[graph], self.events)

    def bars_with_new_inputs(self, spec: Spec) -> np.ndarray:
        """Open times, ascending, of the bars whose inputs to the network of ``spec`` no published night has read."""
        if not zoo.find_network(spec.model).reads_events:
            return self.bars_with_new_features
        return np.union1d(self.bars_with_new_features, self.bars_with_new_events)


@dataclass(frozen=True)
class TrialReport:
    """Result of training one model with one seed.

    ``folds`` counts all folds, ``fitted`` the folds fitted in this run, ``skipped`` the folds whose fit raised a
    FitError, and ``predictions`` the prediction rows written.
    """

    model: str
    seed: int
    trial_id: str
    folds: int
    fitted: int
    skipped: int
    predictions: int


def trial_id(night: Night, model: str, seed: int, recipe: Recipe) -> str:
    """First 16 hex digits of the sha256 of what identifies a trial: source, universe, network, settings and seed."""
    identity = [night.slice, Spec(model).to_json(), recipe.config(seed).to_json(), asdict(recipe)]
    return short_hash(json.dumps(identity, sort_keys=True))


def contenders(night: Night, models: Sequence[str], seeds: Sequence[int], recipe: Recipe) -> list[Contender]:
    """A Contender per name in ``models``, in this order; networks have a trial per seed. Raises UnknownModelError."""
    return [
        Contender(name, RULE)
        if isinstance(zoo.find_entry(name), zoo.TradingRule)
        else Contender(name, "network", tuple(trial_id(night, name, seed, recipe) for seed in seeds))
        for name in models
    ]


@task(name="load training data", cache_policy=NO_CACHE, persist_result=False)
def load_training_data(night: Night, recipe: Recipe, models: Sequence[str] | None = None) -> TrainingData:
    """Features, labels, folds, and the graphs and events that ``models`` read, up to the night's clock.

    ``models`` are names of networks; the default is all networks of the zoo. Raises NoFoldsError when the history is
    too short for one fold, and UnknownModelError for a name that is not in the zoo or is a trading rule.
    """
    bars = load_bars(night)
    features = load_features(night)
    labels = compute_labels(bars, features.column("volatility_60"), recipe.horizons, recipe.class_horizon)
    folds = walk_forward(features.ts, labels.end, **recipe.folds)
    if not folds:
        n_bars_before_test = sum(recipe.folds[name] for name in ("warmup_bars", "train_bars", "embargo_bars"))
        raise NoFoldsError(
            f"{night.universe.name} has {len(features)} bars up to {night.as_of}; its first test window starts after "
            f"{n_bars_before_test}; choose a later night, or shorter windows in the profile's folds"
        )
    bars_with_new_features = column_to_datetime64(night.warehouse.query("unpublished_features", **night.slice)["ts"])
    if models is None:
        models = [name for name, entry in zoo.ENTRIES.items() if isinstance(entry, zoo.Network)]
    graphs = [zoo.graph_of(Spec(name)) for name in models]
    snapshots = {graph: load_snapshots(night, graph) for graph in sorted({graph for graph in graphs if graph})}
    events = load_bar_events(night) if any(zoo.find_network(name).reads_events for name in models) else None
    first_new_bar = len(features) if events is None else first_unseen_bar(night, events)
    return TrainingData(
        features=features,
        labels=labels,
        snapshots=snapshots,
        folds=folds,
        bars_with_new_features=bars_with_new_features,
        events=events,
        bars_with_new_events=features.ts[first_new_bar:],
    )


@task(name="train model", cache_policy=NO_CACHE, persist_result=False)
def train_model(
    night: Night,
    data: TrainingData,
    model: str,
    seed: int,
    recipe: Recipe,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> TrialReport:
    """Fits the folds of one trial that are not fitted yet, and forecasts every test bar that is due.

    ``workers`` folds are fitted in parallel, by default as many as the machine allows. A fold that raises FitError is
    skipped with a warning; any other error stops all fits and is raised. A fold's row and predictions are written in
    one transaction, so a killed night loses at most the running fits, and these resume from their last epoch.
    """
    tune_allocator()
    trial = Trial(night, data, Spec(model), recipe.config(seed), trial_id(night, model, seed, recipe))
    stored_rows = {row["fold"]: row for row in night.warehouse.query("folds_of_trial", **trial.keys).to_pylist()}
    n_fitted = 0
    n_skipped = 0
    n_predictions = 0
    pool = ThreadPoolExecutor(workers or max_parallel_fits())
    stop = threading.Event()
    try:
        futures = [
            pool.submit(_fit_and_forecast, trial, fold, stored_rows.get(fold.index), stop) for fold in data.folds
        ]
        for k, future in enumerate(futures):
            if on_progress is not None:
                on_progress(k, len(futures), f"{model}, fold {k + 1} of {len(futures)}")
            try:
                result = future.result()
            except FitError as error:
                logger.warning("%s, %s: left out: %s", night.universe.name, model, error)
                n_skipped += 1
            else:
                n_fitted += result.is_new_fit
                n_predictions += _write_fold(trial, result)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if on_progress is not None:
        on_progress(len(futures), len(futures), model)
    report = TrialReport(
        model=model,
        seed=seed,
        trial_id=trial.trial_id,
        folds=len(data.folds),
        fitted=n_fitted,
        skipped=n_skipped,
        predictions=n_predictions,
    )
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


@dataclass(frozen=True, eq=False)
class Trial:
    """One network with one seed on the data of the night's universe; ``config`` holds the seed."""

    night: Night
    data: TrainingData
    spec: Spec
    config: TrainConfig
    trial_id: str

    @property
    def keys(self) -> dict[str, object]:
        """Key columns of the trial's rows: source, universe and trial_id."""
        return {**self.night.slice, "trial_id": self.trial_id}

    @property
    def side_inputs(self) -> SideInputs:
        """The snapshots and events that the trial's network reads."""
        return self.data.side_inputs_of(self.spec)

    @property
    def fit_arguments(self) -> tuple[Spec, TrainConfig, Panel, Labels, SideInputs]:
        """The first five arguments of ``fit_fold`` and of ``fold_key``."""
        return self.spec, self.config, self.data.features, self.data.labels, self.side_inputs


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What one fold has to write.

    ``is_new_fit`` is True when the fold was fitted in this run. ``row`` is the fold's row of store.folds, None when the
    same row is stored. ``predictions`` are rows of store.predictions from bar position ``first_bar`` on, None when no
    bar is due; then nothing is written. ``learned_graphs`` are snapshots that the network computed itself.
    """

    fold: Fold
    is_new_fit: bool
    fit_result: FitResult
    row: pa.Table | None
    first_bar: int
    predictions: pa.Table | None
    learned_graphs: list[Snapshot]


class StoppedError(Exception):
    """A fit was stopped because the fit of another fold failed or the night was interrupted."""


def _fit_and_forecast(trial: Trial, fold: Fold, stored_row: dict[str, Any] | None, stop: threading.Event) -> FoldResult:
    """The result of one fold, which is fitted unless a usable model file exists; its due bars are forecast.

    ``stored_row`` is the fold's row of store.folds, if there is one. The function runs in a thread in parallel with
    other folds, so it does not use the warehouse.
    """

    def on_epoch(epoch: int, loss: float) -> None:
        if stop.is_set():
            raise StoppedError

    features = trial.data.features
    key = fold_key(*trial.fit_arguments, fold)
    artifact = trial.night.warehouse.artifacts / f"{key}.safetensors"
    fit_result = _stored_fit(artifact)
    is_new_fit = fit_result is None
    if fit_result is None:
        artifact.parent.mkdir(parents=True, exist_ok=True)
        fit_result = fit_fold(*trial.fit_arguments, fold, artifact, artifact.with_suffix(".ckpt"), on_epoch).fit_result
    if stored_row is not None and stored_row["fold_key"] == key:
        row = None
        first_bar = _first_due_bar(trial, fold, stored_row)
    else:
        row = _fold_row(trial, fold, key, artifact, fit_result)
        first_bar = fold.test_start
    if row is None and first_bar >= min(fold.test_stop, len(features)):
        return FoldResult(fold, is_new_fit, fit_result, row, first_bar, predictions=None, learned_graphs=[])
    predictions = predict_fold(artifact, features, trial.side_inputs, fold, first_bar, keep_state=True)
    graphs = learned_snapshots(predictions, first_bar, trial.spec.model, trial.config.seed)
    return FoldResult(fold, is_new_fit, fit_result, row, first_bar, prediction_rows(predictions), graphs)


def _write_fold(trial: Trial, result: FoldResult) -> int:
    """Writes the fold's predictions, learned graphs and new row in one transaction; returns the number of predictions.

    Stored predictions from the result's ``first_bar`` on are replaced.
    """
    if result.predictions is None:
        return 0
    night = trial.night
    ts = trial.data.features.ts
    fold_index = result.fold.index
    keys = {**trial.keys, "fold": fold_index}
    learned = result.learned_graphs
    series = with_trailing_snapshots(night, learned, ts)
    with night.warehouse.write(f"fold {fold_index} of {trial.spec.model}, {night.universe.name}") as con:
        if result.row is not None:
            _write_new_trial(con, trial, result.fit_result)
            replace_slice(con, "store.folds", result.row, **keys)
        start = utc_datetime(ts[result.first_bar])
        read_query(con, "delete_predictions", **keys, start=start, end=utc_datetime(ts[-1]))
        write_learned_graphs(con, night, learned, series, trial_id=trial.trial_id, fold=fold_index)
        return append(con, "store.predictions", result.predictions, **keys, run_id=night.run_id)


def _first_due_bar(trial: Trial, fold: Fold, stored_row: dict[str, Any]) -> int:
    """Position of the first due bar of the fold's test window; the bar after the last prediction if none was restated.

    A changed bar before the window counts if it is one of the ``context_bars`` bars that the network reads before it.
    """
    ts = trial.data.features.ts
    first_bar = fold.test_start
    if stored_row["last_prediction"] is not None:
        last_predicted = np.datetime64(stored_row["last_prediction"].replace(tzinfo=None), "us")
        first_bar = int(np.searchsorted(ts, last_predicted, side="right"))
    changed_ts = trial.data.bars_with_new_inputs(trial.spec)
    is_read = changed_ts >= ts[max(0, fold.test_start - trial.config.context_bars)]
    if is_read.any():
        first_bar = min(first_bar, int(np.searchsorted(ts, changed_ts[is_read][0])))
    return max(fold.test_start, first_bar)


def _stored_fit(artifact: Path) -> FitResult | None:
    """The fit result recorded in a model file; None when the file does not exist or is damaged."""
    if not artifact.exists():
        return None
    try:
        return read_header(artifact).fit_result
    except ArtifactError as error:
        logger.warning("fitting again: %s", error)
        return None


def _write_new_trial(con: Any, trial: Trial, fit_result: FitResult) -> None:
    """Writes the trial's row of store.trials, unless it is stored."""
    if read_query(con, "trial_exists", **trial.keys).num_rows:
        return
    row = {
        "model": trial.spec.model,
        "seed": trial.config.seed,
        "spec": json.dumps({"network": trial.spec.to_json(), "fit": trial.config.to_json()}, sort_keys=True),
        "parameters": fit_result.parameters,
        "horizons_bars": list(trial.data.labels.horizons),
        "run_id": trial.night.run_id,
    }
    append(con, "store.trials", pa.Table.from_pylist([row]), **trial.keys)


def _fold_row(trial: Trial, fold: Fold, key: str, artifact: Path, fit_result: FitResult) -> pa.Table:
    """The row of store.folds without its keys. Its times are opens of bars; ``test_end`` is after the test window."""
    ts = trial.data.features.ts
    labels = trial.data.labels
    universe = trial.night.universe
    test_bars = fold.test_stop - fold.test_start
    row = {
        "fold_key": key,
        "train_start": utc_datetime(ts[fold.train[0]]),
        "train_end": utc_datetime(ts[fold.train[-1]]),
        "last_label_end": utc_datetime(labels.end[fold.train].max()),
        "test_start": utc_datetime(ts[fold.test_start]),
        "test_end": utc_datetime(bar_after(universe.calendar, universe.interval, ts[fold.test_start], test_bars)),
        "purge_bars": fold.purge_bars,
        "embargo_bars": fold.test_start - fold.train_stop,
        "train_rows": fit_result.train_rows,
        "validation_rows": fit_result.validation_rows,
        "epochs": fit_result.epochs,
        "validation_loss": fit_result.validation_loss,
        "data_hash": fit_result.data_hash,
        "code_version": fit_result.code_version,
        "artifact": artifact.name,
        "artifact_sha256": file_hash(artifact),
        "run_id": trial.night.run_id,
    }
    return pa.Table.from_pylist([row])
