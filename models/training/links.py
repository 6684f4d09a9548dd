"""Self-supervised training of temporal graph networks: which events happen next (inventory TGN-21 to 23).

Protocol of Yu et al. 2023, 2303.13047 (DyGLib): events split 70/15/15 by time; a tenth of the nodes, drawn from those
that still act after the training time, is hidden from training ("new"); batches of 200; average precision and ROC AUC
of every batch, one negative an event, averaged over batches; "inductive" counts only events of a node never trained on.
Glossary: e events · q events of a batch · c candidates an event: itself, and the negatives of each strategy.
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

Score = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class LinkConfig:
    """How links are learned. ``patience``: epochs without a better validation before it ends."""

    epochs: int = 20
    batch_events: int = 200
    lr: float = 1e-3
    patience: int = 4
    seed: int = 0
    new_nodes: float = 0.1


@dataclass(frozen=True, eq=False)
class Split:
    """Events [0, train_stop) to learn from where ``learned`` (e,) says so, [train_stop, validation_stop) to choose by,
    the rest to report; ``new`` (e,): an end of the event was never learned from."""

    events: Events
    train_stop: int
    validation_stop: int
    learned: np.ndarray
    new: np.ndarray


def chronological(events: Events, config: LinkConfig) -> Split:
    """70, 15 and 15 percent of the time-ordered events. Raises EmptyFoldError for fewer than one batch of each."""
    train, validation = int(0.7 * len(events)), int(0.85 * len(events))
    if len(events) - validation < config.batch_events:
        raise EmptyFoldError(f"{len(events)} events do not split into 70, 15 and 15 percent of batches; give more")
    n, later = len(events.nodes), np.unique([events.src[train:], events.dst[train:]])
    hidden = np.zeros(n, dtype=bool)
    count = min(len(later), int(config.new_nodes * n))
    hidden[np.random.default_rng(2020).choice(later, count, replace=False)] = True
    learned = ~(hidden[events.src] | hidden[events.dst]) & (np.arange(len(events)) < train)
    known = np.zeros(n, dtype=bool)
    known[events.src[learned]] = known[events.dst[learned]] = True
    return Split(events, train, validation, learned, ~(known[events.src] & known[events.dst]))


def fit_links(
    predictor: LinkPredictor, split: Split, config: LinkConfig, told: Callable[[int, float, float], None] | None = None
) -> float:
    """The best validation average precision against random negatives; the predictor has the weights that reached it.

    ``told(epoch, loss, average_precision)`` after each epoch.
    """
    learned = np.flatnonzero(split.learned)
    part, draw = _chosen(split.events, learned), np.random.default_rng(config.seed)
    contacts, negatives = seconds(part), Negatives(part, len(part))
    optimiser = torch.optim.Adam(predictor.parameters(), lr=config.lr, fused=True)
    best, best_epoch, weights = -np.inf, -1, deepcopy(predictor.state_dict())
    for epoch in range(config.epochs):
        reseed(predictor.train(), config.seed, epoch)
        loss = _epoch(predictor, contacts, negatives, optimiser, draw, config.batch_events)
        validation = (split.train_stop, split.validation_stop)
        found = evaluate(predictor, split, validation, config, ("random",))["random"]["ap"]
        if told is not None:
            told(epoch, loss, found)
        if found > best:
            best, best_epoch, weights = found, epoch, deepcopy(predictor.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    predictor.load_state_dict(weights)
    return best


def evaluate(
    predictor: LinkPredictor,
    split: Split,
    span: tuple[int, int],
    config: LinkConfig,
    strategies: Sequence[str] = STRATEGIES,
) -> Figures:
    """Average precision and ROC AUC by strategy over the events [start, stop) of ``span``; see ``figures``."""
    contacts = seconds(split.events)
    predictor.eval()
    with torch.no_grad():
        state = predictor.graph.initial_state(len(split.events.nodes))
        for start in range(0, span[0], config.batch_events):
            batch = contacts.part(start, min(start + config.batch_events, span[0]))
            state = predictor.graph.insert(state, batch, in_place=True)
        reader = _Reader(predictor, contacts, state)
        return figures(reader.score, split, span, config, strategies)


def figures(
    score: Score, split: Split, span: tuple[int, int], config: LinkConfig, strategies: Sequence[str] = STRATEGIES
) -> Figures:
    """Means over batches of what ``score(src (c, q), dst (c, q), start, stop)`` is worth: by strategy ``ap``, ``auc``,
    and of the events with a new node ``new_ap``, ``new_auc``. Negatives are the same for every scorer."""
    negatives, draw = Negatives(split.events, split.train_stop), np.random.default_rng(config.seed + 1)
    rows: dict[str, list[tuple[float, ...]]] = {strategy: [] for strategy in strategies}
    for start in range(*span, config.batch_events):
        stop = min(start + config.batch_events, span[1])
        pairs = [negatives.sample(strategy, start, stop, draw) for strategy in strategies]
        src, dst = (
            np.stack([real[start:stop], *(pair[end] for pair in pairs)])
            for end, real in enumerate((split.events.src, split.events.dst))
        )
        scores = score(src, dst, start, stop)
        for strategy, against in zip(strategies, scores[1:], strict=True):
            rows[strategy].append(_worth(scores[0], against, split.new[start:stop]))
    names = ("ap", "auc", "new_ap", "new_auc")
    return {s: dict(zip(names, np.nanmean(found, axis=0).tolist(), strict=True)) for s, found in rows.items()}


def seconds(events: Events) -> EventBatch:
    """The events with times in seconds since the first."""
    return EventBatch.of(events, 1e6, int(events.t[0]))


@dataclass
class _Reader:
    """Predicts a batch from the state before it, and only then takes it in."""

    predictor: LinkPredictor
    contacts: EventBatch
    state: State

    def score(self, src: np.ndarray, dst: np.ndarray, start: int, stop: int) -> np.ndarray:
        batch = self.contacts.part(start, stop)
        scores = self.predictor(self.state, torch.from_numpy(src), torch.from_numpy(dst), batch.t)
        self.state = self.predictor.graph.insert(self.state, batch, in_place=True)
        return scores.double().numpy()


def _epoch(
    predictor: LinkPredictor,
    contacts: EventBatch,
    negatives: Negatives,
    optimiser: torch.optim.Optimizer,
    draw: np.random.Generator,
    size: int,
) -> float:
    """The mean loss of one pass; every batch is held back until the next, whose graph it is inserted in."""
    state, total, events = predictor.graph.initial_state(negatives.n), 0.0, len(contacts.src)
    held = contacts.part(0, 0)
    for start in range(0, events, size):
        stop = min(start + size, events)
        batch = contacts.part(start, stop)
        _, against = negatives.sample("random", start, stop, draw)
        state = predictor.graph.insert(state, held)
        both = torch.stack([batch.dst, torch.from_numpy(against)])
        loss = link_loss(predictor(state, batch.src[None], both, batch.t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        state, held = detached(state), batch
        total += loss.item() * (stop - start)
    return total / events


def _worth(real: np.ndarray, against: np.ndarray, new: np.ndarray) -> tuple[float, ...]:
    found = []
    for chosen in (np.ones(len(new), dtype=bool), new):
        happened = np.repeat([True, False], chosen.sum())
        scores = np.concatenate([real[chosen], against[chosen]])
        found += [average_precision(happened, scores), roc_auc(happened, scores)]
    return tuple(found)


def _chosen(events: Events, rows: np.ndarray) -> Events:
    src, dst, t, kind, features = (getattr(events, k)[rows] for k in ("src", "dst", "t", "kind", "features"))
    return Events(src, dst, t, kind, features, events.nodes)
