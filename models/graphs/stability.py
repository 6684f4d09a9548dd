"""How a graph holds together and how fast it changes, from it and its trailing snapshots alone.

Glossary: s snapshots, e edges, u places of the adjacency where any of them has an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.measures import FLAT, MIN_OBSERVED, rounded, standardise
from models.graphs.snapshot import Snapshot

TRAIL = 10  # snapshots that drift looks back on
LEAST_TRAIL = 2  # a single one has no deviation


@dataclass(frozen=True)
class Stability:
    """Of one snapshot; None where there is nothing to compare with.

    ``turnover``: edges that came or went since the snapshot before, over those that either has; 0 if neither has any.
    ``drift``: Frobenius distance of its adjacency to the mean of the trailing ones, over their own root mean square
    distance to it; None while they are all the same.
    """

    turnover: float | None
    drift: float | None


def stability(snapshot: Snapshot, trailing: Sequence[Snapshot]) -> Stability:
    """Of ``snapshot`` against the last ones before it, oldest first; TRAIL of them are read at most."""
    trailing = trailing[-TRAIL:]
    if not trailing:
        return Stability(None, None)
    weights = _aligned([*trailing, snapshot])
    before, now = weights[-2] != 0, weights[-1] != 0
    either = (before | now).sum()
    turnover = float((before ^ now).sum() / either) if either else 0.0
    if len(trailing) < LEAST_TRAIL:
        return Stability(turnover, None)
    mean = weights[:-1].mean(axis=0)
    spread = np.sqrt(((weights[:-1] - mean) ** 2).sum(axis=1).mean())
    drift = float(np.sqrt(((weights[-1] - mean) ** 2).sum()) / spread) if spread > FLAT else None
    return Stability(turnover, drift)


def mean_correlation(returns: np.ndarray) -> float | None:
    """Mean correlation of all pairs of assets over a window of returns (w, n), edge or not; None without a pair.

    From the variance of the sum of z: exact where no asset lacks a bar; one that does counts with its mean there.
    Assets without 80% of the window, or that do not move, take no part.
    """
    z, seen = standardise(returns)
    z = z[:, seen.sum(axis=0) >= MIN_OBSERVED * len(returns)]
    n = z.shape[1]
    if n < 2:
        return None
    own = (z**2).sum()
    return float(rounded(((z.sum(axis=1) ** 2).sum() - own) / len(z) / (n * (n - 1))))


def _aligned(snapshots: Sequence[Snapshot]) -> np.ndarray:
    """Weights (s, u) of every place where one of them has an edge."""
    places = [s.src * len(s.nodes) + s.dst for s in snapshots]
    every, column = np.unique(np.concatenate(places), return_inverse=True)
    row = np.repeat(np.arange(len(snapshots)), [len(p) for p in places])
    weights = np.zeros((len(snapshots), len(every)))
    weights[row, column] = np.concatenate([s.weight for s in snapshots])
    return weights
