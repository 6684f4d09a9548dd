"""Negative samples for link prediction, and the EdgeBank baseline.

A link predictor has to tell positive pairs (src, dst), which have an event, from negative pairs, which have none.
Paper: Poursafaei et al. 2022, 2207.10128, sections 4 and 5 (negative sampling strategies, EdgeBank).
Glossary: e events · n nodes · key of a pair: src · n + dst · batch: the events at the positions [start, stop).
"""

from __future__ import annotations

import numpy as np

from models.graphs.events import Events

STRATEGIES = ("random", "historical", "temporal", "inductive")
N_RECENT_EVENTS = 1000  # number of last events from which a temporal negative takes its destination
MAX_REDRAWS = 8  # how often an invalid pair is drawn again, at most


class Negatives:
    """Draws one negative pair for every event of a batch, by one of STRATEGIES.

    random: the event's source with any destination that occurs in the data.
    historical: a pair that has an event before the batch, and none in the batch.
    inductive: a historical pair that has no event among the first ``train_stop`` events.
    temporal: the event's source with a destination of one of the last N_RECENT_EVENTS events before the batch; in the
    first batch, with any destination.

    If fewer historical or inductive pairs exist than the batch has events, the rest are random pairs. A random or
    temporal pair that has an event in the batch, or joins a node with itself, is drawn again up to MAX_REDRAWS times;
    after that it is kept.
    """

    def __init__(self, events: Events, train_stop: int) -> None:
        self.events = events
        self.train_stop = train_stop
        self.n = len(events.nodes)
        self.keys = events.src * self.n + events.dst
        self.destinations = np.unique(events.dst)
        unique_keys, first_positions = np.unique(self.keys, return_index=True)
        order = np.argsort(first_positions)
        self.pair_keys = unique_keys[order]  # all pairs with an event, in the order of their first event
        self.first_event_positions = first_positions[order]  # the position of each pair's first event

    def sample(self, strategy: str, start: int, stop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(src, dst), (stop − start,) int64 each: the negative pairs of the batch [start, stop)."""
        destination_pool = self.destinations
        if strategy == "temporal" and start:
            destination_pool = np.unique(self.events.dst[max(0, start - N_RECENT_EVENTS) : start])
        keys = self._sample_destinations(destination_pool, start, stop, rng)
        if strategy in ("historical", "inductive"):
            min_first_event = self.train_stop if strategy == "inductive" else 0
            first_pair, pair_stop = np.searchsorted(self.first_event_positions, [min_first_event, start])
            candidates = self.pair_keys[first_pair:pair_stop]
            candidates = candidates[~np.isin(candidates, self.keys[start:stop])]
            sampled = rng.choice(candidates, min(stop - start, len(candidates)), replace=False)
            keys[: len(sampled)] = sampled
        return keys // self.n, keys % self.n

    def _sample_destinations(
        self, destination_pool: np.ndarray, start: int, stop: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Keys of pairs: the source of each event of the batch with a random destination from ``destination_pool``."""
        src = self.events.src[start:stop]
        dst = rng.choice(destination_pool, stop - start)
        for _ in range(MAX_REDRAWS):
            rejected = np.flatnonzero(np.isin(src * self.n + dst, self.keys[start:stop]) | (src == dst))
            if not len(rejected):
                break
            dst[rejected] = rng.choice(destination_pool, len(rejected))
        return src * self.n + dst


class EdgeBank:
    """Predicts that past pairs repeat: its score is 1.0 for a pair with an event before the batch, otherwise 0.0.

    If ``window_us`` is given, only the events of that many microseconds before the batch's first event count.
    """

    def __init__(self, events: Events, window_us: int | None = None) -> None:
        self.t = events.t
        self.window_us = window_us
        self.n = len(events.nodes)
        self.e = len(events)
        # one integer key · e + position per event, sorted: by pair, then by position
        self.pair_event_keys = np.sort((events.src * self.n + events.dst) * self.e + np.arange(self.e))

    def score(self, src: np.ndarray, dst: np.ndarray, start: int) -> np.ndarray:
        """Scores float64 of the pairs (src, dst), in their shape, from the events before position ``start``."""
        key = src * self.n + dst
        last_index = np.searchsorted(self.pair_event_keys, key * self.e + start) - 1
        last_key = self.pair_event_keys[np.maximum(last_index, 0)]
        is_repeated = (last_index >= 0) & (last_key // self.e == key)
        if self.window_us is not None:
            is_repeated &= self.t[last_key % self.e] >= self.t[start] - self.window_us
        return is_repeated.astype(np.float64)
