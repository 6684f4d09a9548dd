"""Self-supervised training of temporal graph networks: prediction of the next events.

Implements TGN-21 to TGN-23 (ids: .github/sources.md).

Protocol of Yu et al. 2023, 2303.13047 (DyGLib). Events are split 70/15/15 by time. A tenth of the nodes, sampled from
the nodes with events after the training time, is hidden from training: events of a hidden node are not trained on. A
node without any event in training is new. Metrics are the average precision and the ROC AUC of every batch of 200
events with one negative per event, averaged over batches. The inductive metrics count only events with a new node.

Glossary: e events · q events of a batch · c candidates per event: the event itself and one negative per strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.graphs.events import Events
from models.graphs.negatives import STRATEGIES, Negatives
from models.layers.dropout import reseed
from models.nets.event_batch import EventBatch
from models.nets.link import LinkPredictor
from models.nets.temporal_graph import State, detach_state
from models.scoring.ranking import average_precision, roc_auc
from models.training.errors import EmptyFoldError
from models.training.losses import link_loss

ScoreFunction = Callable[
    [np.ndarray, np.ndarray, int, int], np.ndarray
]  # (src, dst, start, stop) → scores, see link_metrics
LinkMetrics = Mapping[str, Mapping[str, float]]  # strategy → metric → value
Range = tuple[int, int]  # positions [start, stop) of events
METRICS = ("ap", "auc", "new_ap", "new_auc")  # average precision, ROC AUC; new_…: of events with a new node


@dataclass(frozen=True)
class LinkConfig:
    """Settings of a fit.

    ``patience``: the fit ends after this many epochs without a higher validation average precision. ``new_nodes``: the
    hidden nodes as a fraction of all nodes.
    """

    epochs: int = 20
    batch_events: int = 200
    lr: float = 1e-3
    patience: int = 4
    seed: int = 0
    new_nodes: float = 0.1


@dataclass(frozen=True, eq=False)
class Split:
    """Events in time order, divided into training, validation and test events.

    The positions are [0, train_stop) for training, [train_stop, validation_stop) for validation, and from
    validation_stop for testing. ``is_train`` (e,) bool: events before train_stop without a hidden node. ``is_new``
    (e,) bool: events with a node that has no event in ``is_train``.
    """

    events: Events
    train_stop: int
    validation_stop: int
    is_train: np.ndarray
    is_new: np.ndarray


def split_chronologically(events: Events, config: LinkConfig) -> Split:
    """A split into 70, 15 and 15 percent of the time-ordered events.

    Raises EmptyFoldError if there are fewer test events than one batch has.
    """
    train_stop = int(0.7 * len(events))
    validation_stop = int(0.85 * len(events))
    if len(events) - validation_stop < config.batch_events:
        raise EmptyFoldError(f"{len(events)} events do not split into 70, 15 and 15 percent of batches; give more")
    n_nodes = len(events.nodes)
    later_nodes = np.unique([events.src[train_stop:], events.dst[train_stop:]])
    n_hidden = min(len(later_nodes), int(config.new_nodes * n_nodes))
    is_hidden = np.zeros(n_nodes, dtype=bool)
    is_hidden[np.random.default_rng(2020).choice(later_nodes, n_hidden, replace=False)] = True
    is_train = ~(is_hidden[events.src] | is_hidden[events.dst]) & (np.arange(len(events)) < train_stop)
    is_trained = np.zeros(n_nodes, dtype=bool)
    is_trained[events.src[is_train]] = is_trained[events.dst[is_train]] = True
    is_new = ~(is_trained[events.src] & is_trained[events.dst])
    return Split(
        events=events,
        train_stop=train_stop,
        validation_stop=validation_stop,
        is_train=is_train,
        is_new=is_new,
    )


def fit_links(
    predictor: LinkPredictor,
    split: Split,
    config: LinkConfig,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> float:
    """Fits ``predictor`` and returns its best validation average precision against random negatives.

    The predictor then has the weights of the best epoch. After each epoch ``on_epoch(epoch, loss, precision)`` is
    called with the mean training loss and the average precision on the validation events.
    """
    train_events = _select_events(split.events, np.flatnonzero(split.is_train))
    rng = np.random.default_rng(config.seed)
    all_train_events = batch_in_seconds(train_events)
    negatives = Negatives(train_events, len(train_events))
    validation_range = (split.train_stop, split.validation_stop)
    optimiser = torch.optim.Adam(predictor.parameters(), lr=config.lr, fused=True)
    best_precision = -np.inf
    best_epoch = -1
    best_weights = deepcopy(predictor.state_dict())
    for epoch in range(config.epochs):
        reseed(predictor.train(), config.seed, epoch)
        loss = _train_epoch(predictor, all_train_events, negatives, optimiser, rng, config.batch_events)
        metrics = evaluate(predictor, split, validation_range, config, ("random",))
        precision = metrics["random"]["ap"]
        if on_epoch is not None:
            on_epoch(epoch, loss, precision)
        if precision > best_precision:
            best_precision = precision
            best_epoch = epoch
            best_weights = deepcopy(predictor.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    predictor.load_state_dict(best_weights)
    return best_precision


def evaluate(
    predictor: LinkPredictor,
    split: Split,
    event_range: Range,
    config: LinkConfig,
    strategies: Sequence[str] = STRATEGIES,
) -> LinkMetrics:
    """The metrics of ``predictor`` over the events of ``event_range``, after all events before them were inserted.

    See ``link_metrics``.
    """
    all_events = batch_in_seconds(split.events)
    first, _ = event_range
    predictor.eval()
    with torch.no_grad():
        state = predictor.graph.initial_state(len(split.events.nodes))
        for start in range(0, first, config.batch_events):
            batch = all_events.part(start, min(start + config.batch_events, first))
            state = predictor.graph.insert(state, batch, in_place=True)
        scorer = _StatefulScorer(predictor, all_events, state)
        return link_metrics(scorer.score, split, event_range, config, strategies)


def link_metrics(
    score: ScoreFunction,
    split: Split,
    event_range: Range,
    config: LinkConfig,
    strategies: Sequence[str] = STRATEGIES,
) -> LinkMetrics:
    """Average precision and ROC AUC of a score function, averaged over the batches of ``event_range``.

    ``score(src, dst, start, stop)`` returns the scores (c, q) of the pairs ``src``, ``dst`` (c, q) in the batch of the
    events [start, stop); row 0 contains the events, each other row the negatives of one strategy. It is called once per
    batch, in time order.

    The result has for each strategy: ``ap`` and ``auc`` of all events, ``new_ap`` and ``new_auc`` of the events with a
    new node. The mean of a metric ignores the batches where it is NaN. The negatives are the same for every score
    function.
    """
    range_start, range_stop = event_range
    negatives = Negatives(split.events, split.train_stop)
    rng = np.random.default_rng(config.seed + 1)
    metrics_by_strategy: dict[str, list[tuple[float, ...]]] = {strategy: [] for strategy in strategies}
    for start in range(range_start, range_stop, config.batch_events):
        stop = min(start + config.batch_events, range_stop)
        src = [split.events.src[start:stop]]
        dst = [split.events.dst[start:stop]]
        for strategy in strategies:
            negative_src, negative_dst = negatives.sample(strategy, start, stop, rng)
            src.append(negative_src)
            dst.append(negative_dst)
        event_scores, *negative_scores = score(np.stack(src), np.stack(dst), start, stop)
        for strategy, scores in zip(strategies, negative_scores, strict=True):
            metrics_by_strategy[strategy].append(_batch_metrics(event_scores, scores, split.is_new[start:stop]))
    return {
        strategy: dict(zip(METRICS, np.nanmean(metrics, axis=0).tolist(), strict=True))
        for strategy, metrics in metrics_by_strategy.items()
    }


def batch_in_seconds(events: Events) -> EventBatch:
    """All events as one batch, with times in seconds since the first event."""
    return EventBatch.from_events(events, 1e6, int(events.t[0]))


@dataclass
class _StatefulScorer:
    """Scores the batches of events in time order; ``state`` contains all events before the next batch."""

    predictor: LinkPredictor
    all_events: EventBatch
    state: State

    def score(self, src: np.ndarray, dst: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The scores (c, q) of the pairs in the state before the batch, which is inserted into the state afterwards."""
        batch = self.all_events.part(start, stop)
        scores = self.predictor(self.state, torch.from_numpy(src), torch.from_numpy(dst), batch.t)
        self.state = self.predictor.graph.insert(self.state, batch, in_place=True)
        return scores.double().numpy()


def _train_epoch(
    predictor: LinkPredictor,
    all_train_events: EventBatch,
    negatives: Negatives,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    batch_events: int,
) -> float:
    """The mean training loss per event of one epoch over ``all_train_events``.

    The events of a batch are inserted into the state only when the next batch is scored, so the gradient of that batch
    includes the insertion.
    """
    state = predictor.graph.initial_state(negatives.n)
    total_loss = 0.0
    n_events = len(all_train_events.src)
    previous_batch = all_train_events.part(0, 0)
    for start in range(0, n_events, batch_events):
        stop = min(start + batch_events, n_events)
        batch = all_train_events.part(start, stop)
        _, negative_dst = negatives.sample("random", start, stop, rng)
        state = predictor.graph.insert(state, previous_batch)
        candidates = torch.stack([batch.dst, torch.from_numpy(negative_dst)])
        loss = link_loss(predictor(state, batch.src[None], candidates, batch.t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        state = detach_state(state)
        previous_batch = batch
        total_loss += loss.item() * (stop - start)
    return total_loss / n_events


def _batch_metrics(event_scores: np.ndarray, negative_scores: np.ndarray, is_new: np.ndarray) -> tuple[float, ...]:
    """METRICS of a batch, from the scores (q,) of its events and of one negative per event.

    NaN where a metric does not exist: in a batch without a new node.
    """
    metrics = []
    for is_counted in (np.ones(len(is_new), dtype=bool), is_new):
        is_positive = np.repeat([True, False], is_counted.sum())
        scores = np.concatenate([event_scores[is_counted], negative_scores[is_counted]])
        metrics += [average_precision(is_positive, scores), roc_auc(is_positive, scores)]
    return tuple(metrics)


def _select_events(events: Events, index: np.ndarray) -> Events:
    """The events at the positions ``index``, with all nodes."""
    return replace(
        events,
        src=events.src[index],
        dst=events.dst[index],
        t=events.t[index],
        kind=events.kind[index],
        features=events.features[index],
    )
