"""Average precision and ROC AUC equal numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.scoring.ranking import average_precision, roc_auc


def test_average_precision_sums_precision_times_the_increase_of_recall() -> None:
    # each positive adds a recall of ½; the precision is 1 at the first one and 2/3 at the second
    is_positive = np.array([True, False, True, False])
    assert average_precision(is_positive, np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_tied_scores_are_one_threshold() -> None:
    # each of the two thresholds adds a recall of ½ at a precision of ½
    is_positive = np.array([True, False, True, False])
    score = np.array([1.0, 1.0, 0.0, 0.0])
    assert average_precision(is_positive, score) == pytest.approx(0.5 * 0.5 + 0.5 * 0.5)
    assert average_precision(is_positive[::-1], score[::-1]) == average_precision(is_positive, score)
    assert roc_auc(is_positive, score) == 0.5


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    # of the four pairs of a positive and a negative, only 0.3 and 0.5 are in the wrong order
    is_positive = np.array([True, True, False, False])
    score = np.array([0.9, 0.3, 0.5, 0.1])
    assert roc_auc(is_positive, score) == 0.75
    assert roc_auc(is_positive, -score) == 0.25


def test_scores_without_positives_or_without_negatives_give_nan() -> None:
    no_positives = np.zeros(3, dtype=bool)
    only_positives = np.ones(3, dtype=bool)
    assert np.isnan(average_precision(no_positives, np.arange(3.0)))
    assert np.isnan(roc_auc(only_positives, np.arange(3.0)))
    assert np.isnan(roc_auc(np.empty(0, dtype=bool), np.empty(0)))
