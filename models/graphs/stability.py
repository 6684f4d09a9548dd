"""How fast a graph changes from one snapshot to the next, and the mean correlation of its assets.

Glossary: s snapshots, w bars of a window, n assets, u entries of the adjacency matrix in which at least one of the
snapshots has an edge. The trailing snapshots of a snapshot are the snapshots of
the same graph just before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.graphs.measures import MIN_OBSERVED_SHARE, ZERO_TOLERANCE, round_correlations, standardise
from models.graphs.snapshot import Snapshot

MAX_TRAILING = 10  # number of trailing snapshots that drift compares with, at most
MIN_TRAILING = 2  # number of trailing snapshots that drift needs: a single snapshot has no spread


@dataclass(frozen=True)
class Stability:
    """Turnover and drift of one snapshot.

    ``turnover`` compares the edges with those of the previous snapshot: the number of edges in exactly one of the two,
    divided by the number of edges in at least one of the two. It is 0 if neither has edges, and None without a previous
    snapshot. ``drift`` compares the adjacency matrix with the mean of the trailing adjacency matrices: its Frobenius
    distance to that mean, divided by the root mean square distance of the trailing matrices to that mean. It is None
    for fewer than MIN_TRAILING trailing snapshots, and while the trailing snapshots are all equal.
    """

    turnover: float | None
    drift: float | None


def stability(snapshot: Snapshot, trailing: Sequence[Snapshot]) -> Stability:
    """Stability of ``snapshot`` compared with the last MAX_TRAILING of the ``trailing`` snapshots, oldest first.

    All snapshots must have the same nodes.
    """
    trailing = trailing[-MAX_TRAILING:]
    if not trailing:
        return Stability(None, None)
    weights = _align_weights([*trailing, snapshot])
    was_edge = weights[-2] != 0
    is_edge = weights[-1] != 0
    n_either = (was_edge | is_edge).sum()
    turnover = float((was_edge ^ is_edge).sum() / n_either) if n_either else 0.0
    if len(trailing) < MIN_TRAILING:
        return Stability(turnover, None)
    mean = weights[:-1].mean(axis=0)
    spread = np.sqrt(((weights[:-1] - mean) ** 2).sum(axis=1).mean())
    drift = float(np.sqrt(((weights[-1] - mean) ** 2).sum()) / spread) if spread > ZERO_TOLERANCE else None
    return Stability(turnover, drift)


def mean_correlation(returns: np.ndarray) -> float | None:
    """Mean correlation of all pairs of assets over a window of returns (w, n), NaN where unknown; None without a pair.

    It is computed from the variance of the sum of the standardised returns z. It is exact if no asset lacks a bar; a
    missing bar counts as the asset's mean. An asset is left out if it lacks more than 20% of the window or does not
    move.
    """
    z, is_observed = standardise(returns)
    z = z[:, is_observed.sum(axis=0) >= MIN_OBSERVED_SHARE * len(returns)]
    n = z.shape[1]
    if n < 2:
        return None
    own_squares = (z**2).sum()  # what each asset contributes with itself
    return float(round_correlations(((z.sum(axis=1) ** 2).sum() - own_squares) / len(z) / (n * (n - 1))))


def _align_weights(snapshots: Sequence[Snapshot]) -> np.ndarray:
    """Weight (s, u) of each snapshot in each of the u entries of the adjacency matrix; 0 where it has no edge."""
    entries = [s.src * len(s.nodes) + s.dst for s in snapshots]
    all_entries, column = np.unique(np.concatenate(entries), return_inverse=True)
    row = np.repeat(np.arange(len(snapshots)), [len(e) for e in entries])
    weights = np.zeros((len(snapshots), len(all_entries)))
    weights[row, column] = np.concatenate([s.weight for s in snapshots])
    return weights
