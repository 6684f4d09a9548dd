"""Feature scaling, fitted on the training rows of one fold only.

Glossary: t bars, n assets, f features. A row is one bar of one asset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.features.indicators import FeatureError

MAX_ABS_SCALED = 5.0  # robust standard deviations
NORMAL_IQR = 1.3489795003921634  # interquartile range of the standard normal distribution


@dataclass(frozen=True)
class Scaler:
    """Centre and scale of each feature over all assets: the median and a robust standard deviation.

    The robust standard deviation is the interquartile range ÷ NORMAL_IQR. Outliers hardly change the two.
    """

    columns: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, values: np.ndarray, mask: np.ndarray, columns: Sequence[str]) -> Scaler:
        """A scaler fitted on ``values`` (t, n, f) of training bars.

        Rows whose ``mask`` (t, n) is False are ignored, and so are NaN values. A feature whose interquartile range is 0
        has its standard deviation as its scale; the scale of a constant feature is 1. A feature that is always NaN has
        centre 0 and scale 1. Raises FeatureError for shapes that differ and for a mask without True.
        """
        if values.shape != (*mask.shape, len(columns)):
            raise FeatureError(f"values {values.shape} do not fit mask {mask.shape} and {len(columns)} columns")
        if not mask.any():
            raise FeatureError("no training row to fit a scaler on: every row is masked")
        pairs = [_centre_and_scale(values[:, :, k][mask]) for k in range(len(columns))]
        return cls(
            columns=tuple(columns),
            centre=tuple(centre for centre, _ in pairs),
            scale=tuple(scale for _, scale in pairs),
        )

    def transform(self, values: np.ndarray) -> np.ndarray:
        """(values − centre) ÷ scale, clipped to ±MAX_ABS_SCALED; ``values`` (…, f) → (…, f) float32.

        NaN becomes 0, which is the centre. Raises FeatureError for another number of features.
        """
        if values.shape[-1] != len(self.columns):
            raise FeatureError(f"values have {values.shape[-1]} features, the scaler knows {len(self.columns)}")
        scaled = values - np.array(self.centre)
        scaled /= np.array(self.scale)
        np.clip(scaled, -MAX_ABS_SCALED, MAX_ABS_SCALED, out=scaled)
        return np.nan_to_num(scaled, copy=False, nan=0.0).astype(np.float32)

    def to_dict(self) -> dict[str, list]:
        """The scaler as values that JSON stores without loss of precision."""
        return {"columns": list(self.columns), "centre": list(self.centre), "scale": list(self.scale)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Sequence]) -> Scaler:
        """The scaler from the result of ``to_dict``."""
        return cls(tuple(stored["columns"]), tuple(stored["centre"]), tuple(stored["scale"]))


def _centre_and_scale(values: np.ndarray) -> tuple[float, float]:
    """Median and scale of one feature's ``values`` (rows,), ignoring NaN."""
    known_values = values[~np.isnan(values)]
    if not len(known_values):
        return 0.0, 1.0
    lower_quartile, median, upper_quartile = np.percentile(known_values, (25, 50, 75))
    rounding_error = 1e-12 * max(abs(median), 1e-3)
    for scale in ((upper_quartile - lower_quartile) / NORMAL_IQR, known_values.std()):
        if scale > rounding_error:
            return float(median), float(scale)
    return float(median), 1.0
