"""Trading views from class probabilities: labels, side, confidence and stop of each asset.

Classes are ordered STRONG_SELL, SELL, HOLD, BUY, STRONG_BUY. Three-class probabilities add each strong class to its
plain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LABELS_5 = ("STRONG_SELL", "SELL", "HOLD", "BUY", "STRONG_BUY")
LABELS_3 = ("SELL", "HOLD", "BUY")
SIDES = ("SHORT", "FLAT", "LONG")
STOP_ATR_MULTIPLE = 2.0


@dataclass(frozen=True, eq=False)
class Views:
    """One view per asset (and bar); each array has the shape of the probabilities without their last axis.

    ``side`` −1, 0 or 1 (HOLD and no prediction are 0); ``confidence`` the probability of the predicted one of three
    classes, NaN without a prediction; ``label_5`` the position of the five-class label in ``LABELS_5``.
    """

    side: np.ndarray
    confidence: np.ndarray
    label_5: np.ndarray

    @property
    def label_3(self) -> np.ndarray:
        """Position in ``LABELS_3``."""
        return self.side + 1


def views(probabilities: np.ndarray) -> Views:
    """Views of five-class probabilities (..., 5); a row with a NaN is no prediction.

    The predicted class is the most probable of the three, and HOLD where BUY and SELL tie. The five-class label is the
    more probable of the two five-class labels within the predicted class, so both labels always agree.
    """
    sell = probabilities[..., 0] + probabilities[..., 1]
    hold = probabilities[..., 2]
    buy = probabilities[..., 3] + probabilities[..., 4]
    side = np.where(buy > np.maximum(sell, hold), 1, np.where(sell > np.maximum(buy, hold), -1, 0))
    confidence = np.where(side > 0, buy, np.where(side < 0, sell, hold))
    strong_buy = probabilities[..., 4] > probabilities[..., 3]
    strong_sell = probabilities[..., 0] > probabilities[..., 1]
    label_5 = np.where(side > 0, 3 + strong_buy, np.where(side < 0, 1 - strong_sell, 2))
    is_known = ~np.isnan(probabilities).any(axis=-1)
    return Views(np.where(is_known, side, 0), np.where(is_known, confidence, np.nan), np.where(is_known, label_5, 2))


def stop_price(side: np.ndarray, close: np.ndarray, atr: np.ndarray) -> np.ndarray:
    """The stop price of a position: close − 2·ATR for a long, close + 2·ATR for a short; NaN when flat (HYB-26).

    ``close`` and ``atr`` in the same price units; a NaN in either gives NaN.
    """
    return np.where(side == 0, np.nan, close - side * STOP_ATR_MULTIPLE * atr)
