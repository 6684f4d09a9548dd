"""Train: fits every network of the night on every fold that is not fitted yet, and forecasts the bars without one."""

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
from tasks.learned_graphs import learned_snapshots, with_trailing, write_learned_graphs
from tasks.night import Night
from tasks.panels import first_unseen_bar, instants, load_bar_events, load_bars, load_features, load_snapshots
from warehouse.tables import append, read_query, replace_slice

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """How the networks of a universe are trained: labels, walk-forward windows in bars, and settings of a fit.

    ``folds`` are the arguments of ``walk_forward``; ``train`` those of TrainConfig that differ from its defaults.
    """

    horizons: tuple[int, ...]
    class_horizon: int
    folds: Mapping[str, int]
    train: Mapping[str, Any] = field(default_factory=dict)

    def config(self, seed: int) -> TrainConfig:
        """Settings of a fit with this seed."""
        return TrainConfig(**{**self.train, "seed": seed})


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data of a universe's networks; ``snapshots`` by graph name.

    ``changed`` (k,) are the bars whose features no night has published yet; ``changed_by_events`` (k,) the bars from
    the first event on that no published night has read.
    """

    features: Panel
    labels: Labels
    snapshots: Mapping[str, list[Snapshot]]
    folds: list[Fold]
    changed: np.ndarray
    events: BarEvents | None
    changed_by_events: np.ndarray

    def side_inputs_of(self, spec: Spec) -> SideInputs:
        """The snapshots that the network of ``spec`` reads, None if it reads no graph, and the events."""
        graph = zoo.graph_of(spec)
        return SideInputs(None if graph is None else self.snapshots[graph], self.events)

    def changed_for(self, spec: Spec) -> np.ndarray:
        """The bars whose inputs to the network of ``spec`` differ from those of the published nights."""
        return np.union1d(self.changed, self.changed_by_events) if zoo.network(spec.model).events else self.changed


@dataclass(frozen=True)
class TrialReport:
    """One model and seed: number of folds, fitted in this run, skipped as unfit to train, prediction rows written."""

    model: str
    seed: int
    trial_id: str
    folds: int
    fitted: int
    skipped: int
    predictions: int


def trial_id(night: Night, model: str, seed: int, recipe: Recipe) -> str:
    """First 16 hex digits of the sha256 of everything that identifies a trial: market, network, settings and seed."""
    identity = [night.slice, Spec(model).to_json(), recipe.config(seed).to_json(), asdict(recipe)]
    return short_hash(json.dumps(identity, sort_keys=True))


def contenders(night: Night, models: Sequence[str], seeds: Sequence[int], recipe: Recipe) -> list[Contender]:
    """The models of a night as entries of its leaderboard. Raises UnknownModelError."""
    return [
        Contender(name, RULE)
        if isinstance(zoo.entry(name), zoo.TradingRule)
        else Contender(name, "network", tuple(trial_id(night, name, seed, recipe) for seed in seeds))
        for name in models
    ]


@task(name="load training data", cache_policy=NO_CACHE, persist_result=False)
def load_training_data(night: Night, recipe: Recipe, models: Sequence[str] | None = None) -> TrainingData:
    """Features, labels, folds, and the graphs and events that ``models`` read, up to the night.

    ``models`` defaults to all networks of the zoo.
    Raises NoFoldsError when the history is too short for one fold, and UnknownModelError.
    """
    bars = load_bars(night)
    features = load_features(night)
    labels = compute_labels(bars, features.column("volatility_60"), recipe.horizons, recipe.class_horizon)
    folds = walk_forward(features.ts, labels.end, **recipe.folds)
    if not folds:
        need = sum(recipe.folds[name] for name in ("warmup_bars", "train_bars", "embargo_bars"))
        raise NoFoldsError(
            f"{night.universe.name} has {len(features)} bars up to {night.as_of}; its first test window starts after "
            f"{need}; choose a later night, or shorter windows in the profile's folds"
        )
    changed = instants(night.warehouse.query("unpublished_features", **night.slice)["ts"])
    names = (
        [name for name, entry in zoo.ENTRIES.items() if isinstance(entry, zoo.Network)] if models is None else models
    )
    graphs = {graph for name in names if (graph := zoo.graph_of(Spec(name))) is not None}
    snapshots = {graph: load_snapshots(night, graph) for graph in sorted(graphs)}
    events = load_bar_events(night) if any(zoo.network(name).events for name in names) else None
    changed_by_events = features.ts[:0] if events is None else features.ts[first_unseen_bar(night, events) :]
    return TrainingData(features, labels, snapshots, folds, changed, events, changed_by_events)


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
    """Fits the folds of one model that are not fitted yet, and forecasts every test bar that is new or was restated.

    ``workers`` folds are fitted in parallel, by default as many as the machine allows. A fold's row and predictions are
    written together, so a killed night loses at most the running fits, and those resume from their last epoch.
    """
    tune_allocator()
    trial = Trial(night, data, Spec(model), recipe.config(seed), trial_id(night, model, seed, recipe))
    stored = {row["fold"]: row for row in night.warehouse.query("folds_of_trial", **trial.keys).to_pylist()}
    fitted = skipped = written = 0
    pool = ThreadPoolExecutor(workers or max_parallel_fits())
    stop = threading.Event()
    try:
        futures = [pool.submit(_fit_and_forecast, trial, fold, stored.get(fold.index), stop) for fold in data.folds]
        for k, future in enumerate(futures):
            if on_progress is not None:
                on_progress(k, len(futures), f"{model}, fold {k + 1} of {len(futures)}")
            try:
                work = future.result()
            except FitError as error:
                logger.warning("%s, %s: left out: %s", night.universe.name, model, error)
                skipped += 1
            else:
                fitted += work.fitted
                written += _write(trial, work)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if on_progress is not None:
        on_progress(len(futures), len(futures), model)
    report = TrialReport(model, seed, trial.trial_id, len(data.folds), fitted, skipped, written)
    logger.info("%s %s: %s", night.as_of, night.universe.name, report)
    return report


@dataclass(frozen=True, eq=False)
class Trial:
    """One network with one seed on one universe's data."""

    night: Night
    data: TrainingData
    spec: Spec
    config: TrainConfig
    trial_id: str

    @property
    def keys(self) -> dict[str, object]:
        """Key columns of the trial's rows."""
        return {**self.night.slice, "trial_id": self.trial_id}

    @property
    def inputs(self) -> tuple[Spec, TrainConfig, Panel, Labels, SideInputs]:
        """The leading arguments of ``fit_fold`` and ``fold_key``."""
        return self.spec, self.config, self.data.features, self.data.labels, self.data.side_inputs_of(self.spec)


@dataclass(frozen=True, eq=False)
class FoldWork:
    """Result of one fold, not written yet: ``row``, and ``predictions`` from bar ``first`` on, are None when they are
    stored already. ``learned_graphs``: the snapshots of the network's own graph at those bars."""

    fold: Fold
    fitted: bool
    fit_result: FitResult
    row: pa.Table | None
    first: int
    predictions: pa.Table | None
    learned_graphs: list[Snapshot]


class StoppedError(Exception):
    """A fit was stopped because another one failed or the night was interrupted."""


def _fit_and_forecast(trial: Trial, fold: Fold, stored: dict[str, Any] | None, stop: threading.Event) -> FoldWork:
    """The fold's fit, made now unless its file exists, and its missing forecasts.

    Runs in a thread beside other folds, so it does not use the warehouse.
    """

    def on_epoch(epoch: int, loss: float) -> None:
        if stop.is_set():
            raise StoppedError

    features = trial.data.features
    key = fold_key(*trial.inputs, fold)
    artifact = trial.night.warehouse.artifacts / f"{key}.safetensors"
    fit_result = _stored_fit(artifact)
    needs_fit = fit_result is None
    if fit_result is None:
        artifact.parent.mkdir(parents=True, exist_ok=True)
        fit_result = fit_fold(*trial.inputs, fold, artifact, artifact.with_suffix(".ckpt"), on_epoch).fit_result
    if stored is not None and stored["fold_key"] == key:
        row = None
        first = _first_due(trial, fold, stored)
    else:
        row = _fold_row(trial, fold, key, artifact, fit_result)
        first = fold.test_start
    if row is None and first >= min(fold.test_stop, len(features)):
        return FoldWork(fold, needs_fit, fit_result, row, first, predictions=None, learned_graphs=[])
    predictions = predict_fold(artifact, features, trial.inputs[4], fold, first, keep_state=True)
    graphs = learned_snapshots(predictions, first, trial.spec.model, trial.config.seed)
    return FoldWork(fold, needs_fit, fit_result, row, first, prediction_rows(predictions), graphs)


def _write(trial: Trial, work: FoldWork) -> int:
    """Number of prediction rows written, in one transaction with the fold's row if it is new."""
    if work.predictions is None:
        return 0
    night = trial.night
    ts = trial.data.features.ts
    keys = {**trial.keys, "fold": work.fold.index}
    series = with_trailing(night, work.learned_graphs, ts)
    with night.warehouse.write(f"fold {work.fold.index} of {trial.spec.model}, {night.universe.name}") as con:
        if work.row is not None:
            _write_trial(con, trial, work.fit_result)
            replace_slice(con, "store.folds", work.row, **keys)
        read_query(con, "delete_predictions", **keys, start=utc_datetime(ts[work.first]), end=utc_datetime(ts[-1]))
        write_learned_graphs(con, night, work.learned_graphs, series, trial_id=trial.trial_id, fold=work.fold.index)
        return append(con, "store.predictions", work.predictions, **keys, run_id=night.run_id)


def _first_due(trial: Trial, fold: Fold, stored: dict[str, Any]) -> int:
    """The first bar of the fold's window that has no prediction yet, or whose inputs changed since."""
    ts = trial.data.features.ts
    first = fold.test_start
    if stored["last_prediction"] is not None:
        last = np.datetime64(stored["last_prediction"].replace(tzinfo=None), "us")
        first = int(np.searchsorted(ts, last, side="right"))
    changed = trial.data.changed_for(trial.spec)
    is_read = changed >= ts[max(0, fold.test_start - trial.config.context_bars)]
    if is_read.any():
        first = min(first, int(np.searchsorted(ts, changed[is_read][0])))
    return max(fold.test_start, first)


def _stored_fit(artifact: Path) -> FitResult | None:
    """The fit result recorded in a model file; None when no file is usable, so that the fold is fitted (again)."""
    if not artifact.exists():
        return None
    try:
        return read_header(artifact).fit_result
    except ArtifactError as error:
        logger.warning("fitting again: %s", error)
        return None


def _write_trial(con: Any, trial: Trial, fit_result: FitResult) -> None:
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
    """The row of store.folds without its keys; ``test_end`` is the open of the first bar after the window."""
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
