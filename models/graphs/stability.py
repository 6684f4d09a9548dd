"""How fast a graph changes, from a snapshot and the trailing snapshots before it; and the mean correlation of assets.

Glossary: s snapshots, e edges, u entries of the adjacency in which at least one of the snapshots has an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.measures import FLAT, MIN_OBSERVED, rounded, standardise
from models.graphs.snapshot import Snapshot

TRAIL = 10  # how many trailing snapshots drift compares with
LEAST_TRAIL = 2  # a single snapshot has no deviation


@dataclass(frozen=True)
class Stability:
    """Turnover and drift of one snapshot; None where there is nothing to compare with.

    ``turnover``: edges that are in either this snapshot or the one before but not in both, divided by those that are in
    at least one; 0 if neither has edges. ``drift``: Frobenius distance of its adjacency to the mean of the trailing
    ones, divided by the root mean square distance of the trailing ones to that mean; None while they are all equal.
    """

    turnover: float | None
    drift: float | None


def stability(snapshot: Snapshot, trailing: Sequence[Snapshot]) -> Stability:
    """Stability of ``snapshot`` against the ``trailing`` ones before it, oldest first; only the last TRAIL are read."""
    trailing = trailing[-TRAIL:]
    if not trailing:
        return Stability(None, None)
    weights = _aligned([*trailing, snapshot])
    was_edge = weights[-2] != 0
    is_edge = weights[-1] != 0
    union = (was_edge | is_edge).sum()
    turnover = float((was_edge ^ is_edge).sum() / union) if union else 0.0
    if len(trailing) < LEAST_TRAIL:
        return Stability(turnover, None)
    mean = weights[:-1].mean(axis=0)
    spread = np.sqrt(((weights[:-1] - mean) ** 2).sum(axis=1).mean())
    drift = float(np.sqrt(((weights[-1] - mean) ** 2).sum()) / spread) if spread > FLAT else None
    return Stability(turnover, drift)


def mean_correlation(returns: np.ndarray) -> float | None:
    """Mean correlation of all pairs of assets over a window of returns (w, n), edge or not; None without a pair.

    Computed from the variance of the sum of z. Exact if no asset lacks a bar; a missing bar counts as the asset's mean.
    Assets without 80% of the window, or that do not move, are left out.
    """
    z, is_observed = standardise(returns)
    z = z[:, is_observed.sum(axis=0) >= MIN_OBSERVED * len(returns)]
    n = z.shape[1]
    if n < 2:
        return None
    diagonal = (z**2).sum()
    return float(rounded(((z.sum(axis=1) ** 2).sum() - diagonal) / len(z) / (n * (n - 1))))


def _aligned(snapshots: Sequence[Snapshot]) -> np.ndarray:
    """Weights (s, u) of all snapshots in every entry of the adjacency in which one of them has an edge."""
    entries = [s.src * len(s.nodes) + s.dst for s in snapshots]
    all_entries, column = np.unique(np.concatenate(entries), return_inverse=True)
    row = np.repeat(np.arange(len(snapshots)), [len(e) for e in entries])
    weights = np.zeros((len(snapshots), len(all_entries)))
    weights[row, column] = np.concatenate([s.weight for s in snapshots])
    return weights
