"""Ranking metrics of scores for binary outcomes.

Glossary: e scored cases. ``is_positive`` (e,) bool is the outcome of each case. ``score`` (e,) is its score, higher for
cases that are more likely to be positive. Cases with the same score count as one threshold.
"""

from __future__ import annotations

import numpy as np


def average_precision(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Σ (increase of recall) · precision over the thresholds, highest first; NaN without a positive."""
    true_positives, selected = _cumulative_counts(is_positive, score)
    if not len(true_positives) or not true_positives[-1]:
        return float("nan")
    return float((np.diff(true_positives, prepend=0) * true_positives / selected).sum() / true_positives[-1])


def roc_auc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive has a higher score than a negative, where a tie counts half.

    NaN without a positive or without a negative.
    """
    true_positives, selected = _cumulative_counts(is_positive, score)
    if not len(true_positives) or true_positives[-1] in (0, selected[-1]):
        return float("nan")
    false_positives = selected - true_positives
    positives_above = true_positives - np.diff(true_positives, prepend=0) / 2
    return float(
        (np.diff(false_positives, prepend=0) * positives_above).sum() / true_positives[-1] / false_positives[-1]
    )


def _cumulative_counts(is_positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of positives, and of all cases, with a score at or above each distinct score; highest score first."""
    order = np.argsort(-score, kind="stable")
    is_last_of_tie = np.append(np.diff(score[order]) != 0, True)[: len(order)]
    return np.cumsum(is_positive[order].astype(np.int64))[is_last_of_tie], np.flatnonzero(is_last_of_tie) + 1
