"""Events that did not happen, to tell from those that did, and the baseline that only remembers.

Paper: Poursafaei et al. 2022, 2207.10128, sections 4 and 5 (negative sampling strategies, EdgeBank).
Glossary: e events · n nodes · key u · n + v of a pair.
"""

from __future__ import annotations

import numpy as np

from models.graphs.events import Events

STRATEGIES = ("random", "historical", "temporal", "inductive")
RECENT = 1000  # events that a temporal negative's destination is taken from


class Negatives:
    """Pairs for every batch of events, each strategy by its own rule, none of them happening in the batch itself.

    random: the same source, any destination there is. historical: a pair that met before the batch. inductive: one that
    met before the batch, but never in the first ``train_stop`` events. temporal: the same source, and a destination of
    one of the last RECENT events, so somebody who is about. Where too few pairs qualify, random ones take their place.
    """

    def __init__(self, events: Events, train_stop: int) -> None:
        self.events, self.train_stop, self.n = events, train_stop, len(events.nodes)
        self.keys = events.src * self.n + events.dst
        self.destinations = np.unique(events.dst)
        unique, first = np.unique(self.keys, return_index=True)
        order = np.argsort(first)
        self.met, self.first = unique[order], first[order]

    def sample(self, strategy: str, start: int, stop: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sources and destinations, one pair for each of the events [start, stop)."""
        size, pool = stop - start, self.destinations
        if strategy == "temporal" and start:
            pool = np.unique(self.events.dst[max(0, start - RECENT) : start])
        pairs = self._apart(pool, start, stop, draw)
        if strategy in ("historical", "inductive"):
            first = np.searchsorted(self.first, self.train_stop if strategy == "inductive" else 0)
            known = self.met[first : np.searchsorted(self.first, start)]
            known = known[~np.isin(known, self.keys[start:stop])]
            chosen = draw.choice(known, min(size, len(known)), replace=False)
            pairs[: len(chosen)] = chosen
        return pairs // self.n, pairs % self.n

    def _apart(self, pool: np.ndarray, start: int, stop: int, draw: np.random.Generator) -> np.ndarray:
        """Keys of each source with somebody of ``pool``; who meets in the batch, or oneself, is drawn again, a few
        times at most."""
        src, dst = self.events.src[start:stop], draw.choice(pool, stop - start)
        for _ in range(8):
            wrong = np.flatnonzero(np.isin(src * self.n + dst, self.keys[start:stop]) | (src == dst))
            if not len(wrong):
                break
            dst[wrong] = draw.choice(pool, len(wrong))
        return src * self.n + dst


class EdgeBank:
    """Who met, meets again: 1.0 for pairs among the events before a batch, 0.0 for others.

    ``window_us``: only those that met within so many microseconds before the batch count; None: all.
    """

    def __init__(self, events: Events, window_us: int | None = None) -> None:
        self.t, self.window, n = events.t, window_us, len(events.nodes)
        self.n, self.e = n, len(events)
        self.seen = np.sort((events.src * n + events.dst) * self.e + np.arange(self.e))

    def score(self, src: np.ndarray, dst: np.ndarray, start: int) -> np.ndarray:
        """Scores of the pairs by the events before position ``start``."""
        key = src * self.n + dst
        before = np.searchsorted(self.seen, key * self.e + start) - 1
        last = self.seen[np.maximum(before, 0)]
        known = (before >= 0) & (last // self.e == key)
        if self.window is not None:
            known &= self.t[last % self.e] >= self.t[start] - self.window
        return known.astype(np.float64)
