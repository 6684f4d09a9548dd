"""Batches of one fold: chunks of bars with their targets, scaled by statistics of the fold's training rows.

Glossary: t bars, n assets, f features, h horizons, s snapshots · b chunks of l bars · σ trailing volatility per bar,
known at the bar. A fold's rows: training | dropped, because their labels reach into validation | validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from models.features.labels import UNKNOWN, Labels
from models.features.scaling import Scaler
from models.graphs.context import BarEvents, SideInputs
from models.graphs.market_events import market_nodes
from models.graphs.snapshot import GraphError, to_adjacency
from models.layers.dropout import seed_of
from models.nets.forecast import Batch, EventSteps, GraphSteps
from models.panel import Panel
from models.scoring.folds import Fold
from models.training.config import TrainConfig
from models.training.errors import EmptyFoldError

SIGMA = "volatility_60"


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets in the units of a Forecast: ``returns`` (b, l, n, h) and ``log_volatility`` (b, l, n), NaN where
    unknown; ``class_5`` (b, l, n) int64, UNKNOWN where unknown. ``horizons``: bars of each of the h returns."""

    returns: Tensor
    log_volatility: Tensor
    class_5: Tensor
    horizons: tuple[int, ...]

    def to(self, *args: Any, **kwargs: Any) -> Targets:
        """The targets on another device."""
        returns, log_volatility, class_5 = (
            v.to(*args, **kwargs) for v in (self.returns, self.log_volatility, self.class_5)
        )
        return Targets(returns, log_volatility, class_5, self.horizons)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A panel as a network reads it: ``x`` (t, n, f) scaled, ``mask`` (t, n), ``gaps`` (t,) in bars.

    With a graph also ``adjacency`` (s, n, n) of its snapshots and ``step`` (t,), the snapshot in force at each bar or
    −1. With events also ``events``, whose spans (1, t, 2) assign them to bars.
    """

    x: Tensor
    mask: Tensor
    gaps: Tensor
    adjacency: Tensor | None
    step: Tensor
    events: EventSteps | None = None

    @classmethod
    def from_panel(cls, features: Panel, scaler: Scaler, bar_us: int, side_inputs: SideInputs) -> Inputs:
        """Inputs of ``features``; ``bar_us`` is a bar's length in microseconds. All snapshots must be of one graph."""
        gaps = np.ones(len(features), dtype=np.float32)
        gaps[1:] = np.diff(features.ts).astype(np.int64) / bar_us
        step = np.full(len(features), -1)
        adjacency = None
        snapshots = side_inputs.snapshots
        if snapshots is not None:
            as_of = np.array([s.as_of for s in snapshots], dtype="datetime64[us]")
            step = np.searchsorted(as_of, features.ts, side="right") - 1
            adjacency = torch.from_numpy(to_adjacency(snapshots, len(features.symbols)))
        x = torch.from_numpy(scaler.transform(features.values))
        mask = torch.from_numpy(features.mask.copy())
        events = None if side_inputs.events is None else event_steps(side_inputs.events, features, bar_us)
        return cls(x, mask, torch.from_numpy(gaps), adjacency, torch.from_numpy(step.astype(np.int64)), events)

    def batch(self, bars: Tensor) -> Batch:
        """The bars at positions ``bars`` (b, l); a position outside the panel is a masked bar."""
        is_inside = (bars >= 0) & (bars < len(self.x))
        index = bars.clamp(0, len(self.x) - 1)
        graph = None
        if self.adjacency is not None:
            graph = GraphSteps(self.adjacency, torch.where(is_inside, self.step[index], -1))
        events = None
        if self.events is not None:
            events = replace(self.events, spans=torch.where(is_inside[..., None], self.events.spans[0, index], 0))
        mask = self.mask[index] & is_inside[..., None]
        gaps = torch.where(is_inside, self.gaps[index], 1.0)
        return Batch(self.x[index], mask, gaps, graph, events)


class FoldData(lightning.LightningDataModule):
    """Training and validation chunks of one fold.

    ``spans``: the panel positions [start, stop) of training and of validation. ``scaler`` is fitted on the training
    span alone. ``train_rows`` and ``validation_rows`` count (bar, asset) pairs with a known label. Raises
    EmptyFoldError.
    """

    def __init__(
        self, config: TrainConfig, features: Panel, labels: Labels, side_inputs: SideInputs, fold: Fold
    ) -> None:
        super().__init__()
        self.config = config
        first = int(fold.train[0])
        stop = int(fold.train[-1]) + 1
        self.spans = _split(features.ts, labels.end, first, stop, config.validation_fraction, fold.index)
        self.start = max(0, first - config.burn_in_bars)
        panel = features.rows(self.start, stop)
        training = features.rows(*self.spans[0])
        if not training.mask.any():
            raise EmptyFoldError(f"fold {fold.index}: no asset has a bar from {training.ts[0]} to {training.ts[-1]}")
        self.scaler = Scaler.fit(training.values, training.mask, features.columns)
        self.bar_us = int(np.median(np.diff(features.ts[first:stop]).astype(np.int64)))
        self.inputs = Inputs.from_panel(panel, self.scaler, self.bar_us, side_inputs)
        self.targets = _targets(panel, labels.rows(self.start, stop))
        self.train_rows, self.validation_rows = (self._count_labelled(span) for span in self.spans)
        if not (self.train_rows and self.validation_rows):
            raise EmptyFoldError(
                f"fold {fold.index}: {self.train_rows} labelled rows to train on and {self.validation_rows} to "
                f"validate on, from {features.ts[first]} to {features.ts[stop - 1]}; give it more train_bars"
            )

    def train_dataloader(self) -> ChunkLoader:
        """Training batches, in an order determined by the seed and the epoch."""
        return ChunkLoader(self, self.spans[0], shuffled=True)

    def val_dataloader(self) -> ChunkLoader:
        """Validation batches, oldest first."""
        return ChunkLoader(self, self.spans[1], shuffled=False)

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.trainer.current_epoch if self.trainer else 0

    def _count_labelled(self, span: tuple[int, int]) -> int:
        rows = slice(span[0] - self.start, span[1] - self.start)
        return int((~torch.isnan(self.targets.returns[rows])).any(-1).sum())


class ChunkLoader:
    """Batches (Batch, Targets) that together score each bar [start, stop) of ``span`` exactly once."""

    def __init__(self, data: FoldData, span: tuple[int, int], shuffled: bool) -> None:
        config = data.config
        start, stop = span
        self.data = data
        self.span = span
        self.shuffled = shuffled
        self.first_bars = torch.arange(start, stop, config.chunk_bars - config.burn_in_bars) - config.burn_in_bars
        self.size = max(1, round(config.batch_sequences / data.inputs.mask.shape[1]))

    def __len__(self) -> int:
        return -(-len(self.first_bars) // self.size)

    def __iter__(self) -> Iterator[tuple[Batch, Targets]]:
        order = torch.arange(len(self.first_bars))
        if self.shuffled:
            seed = seed_of(self.data.config.seed, self.data.epoch)
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        for chunks in order.split(self.size):
            yield self._batch(self.first_bars[chunks, None] + torch.arange(self.data.config.chunk_bars))

    def _batch(self, bars: Tensor) -> tuple[Batch, Targets]:
        """Chunks at the panel positions ``bars`` (b, l)."""
        is_scored = (bars >= self.span[0]) & (bars < self.span[1])
        is_scored[:, : self.data.config.burn_in_bars] = False
        is_scored = is_scored[..., None]
        rows = bars - self.data.start
        targets = self.data.targets
        index = rows.clamp(0, len(targets.returns) - 1)
        return self.data.inputs.batch(rows), Targets(
            torch.where(is_scored[..., None], targets.returns[index], torch.nan),
            torch.where(is_scored, targets.log_volatility[index], torch.nan),
            torch.where(is_scored, targets.class_5[index], UNKNOWN),
            targets.horizons,
        )


def event_steps(events: BarEvents, features: Panel, bar_us: int) -> EventSteps:
    """The events of every bar of ``features``; a bar lasts ``bar_us`` microseconds.

    Raises GraphError for an event whose node is not in the market graph of the panel's assets, and for bars that
    ``events`` does not cover.
    """
    node_index = {name: i for i, name in enumerate(market_nodes(features.symbols))}
    by_bar = events.for_bars(features.ts)
    foreign = [name for name in by_bar.events.nodes if name not in node_index]
    if foreign:
        raise GraphError(
            f"events of {foreign[0]}, no node of the market of {', '.join(features.symbols)}; leave it out"
        )
    index = np.array([node_index[name] for name in by_bar.events.nodes], dtype=np.int64)
    return EventSteps(
        torch.from_numpy(index[by_bar.events.src]),
        torch.from_numpy(index[by_bar.events.dst]),
        torch.from_numpy(by_bar.age(bar_us).astype(np.float32)),
        torch.from_numpy(by_bar.events.kind.astype(np.int64)),
        torch.from_numpy(by_bar.events.features),
        torch.from_numpy(by_bar.spans[None]),
    )


def trailing_sigma(features: Panel) -> np.ndarray:
    """σ (t, n), NaN where it is unknown or zero."""
    sigma = features.column(SIGMA)
    return np.where(features.mask & (sigma > 0), sigma, np.nan)


def _targets(features: Panel, labels: Labels) -> Targets:
    """Labels of every bar in the units of a Forecast, (t, n, …)."""
    sigma = trailing_sigma(features)
    with np.errstate(divide="ignore", invalid="ignore"):
        returns = labels.returns / (sigma[:, :, None] * np.sqrt(labels.horizons))
        log_volatility = np.log(labels.volatility / sigma)
    log_volatility[~np.isfinite(log_volatility)] = np.nan
    classes = np.where(np.isnan(sigma), UNKNOWN, labels.class_5)
    return Targets(
        torch.from_numpy(returns.astype(np.float32)),
        torch.from_numpy(log_volatility.astype(np.float32)),
        torch.from_numpy(classes.astype(np.int64)),
        labels.horizons,
    )


def _split(
    ts: np.ndarray, label_end: np.ndarray, first: int, stop: int, validation_fraction: float, fold: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bars [start, stop) of the training span and of the validation span, taken from the training rows [first, stop).

    Every label of the training span ended before the validation span began. Raises EmptyFoldError.
    """
    validation = stop - max(1, round((stop - first) * validation_fraction))
    ended = label_end[first:validation].max(axis=1) < ts[validation]
    train_bars = len(ended) if ended.all() else int(ended.argmin())
    if not train_bars:
        raise EmptyFoldError(
            f"fold {fold}: none of {stop - first} training rows has a label that ends before validation starts at "
            f"{ts[validation]}; train_bars must well exceed the longest horizon"
        )
    return (first, first + train_bars), (validation, stop)
