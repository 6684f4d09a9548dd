"""Self-supervised training of temporal graph networks: prediction of the next events (TGN-21 to TGN-23).

Protocol of Yu et al. 2023, 2303.13047 (DyGLib): events split 70/15/15 by time; a tenth of the nodes, sampled from those
with events after the training time, is hidden from training ("new"); batches of 200; average precision and ROC AUC of
every batch, with one negative per event, averaged over batches; "inductive" metrics count only events with a new node.
Glossary: e events · q events of a batch · c candidates per event: the event itself and a negative of each strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from models.graphs.events import Events
from models.graphs.negatives import STRATEGIES, Negatives
from models.layers.dropout import reseed
from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import State, detached
from models.scoring.ranking import average_precision, roc_auc
from models.training.errors import EmptyFoldError
from models.training.losses import link_loss

ScoreFunction = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
LinkMetrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class LinkConfig:
    """Settings of a fit. ``patience``: epochs without a better validation score after which the fit ends."""

    epochs: int = 20
    batch_events: int = 200
    lr: float = 1e-3
    patience: int = 4
    seed: int = 0
    new_nodes: float = 0.1


@dataclass(frozen=True, eq=False)
class Split:
    """Events in time order: [0, train_stop) for training, [train_stop, validation_stop) for validation, the rest for
    testing. ``is_train`` (e,): training events without a hidden node; ``is_new`` (e,): events with a node that no
    training event has."""

    events: Events
    train_stop: int
    validation_stop: int
    is_train: np.ndarray
    is_new: np.ndarray


def chronological(events: Events, config: LinkConfig) -> Split:
    """A split into 70, 15 and 15 percent of the time-ordered events. Raises EmptyFoldError if the last part is shorter
    than one batch."""
    train_stop = int(0.7 * len(events))
    validation_stop = int(0.85 * len(events))
    if len(events) - validation_stop < config.batch_events:
        raise EmptyFoldError(f"{len(events)} events do not split into 70, 15 and 15 percent of batches; give more")
    n = len(events.nodes)
    later_nodes = np.unique([events.src[train_stop:], events.dst[train_stop:]])
    is_hidden = np.zeros(n, dtype=bool)
    hidden_count = min(len(later_nodes), int(config.new_nodes * n))
    is_hidden[np.random.default_rng(2020).choice(later_nodes, hidden_count, replace=False)] = True
    is_train = ~(is_hidden[events.src] | is_hidden[events.dst]) & (np.arange(len(events)) < train_stop)
    is_trained = np.zeros(n, dtype=bool)
    is_trained[events.src[is_train]] = is_trained[events.dst[is_train]] = True
    is_new = ~(is_trained[events.src] & is_trained[events.dst])
    return Split(events, train_stop, validation_stop, is_train, is_new)


def fit_links(
    predictor: LinkPredictor,
    split: Split,
    config: LinkConfig,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> float:
    """Fits ``predictor`` and returns its best validation average precision against random negatives.

    The predictor keeps the weights of the best epoch. ``on_epoch(epoch, loss, average_precision)`` is called after each
    epoch.
    """
    events = _select_events(split.events, np.flatnonzero(split.is_train))
    rng = np.random.default_rng(config.seed)
    all_events = batch_in_seconds(events)
    negatives = Negatives(events, len(events))
    optimiser = torch.optim.Adam(predictor.parameters(), lr=config.lr, fused=True)
    best_precision = -np.inf
    best_epoch = -1
    weights = deepcopy(predictor.state_dict())
    for epoch in range(config.epochs):
        reseed(predictor.train(), config.seed, epoch)
        loss = _train_epoch(predictor, all_events, negatives, optimiser, rng, config.batch_events)
        validation = (split.train_stop, split.validation_stop)
        precision = evaluate(predictor, split, validation, config, ("random",))["random"]["ap"]
        if on_epoch is not None:
            on_epoch(epoch, loss, precision)
        if precision > best_precision:
            best_precision = precision
            best_epoch = epoch
            weights = deepcopy(predictor.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    predictor.load_state_dict(weights)
    return best_precision


def evaluate(
    predictor: LinkPredictor,
    split: Split,
    span: tuple[int, int],
    config: LinkConfig,
    strategies: Sequence[str] = STRATEGIES,
) -> LinkMetrics:
    """Average precision and ROC AUC of ``predictor`` by strategy over the events [start, stop) of ``span``; see
    ``link_metrics``."""
    all_events = batch_in_seconds(split.events)
    predictor.eval()
    with torch.no_grad():
        state = predictor.graph.initial_state(len(split.events.nodes))
        for start in range(0, span[0], config.batch_events):
            batch = all_events.part(start, min(start + config.batch_events, span[0]))
            state = predictor.graph.insert(state, batch, in_place=True)
        scorer = _StatefulScorer(predictor, all_events, state)
        return link_metrics(scorer.score, split, span, config, strategies)


def link_metrics(
    score: ScoreFunction,
    split: Split,
    span: tuple[int, int],
    config: LinkConfig,
    strategies: Sequence[str] = STRATEGIES,
) -> LinkMetrics:
    """Metrics of the scores ``score(src (c, q), dst (c, q), start, stop)``, averaged over the batches of ``span``.

    By strategy: ``ap`` and ``auc`` of all events, ``new_ap`` and ``new_auc`` of the events with a new node. Negatives
    are the same for every score function.
    """
    negatives = Negatives(split.events, split.train_stop)
    rng = np.random.default_rng(config.seed + 1)
    rows: dict[str, list[tuple[float, ...]]] = {strategy: [] for strategy in strategies}
    for start in range(*span, config.batch_events):
        stop = min(start + config.batch_events, span[1])
        pairs = [negatives.sample(strategy, start, stop, rng) for strategy in strategies]
        src, dst = (
            np.stack([real[start:stop], *(pair[end] for pair in pairs)])
            for end, real in enumerate((split.events.src, split.events.dst))
        )
        scores = score(src, dst, start, stop)
        for strategy, negative_scores in zip(strategies, scores[1:], strict=True):
            rows[strategy].append(_batch_metrics(scores[0], negative_scores, split.is_new[start:stop]))
    names = ("ap", "auc", "new_ap", "new_auc")
    return {
        strategy: dict(zip(names, np.nanmean(metrics, axis=0).tolist(), strict=True))
        for strategy, metrics in rows.items()
    }


def batch_in_seconds(events: Events) -> EventBatch:
    """The events as a batch, with times in seconds since the first event."""
    return EventBatch.from_events(events, 1e6, int(events.t[0]))


@dataclass
class _StatefulScorer:
    """Scores a batch with the state before it, and only then inserts the batch into the state."""

    predictor: LinkPredictor
    all_events: EventBatch
    state: State

    def score(self, src: np.ndarray, dst: np.ndarray, start: int, stop: int) -> np.ndarray:
        batch = self.all_events.part(start, stop)
        scores = self.predictor(self.state, torch.from_numpy(src), torch.from_numpy(dst), batch.t)
        self.state = self.predictor.graph.insert(self.state, batch, in_place=True)
        return scores.double().numpy()


def _train_epoch(
    predictor: LinkPredictor,
    all_events: EventBatch,
    negatives: Negatives,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    batch_events: int,
) -> float:
    """The mean loss of one epoch. Every batch is inserted one batch later, as part of that batch's gradient graph."""
    state = predictor.graph.initial_state(negatives.n)
    total_loss = 0.0
    event_count = len(all_events.src)
    previous = all_events.part(0, 0)
    for start in range(0, event_count, batch_events):
        stop = min(start + batch_events, event_count)
        batch = all_events.part(start, stop)
        _, negative_dst = negatives.sample("random", start, stop, rng)
        state = predictor.graph.insert(state, previous)
        candidates = torch.stack([batch.dst, torch.from_numpy(negative_dst)])
        loss = link_loss(predictor(state, batch.src[None], candidates, batch.t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        state = detached(state)
        previous = batch
        total_loss += loss.item() * (stop - start)
    return total_loss / event_count


def _batch_metrics(event_scores: np.ndarray, negative_scores: np.ndarray, is_new: np.ndarray) -> tuple[float, ...]:
    """Average precision and ROC AUC of a batch: over all its events, then over those with a new node."""
    metrics = []
    for mask in (np.ones(len(is_new), dtype=bool), is_new):
        happened = np.repeat([True, False], mask.sum())
        scores = np.concatenate([event_scores[mask], negative_scores[mask]])
        metrics += [average_precision(happened, scores), roc_auc(happened, scores)]
    return tuple(metrics)


def _select_events(events: Events, rows: np.ndarray) -> Events:
    src, dst, t, kind, features = (getattr(events, k)[rows] for k in ("src", "dst", "t", "kind", "features"))
    return Events(src, dst, t, kind, features, events.nodes)
