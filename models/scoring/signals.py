"""Trading signals from class probabilities: class, direction, confidence and stop-loss price of each asset.

The stop-loss price implements HYB-26 (ids: .github/sources.md).

The five classes are, in the order of the last axis: STRONG_SELL, SELL, HOLD, BUY, STRONG_BUY. The three classes are
SELL, HOLD and BUY: the probability of a strong class is added to that of the plain class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLASS_NAMES_5 = ("STRONG_SELL", "SELL", "HOLD", "BUY", "STRONG_BUY")
CLASS_NAMES_3 = ("SELL", "HOLD", "BUY")
DIRECTION_NAMES = ("SHORT", "FLAT", "LONG")  # of directions −1, 0, 1
STOP_ATR_MULTIPLE = 2.0

STRONG_SELL, SELL, HOLD, BUY, STRONG_BUY = range(len(CLASS_NAMES_5))


@dataclass(frozen=True, eq=False)
class Signals:
    """One signal per asset (and bar). Each array has the shape of the probabilities without their last axis.

    ``direction`` int64: −1 short, 0 flat, 1 long; 0 for HOLD and without a prediction. ``confidence`` float64: the
    probability of the predicted class of the three, NaN without a prediction. ``class_5`` int64: the index of the
    predicted class in ``CLASS_NAMES_5``, HOLD without a prediction.
    """

    direction: np.ndarray
    confidence: np.ndarray
    class_5: np.ndarray

    @property
    def class_3(self) -> np.ndarray:
        """The index of the predicted class in ``CLASS_NAMES_3``; HOLD without a prediction."""
        return self.direction + 1


def signals_from_probabilities(probabilities: np.ndarray) -> Signals:
    """The signals of five-class probabilities (..., 5). An asset with a NaN among its five has no prediction.

    The predicted class of the three is BUY or SELL only if it is strictly the most probable one, otherwise HOLD. The
    predicted class of the five is the plain or the strong class of the same name, and the strong class only if it is
    strictly more probable than the plain class.
    """
    sell = probabilities[..., STRONG_SELL] + probabilities[..., SELL]
    hold = probabilities[..., HOLD]
    buy = probabilities[..., BUY] + probabilities[..., STRONG_BUY]
    direction = np.where(buy > np.maximum(sell, hold), 1, np.where(sell > np.maximum(buy, hold), -1, 0))
    confidence = np.where(direction > 0, buy, np.where(direction < 0, sell, hold))
    buy_class = np.where(probabilities[..., STRONG_BUY] > probabilities[..., BUY], STRONG_BUY, BUY)
    sell_class = np.where(probabilities[..., STRONG_SELL] > probabilities[..., SELL], STRONG_SELL, SELL)
    class_5 = np.where(direction > 0, buy_class, np.where(direction < 0, sell_class, HOLD))
    has_prediction = ~np.isnan(probabilities).any(axis=-1)
    return Signals(
        direction=np.where(has_prediction, direction, 0),
        confidence=np.where(has_prediction, confidence, np.nan),
        class_5=np.where(has_prediction, class_5, HOLD),
    )


def stop_price(direction: np.ndarray, close: np.ndarray, atr: np.ndarray) -> np.ndarray:
    """Stop-loss price of each position, 2 average true ranges from the close of the decision's bar (HYB-26).

    ``direction``, ``close``, ``atr`` and the result have one shape. ``close`` and ``atr`` (the average true range at
    that close) have the same price units. A long's stop is close − 2·ATR, a short's is close + 2·ATR. NaN for a flat
    position, and where ``close`` or ``atr`` is NaN.
    """
    return np.where(direction == 0, np.nan, close - direction * STOP_ATR_MULTIPLE * atr)
