"""Ranking metrics of scores against binary outcomes. Pure functions, arrays in, float out.

Glossary: e scores; tied scores count as one threshold.
"""

from __future__ import annotations

import numpy as np


def average_precision(happened: np.ndarray, score: np.ndarray) -> float:
    """Σ (increase of recall) · precision over the thresholds, highest first; NaN without a positive.

    ``happened`` (e,) bool, ``score`` (e,).
    """
    hits, selected = _cumulative_counts(happened, score)
    if not len(hits) or not hits[-1]:
        return float("nan")
    return float((np.diff(hits, prepend=0) * hits / selected).sum() / hits[-1])


def roc_auc(happened: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive scores above a negative, a tie counting half; NaN without a positive or a negative.

    ``happened`` (e,) bool, ``score`` (e,).
    """
    hits, selected = _cumulative_counts(happened, score)
    if not len(hits) or hits[-1] in (0, selected[-1]):
        return float("nan")
    false_hits = selected - hits
    hits_above = hits - np.diff(hits, prepend=0) / 2
    return float((np.diff(false_hits, prepend=0) * hits_above).sum() / hits[-1] / false_hits[-1])


def _cumulative_counts(happened: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of positives, and of all scores, at or above every distinct score, highest first."""
    order = np.argsort(-score, kind="stable")
    is_last_of_tie = np.append(np.diff(score[order]) != 0, True)[: len(order)]
    return np.cumsum(happened[order].astype(np.int64))[is_last_of_tie], np.flatnonzero(is_last_of_tie) + 1
