"""Batches of one fold: chunks of bars with their targets, scaled by statistics of the fold's training range.

Glossary: t bars, n assets, f features, h horizons, s snapshots · b chunks of l bars · σ trailing volatility per bar,
known at the bar's close. A chunk is a run of l successive bars, and a batch contains b chunks. The burn-in bars at the
start of a chunk are inputs without a target.

The training rows of a fold are divided in time: training range | purged rows, whose labels end in the validation range
| validation range. A range is a pair of bar positions (start, stop), stop excluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from models.features.labels import UNKNOWN_CLASS, Labels
from models.features.scaling import Scaler
from models.graphs.context import BarEvents, SideInputs
from models.graphs.market_events import market_nodes
from models.graphs.snapshot import GraphError, to_adjacency
from models.layers.dropout import derive_seed
from models.nets.forecast import Batch, EventSteps, GraphSteps
from models.panel import Panel
from models.scoring.folds import Fold
from models.training.config import TrainConfig
from models.training.errors import EmptyFoldError

SIGMA_FEATURE = "volatility_60"
Range = tuple[int, int]  # bar positions [start, stop) in the panel of the features


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets in the units of a Forecast.

    ``returns`` (b, l, n, h) float32: log return ÷ (σ · √horizon), NaN where unknown. ``log_volatility`` (b, l, n)
    float32: log(realised volatility ÷ σ), NaN where unknown. ``class_5`` (b, l, n) int64: an index of CLASS_NAMES,
    UNKNOWN_CLASS where unknown. ``horizons``: the number of bars of each of the h returns.
    """

    returns: Tensor
    log_volatility: Tensor
    class_5: Tensor
    horizons: tuple[int, ...]

    def to(self, *args: Any, **kwargs: Any) -> Targets:
        """The targets on another device; the arguments are those of ``Tensor.to``."""
        return Targets(
            returns=self.returns.to(*args, **kwargs),
            log_volatility=self.log_volatility.to(*args, **kwargs),
            class_5=self.class_5.to(*args, **kwargs),
            horizons=self.horizons,
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """A panel as a network reads it.

    ``x`` (t, n, f) float32: scaled features, 0 where missing. ``mask`` (t, n) bool: True where the asset has a bar.
    ``gaps`` (t,) float32: time since the open of the bar before, in bars, 1 for the first bar. ``adjacency`` (s, n, n)
    float32: the edge weights of each snapshot of the asset graph, None without a graph. ``snapshot_index`` (t,) int64:
    for each bar the index of the latest snapshot at or before its open, −1 if there is none. ``events``: the events
    with the range of events of each bar; None without events.
    """

    x: Tensor
    mask: Tensor
    gaps: Tensor
    adjacency: Tensor | None
    snapshot_index: Tensor
    events: EventSteps | None = None

    @classmethod
    def from_panel(cls, features: Panel, scaler: Scaler, bar_us: int, side_inputs: SideInputs) -> Inputs:
        """Inputs of the bars of ``features``; ``bar_us`` is a bar's length in microseconds.

        The snapshots of ``side_inputs`` must be of one graph and oldest first. Raises the errors of ``event_steps``.
        """
        gaps = np.ones(len(features), dtype=np.float32)
        gaps[1:] = np.diff(features.ts).astype(np.int64) / bar_us
        snapshot_index = np.full(len(features), -1)
        adjacency = None
        snapshots = side_inputs.snapshots
        if snapshots is not None:
            as_of = np.array([s.as_of for s in snapshots], dtype="datetime64[us]")
            snapshot_index = np.searchsorted(as_of, features.ts, side="right") - 1
            adjacency = torch.from_numpy(to_adjacency(snapshots, len(features.symbols)))
        events = None
        if side_inputs.events is not None:
            events = event_steps(side_inputs.events, features, bar_us)
        return cls(
            x=torch.from_numpy(scaler.transform(features.values)),
            mask=torch.from_numpy(features.mask.copy()),
            gaps=torch.from_numpy(gaps),
            adjacency=adjacency,
            snapshot_index=torch.from_numpy(snapshot_index.astype(np.int64)),
            events=events,
        )

    def batch(self, bars: Tensor) -> Batch:
        """The batch of the bars at the panel positions ``bars`` (b, l).

        A position outside the panel is a masked bar with gap 1, without a snapshot and without events.
        """
        is_inside = (bars >= 0) & (bars < len(self.x))
        clamped_bars = bars.clamp(0, len(self.x) - 1)
        graph = None
        if self.adjacency is not None:
            graph = GraphSteps(self.adjacency, torch.where(is_inside, self.snapshot_index[clamped_bars], -1))
        events = None
        if self.events is not None:
            event_ranges = torch.where(is_inside[..., None], self.events.event_ranges[0, clamped_bars], 0)
            events = replace(self.events, event_ranges=event_ranges)
        mask = self.mask[clamped_bars] & is_inside[..., None]
        gaps = torch.where(is_inside, self.gaps[clamped_bars], 1.0)
        return Batch(self.x[clamped_bars], mask, gaps, graph, events)


class FoldData(lightning.LightningDataModule):
    """Training and validation chunks of one fold.

    ``training_range`` and ``validation_range``: the bars whose targets are scored. ``start``: the position of the first
    bar that is read, ``burn_in_bars`` before the training range or the panel's first bar; ``inputs`` and ``targets``
    begin at it. ``scaler`` is fitted on the training range alone. ``bar_us``: the median time between two bars, in
    microseconds. ``train_rows`` and ``validation_rows`` count (bar, asset) pairs with at least one known return.

    Raises EmptyFoldError if either count is 0 or if no training row can be separated from the validation range.
    """

    def __init__(
        self, config: TrainConfig, features: Panel, labels: Labels, side_inputs: SideInputs, fold: Fold
    ) -> None:
        super().__init__()
        self.config = config
        first = int(fold.train[0])
        stop = int(fold.train[-1]) + 1
        self.training_range, self.validation_range = _split_range(
            features.ts, labels.end, (first, stop), config.validation_fraction, fold.index
        )
        self.start = max(0, first - config.burn_in_bars)
        panel = features.slice_bars(self.start, stop)
        training = features.slice_bars(*self.training_range)
        if not training.mask.any():
            raise EmptyFoldError(f"fold {fold.index}: no asset has a bar from {training.ts[0]} to {training.ts[-1]}")
        self.scaler = Scaler.fit(training.values, training.mask, features.columns)
        self.bar_us = int(np.median(np.diff(features.ts[first:stop]).astype(np.int64)))
        self.inputs = Inputs.from_panel(panel, self.scaler, self.bar_us, side_inputs)
        self.targets = _make_targets(panel, labels.slice_bars(self.start, stop))
        self.train_rows = self._count_labelled(self.training_range)
        self.validation_rows = self._count_labelled(self.validation_range)
        if not (self.train_rows and self.validation_rows):
            raise EmptyFoldError(
                f"fold {fold.index}: {self.train_rows} labelled rows to train on and {self.validation_rows} to "
                f"validate on, from {features.ts[first]} to {features.ts[stop - 1]}; give it more train_bars"
            )

    def train_dataloader(self) -> ChunkLoader:
        """Training batches, in an order determined by the seed and the epoch."""
        return ChunkLoader(self, self.training_range, is_shuffled=True)

    def val_dataloader(self) -> ChunkLoader:
        """Validation batches, oldest first."""
        return ChunkLoader(self, self.validation_range, is_shuffled=False)

    @property
    def epoch(self) -> int:
        """The current epoch, 0 before the training starts."""
        return self.trainer.current_epoch if self.trainer else 0

    def _count_labelled(self, bar_range: Range) -> int:
        """The number of (bar, asset) pairs in the range with at least one known return."""
        start, stop = bar_range
        returns = self.targets.returns[start - self.start : stop - self.start]
        return int((~torch.isnan(returns)).any(-1).sum())


class ChunkLoader:
    """An iterable of (Batch, Targets) whose targets contain every bar of ``scored_range`` exactly once.

    ``first_bars``: the panel position of each chunk's first bar, which belongs to the burn-in and can be negative.
    ``batch_chunks``: the number of chunks in a batch; the last batch can have fewer. With ``is_shuffled`` the order of
    the chunks depends on the seed and the epoch; without it the chunks are oldest first.
    """

    def __init__(self, data: FoldData, scored_range: Range, is_shuffled: bool) -> None:
        config = data.config
        start, stop = scored_range
        n_assets = data.inputs.mask.shape[1]
        self.data = data
        self.scored_range = scored_range
        self.is_shuffled = is_shuffled
        self.first_bars = torch.arange(start, stop, config.chunk_bars - config.burn_in_bars) - config.burn_in_bars
        self.batch_chunks = max(1, round(config.batch_sequences / n_assets))

    def __len__(self) -> int:
        return -(-len(self.first_bars) // self.batch_chunks)  # rounded up

    def __iter__(self) -> Iterator[tuple[Batch, Targets]]:
        order = torch.arange(len(self.first_bars))
        if self.is_shuffled:
            seed = derive_seed(self.data.config.seed, self.data.epoch)
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        for chunks in order.split(self.batch_chunks):
            yield self._batch(self.first_bars[chunks, None] + torch.arange(self.data.config.chunk_bars))

    def _batch(self, bars: Tensor) -> tuple[Batch, Targets]:
        """The chunks of the bars at the panel positions ``bars`` (b, l).

        Targets outside ``scored_range`` and in the burn-in are unknown.
        """
        start, stop = self.scored_range
        is_scored = (bars >= start) & (bars < stop)
        is_scored[:, : self.data.config.burn_in_bars] = False
        is_scored = is_scored[..., None]
        positions = bars - self.data.start  # in the fold's inputs and targets
        targets = self.data.targets
        clamped = positions.clamp(0, len(targets.returns) - 1)
        scored_targets = Targets(
            returns=torch.where(is_scored[..., None], targets.returns[clamped], torch.nan),
            log_volatility=torch.where(is_scored, targets.log_volatility[clamped], torch.nan),
            class_5=torch.where(is_scored, targets.class_5[clamped], UNKNOWN_CLASS),
            horizons=targets.horizons,
        )
        return self.data.inputs.batch(positions), scored_targets


def event_steps(events: BarEvents, features: Panel, bar_us: int) -> EventSteps:
    """The events of every bar of ``features``, as a network reads them; a bar lasts ``bar_us`` microseconds.

    Raises GraphError for an event whose node is not in the market graph of the panel's assets, and for bars that
    ``events`` does not cover.
    """
    index_by_node = {name: i for i, name in enumerate(market_nodes(features.symbols))}
    by_bar = events.for_bars(features.ts)
    unknown_nodes = [name for name in by_bar.events.nodes if name not in index_by_node]
    if unknown_nodes:
        raise GraphError(
            f"events of {unknown_nodes[0]}, no node of the market of {', '.join(features.symbols)}; leave it out"
        )
    market_index = np.array([index_by_node[name] for name in by_bar.events.nodes], dtype=np.int64)
    return EventSteps(
        torch.from_numpy(market_index[by_bar.events.src]),
        torch.from_numpy(market_index[by_bar.events.dst]),
        torch.from_numpy(by_bar.age_in_bars(bar_us).astype(np.float32)),
        torch.from_numpy(by_bar.events.kind.astype(np.int64)),
        torch.from_numpy(by_bar.events.features),
        torch.from_numpy(by_bar.event_ranges[None]),
    )


def trailing_sigma(features: Panel) -> np.ndarray:
    """σ of each bar and asset, (t, n), from SIGMA_FEATURE; NaN where it is unknown or zero, and without a bar."""
    sigma = features.column(SIGMA_FEATURE)
    return np.where(features.mask & (sigma > 0), sigma, np.nan)


def _make_targets(features: Panel, labels: Labels) -> Targets:
    """The labels of every bar in the units of a Forecast, (t, n, …); unknown where σ is unknown."""
    sigma = trailing_sigma(features)
    with np.errstate(divide="ignore", invalid="ignore"):
        returns = labels.returns / (sigma[:, :, None] * np.sqrt(labels.horizons))
        log_volatility = np.log(labels.volatility / sigma)
    log_volatility[~np.isfinite(log_volatility)] = np.nan
    classes = np.where(np.isnan(sigma), UNKNOWN_CLASS, labels.class_5)
    return Targets(
        returns=torch.from_numpy(returns.astype(np.float32)),
        log_volatility=torch.from_numpy(log_volatility.astype(np.float32)),
        class_5=torch.from_numpy(classes.astype(np.int64)),
        horizons=labels.horizons,
    )


def _split_range(
    ts: np.ndarray, label_end: np.ndarray, row_range: Range, validation_fraction: float, fold_index: int
) -> tuple[Range, Range]:
    """The training range and the validation range of the training rows ``row_range``.

    The validation range is the last ``validation_fraction`` of the rows. Every label of the training range ended before
    the validation range began. ``ts`` (t,) are the bars' opens, ``label_end`` (t, h) the ends of their labels. Raises
    EmptyFoldError if no row remains for the training range.
    """
    first, stop = row_range
    validation_start = stop - max(1, round((stop - first) * validation_fraction))
    has_ended = label_end[first:validation_start].max(axis=1) < ts[validation_start]
    n_train = len(has_ended) if has_ended.all() else int(has_ended.argmin())
    if not n_train:
        raise EmptyFoldError(
            f"fold {fold_index}: none of {stop - first} training rows has a label that ends before validation starts "
            f"at {ts[validation_start]}; train_bars must well exceed the longest horizon"
        )
    return (first, first + n_train), (validation_start, stop)
