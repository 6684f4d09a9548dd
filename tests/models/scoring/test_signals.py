"""Labels, sides and stops of hand-written probabilities (HYB-17, HYB-26, S4-27)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.signals import LABELS_3, LABELS_5, stop_price, views

CASES = [
    # strong sell, sell, hold, buy, strong buy -> three classes, five classes, confidence
    ((0.10, 0.10, 0.20, 0.20, 0.40), "BUY", "STRONG_BUY", 0.60),
    ((0.00, 0.30, 0.31, 0.20, 0.19), "BUY", "BUY", 0.39),
    ((0.30, 0.15, 0.35, 0.10, 0.10), "SELL", "STRONG_SELL", 0.45),
    ((0.10, 0.35, 0.30, 0.15, 0.10), "SELL", "SELL", 0.45),
    ((0.10, 0.20, 0.40, 0.20, 0.10), "HOLD", "HOLD", 0.40),
]


@pytest.mark.parametrize(("probabilities", "label_3", "label_5", "confidence"), CASES)
def test_views_by_hand(probabilities, label_3, label_5, confidence):
    """MAM-15, MAM-24, HYB-17: buy, hold or sell, and the probability of it."""
    view = views(np.array(probabilities))
    assert LABELS_3[int(view.label_3)] == label_3
    assert LABELS_5[int(view.label_5)] == label_5
    assert view.confidence == pytest.approx(confidence)


def test_equal_probabilities_of_buy_and_sell_are_hold():
    view = views(np.array([0.2, 0.2, 0.2, 0.2, 0.2]))
    assert view.side == 0
    assert view.confidence == pytest.approx(0.2)


def test_a_row_with_a_nan_has_side_zero_and_confidence_nan():
    view = views(np.array([[0.1, 0.1, 0.2, 0.3, np.nan], [0.0, 0.0, 0.0, 0.0, 1.0]]))
    assert view.side.tolist() == [0, 1]
    assert np.isnan(view.confidence[0])


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda p: sum(p) > 0.1))
def test_both_labels_always_agree(weights):
    probabilities = np.array(weights) / sum(weights)
    view = views(probabilities)
    assert LABELS_5[int(view.label_5)].endswith(LABELS_3[int(view.label_3)])
    assert 0 <= view.confidence <= 1 + 1e-12


def test_mirrored_probabilities_give_the_opposite_side():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(5), 200)
    view = views(probabilities)
    mirrored = views(probabilities[:, ::-1])
    assert (view.side == -mirrored.side).all()
    np.testing.assert_allclose(view.confidence, mirrored.confidence)


def test_stops_are_two_average_true_ranges_against_the_position():
    stops = stop_price(np.array([1, -1, 0]), np.array([100.0, 100.0, 100.0]), np.array([1.5, 1.5, 1.5]))
    assert stops[:2].tolist() == [97.0, 103.0]
    assert np.isnan(stops[2])
