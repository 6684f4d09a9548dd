"""Negative samples for link prediction: pairs without an event, to tell from those with one; and the EdgeBank baseline.

Paper: Poursafaei et al. 2022, 2207.10128, sections 4 and 5 (negative sampling strategies, EdgeBank).
Glossary: e events · n nodes · key u · n + v of a pair.
"""

from __future__ import annotations

import numpy as np

from models.graphs.events import Events

STRATEGIES = ("random", "historical", "temporal", "inductive")
RECENT = 1000  # number of last events whose destinations a temporal negative is drawn from


class Negatives:
    """Draws a negative pair for every event of a batch. A negative pair has no event in that batch.

    random: the event's source, any destination of the data. historical: a pair with an event before the batch.
    inductive: a pair with an event before the batch, but none in the first ``train_stop`` events. temporal: the event's
    source, and a destination of one of the last RECENT events, so one that is active. Where too few pairs qualify,
    random ones take their place.
    """

    def __init__(self, events: Events, train_stop: int) -> None:
        self.events = events
        self.train_stop = train_stop
        self.n = len(events.nodes)
        self.keys = events.src * self.n + events.dst
        self.destinations = np.unique(events.dst)
        unique, first = np.unique(self.keys, return_index=True)
        order = np.argsort(first)
        self.past_keys = unique[order]  # every pair with an event, in the order of its first event
        self.first_events = first[order]  # the position of that event

    def sample(self, strategy: str, start: int, stop: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sources and destinations, one negative pair for each of the events [start, stop)."""
        size = stop - start
        pool = self.destinations
        if strategy == "temporal" and start:
            pool = np.unique(self.events.dst[max(0, start - RECENT) : start])
        pairs = self._same_source(pool, start, stop, draw)
        if strategy in ("historical", "inductive"):
            first = np.searchsorted(self.first_events, self.train_stop if strategy == "inductive" else 0)
            candidates = self.past_keys[first : np.searchsorted(self.first_events, start)]
            candidates = candidates[~np.isin(candidates, self.keys[start:stop])]
            sampled = draw.choice(candidates, min(size, len(candidates)), replace=False)
            pairs[: len(sampled)] = sampled
        return pairs // self.n, pairs % self.n

    def _same_source(self, pool: np.ndarray, start: int, stop: int, draw: np.random.Generator) -> np.ndarray:
        """Keys of each event's source with a destination of ``pool``. A pair with an event in the batch, or of a node
        with itself, is drawn again, at most eight times."""
        src = self.events.src[start:stop]
        dst = draw.choice(pool, stop - start)
        for _ in range(8):
            rejected = np.flatnonzero(np.isin(src * self.n + dst, self.keys[start:stop]) | (src == dst))
            if not len(rejected):
                break
            dst[rejected] = draw.choice(pool, len(rejected))
        return src * self.n + dst


class EdgeBank:
    """Predicts that past pairs repeat: 1.0 for a pair with an event before the batch, 0.0 for any other.

    ``window_us``: only events of that many microseconds before the batch count; None: all events before it.
    """

    def __init__(self, events: Events, window_us: int | None = None) -> None:
        self.t = events.t
        self.window_us = window_us
        self.n = len(events.nodes)
        self.e = len(events)
        # sorted by pair, then by position
        self.pair_events = np.sort((events.src * self.n + events.dst) * self.e + np.arange(self.e))

    def score(self, src: np.ndarray, dst: np.ndarray, start: int) -> np.ndarray:
        """Scores of the pairs by the events before position ``start``."""
        key = src * self.n + dst
        before = np.searchsorted(self.pair_events, key * self.e + start) - 1
        last = self.pair_events[np.maximum(before, 0)]
        is_repeated = (before >= 0) & (last // self.e == key)
        if self.window_us is not None:
            is_repeated &= self.t[last % self.e] >= self.t[start] - self.window_us
        return is_repeated.astype(np.float64)
