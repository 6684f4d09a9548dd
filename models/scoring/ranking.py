"""How well scores put what happened ahead of what did not. Pure functions, arrays in, float out.

Glossary: e scores, ties count as one threshold.
"""

from __future__ import annotations

import numpy as np


def average_precision(happened: np.ndarray, score: np.ndarray) -> float:
    """Σ (recall gained) · precision from the highest score down, (e,) bool and (e,); NaN when nothing happened."""
    hits, taken = _cumulated(happened, score)
    if not len(hits) or not hits[-1]:
        return float("nan")
    return float((np.diff(hits, prepend=0) * hits / taken).sum() / hits[-1])


def roc_auc(happened: np.ndarray, score: np.ndarray) -> float:
    """Chance that what happened scores above what did not, ties half; NaN when there is only one of the two."""
    hits, taken = _cumulated(happened, score)
    if not len(hits) or hits[-1] in (0, taken[-1]):
        return float("nan")
    missed = taken - hits
    return float((np.diff(missed, prepend=0) * (hits - np.diff(hits, prepend=0) / 2)).sum() / hits[-1] / missed[-1])


def _cumulated(happened: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many hits and how many in all at or above every distinct score, highest first."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)[: len(order)]
    return np.cumsum(happened[order].astype(np.int64))[last], np.flatnonzero(last) + 1
