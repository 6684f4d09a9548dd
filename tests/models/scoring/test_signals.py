"""Classes, directions and stop-loss prices of given probabilities (HYB-17, HYB-26, S4-27; ids: .github/sources.md).

Each row of probabilities has the five classes strong sell, sell, hold, buy, strong buy. The probability of a class of
three is the sum of its weak and strong class.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.signals import (
    CLASS_NAMES_3,
    CLASS_NAMES_5,
    DIRECTION_NAMES,
    signals_from_probabilities,
    stop_price,
)

CASES = [
    # probabilities, class of three, class of five, confidence
    ((0.10, 0.10, 0.20, 0.20, 0.40), "BUY", "STRONG_BUY", 0.60),
    ((0.00, 0.30, 0.31, 0.20, 0.19), "BUY", "BUY", 0.39),
    ((0.30, 0.15, 0.35, 0.10, 0.10), "SELL", "STRONG_SELL", 0.45),
    ((0.10, 0.35, 0.30, 0.15, 0.10), "SELL", "SELL", 0.45),
    ((0.10, 0.20, 0.40, 0.20, 0.10), "HOLD", "HOLD", 0.40),
]


@pytest.mark.parametrize(("probabilities", "class_3", "class_5", "confidence"), CASES)
def test_the_most_probable_of_three_classes_gives_the_class_of_five_and_the_confidence(
    probabilities: tuple[float, ...], class_3: str, class_5: str, confidence: float
) -> None:
    """MAM-15, MAM-24, HYB-17: the confidence is the probability of the class of three."""
    signal = signals_from_probabilities(np.array(probabilities))
    assert CLASS_NAMES_3[int(signal.class_3)] == class_3
    assert CLASS_NAMES_5[int(signal.class_5)] == class_5
    assert signal.confidence == pytest.approx(confidence)


@pytest.mark.parametrize(
    ("probabilities", "confidence"),
    [((0.2, 0.2, 0.2, 0.2, 0.2), 0.2), ((0.2, 0.2, 0.2, 0.3, 0.1), 0.2), ((0.1, 0.1, 0.4, 0.3, 0.1), 0.4)],
    ids=["buy_ties_with_sell_and_five_are_equal", "buy_ties_with_sell", "buy_ties_with_hold"],
)
def test_a_tie_of_the_most_probable_of_the_three_classes_is_hold(
    probabilities: tuple[float, ...], confidence: float
) -> None:
    signal = signals_from_probabilities(np.array(probabilities))
    assert CLASS_NAMES_5[int(signal.class_5)] == "HOLD"
    assert signal.direction == 0
    assert signal.confidence == pytest.approx(confidence)


def test_probabilities_with_a_nan_are_hold_with_an_unknown_confidence() -> None:
    signals = signals_from_probabilities(np.array([[0.1, 0.1, 0.2, 0.3, np.nan], [0.0, 0.0, 0.0, 0.0, 1.0]]))
    assert signals.direction.tolist() == [0, 1]
    assert [CLASS_NAMES_5[k] for k in signals.class_5] == ["HOLD", "STRONG_BUY"]
    assert np.isnan(signals.confidence).tolist() == [True, False]


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda p: sum(p) > 0.1))
def test_the_class_of_five_belongs_to_the_class_of_three(positive_numbers: list[float]) -> None:
    signal = signals_from_probabilities(np.array(positive_numbers) / sum(positive_numbers))
    assert CLASS_NAMES_5[int(signal.class_5)].endswith(CLASS_NAMES_3[int(signal.class_3)])
    assert 0 <= signal.confidence <= 1 + 1e-12  # a sum of two probabilities exceeds 1 by rounding


def test_mirrored_probabilities_give_the_opposite_direction() -> None:
    probabilities = np.random.default_rng(1).dirichlet(np.ones(5), 200)
    signals = signals_from_probabilities(probabilities)
    mirrored = signals_from_probabilities(probabilities[:, ::-1])
    assert (signals.direction == -mirrored.direction).all()
    np.testing.assert_allclose(signals.confidence, mirrored.confidence)


def test_a_stop_is_two_average_true_ranges_below_a_long_and_above_a_short() -> None:
    long, flat, short = (DIRECTION_NAMES.index(name) - 1 for name in ("LONG", "FLAT", "SHORT"))
    stops = stop_price(np.array([long, short, flat]), close=np.full(3, 100.0), atr=np.full(3, 1.5))
    np.testing.assert_array_equal(stops, [97.0, 103.0, np.nan])
