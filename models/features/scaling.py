"""Feature scaling, fitted on the training rows of one fold only.

Glossary: t bars, n assets, f features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.features.indicators import FeatureError

CLIP = 5.0
NORMAL_IQR = 1.3489795003921634  # interquartile range of a standard normal: IQR ÷ it is a robust standard deviation


@dataclass(frozen=True)
class Scaler:
    """Centre and scale of each feature over all assets: median and robust deviation, which resist outliers."""

    columns: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, values: np.ndarray, mask: np.ndarray, columns: Sequence[str]) -> Scaler:
        """A scaler fitted on the training rows ``values`` (t, n, f) where ``mask`` (t, n) is True; NaN is ignored.

        A feature whose interquartile range is 0 is scaled by its standard deviation, and a constant one by 1; a feature
        that is always NaN has centre 0 and scale 1. Raises FeatureError for shapes that differ or an empty mask.
        """
        if values.shape != (*mask.shape, len(columns)):
            raise FeatureError(f"values {values.shape} do not fit mask {mask.shape} and {len(columns)} columns")
        if not mask.any():
            raise FeatureError("no training row to fit a scaler on: every row is masked")
        fitted = [_centre_and_scale(values[:, :, k][mask]) for k in range(len(columns))]
        return cls(tuple(columns), tuple(c for c, _ in fitted), tuple(s for _, s in fitted))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """``values`` (…, f) scaled and clipped to ±CLIP, float32; NaN becomes 0, the centre."""
        if values.shape[-1] != len(self.columns):
            raise FeatureError(f"values have {values.shape[-1]} features, the scaler knows {len(self.columns)}")
        scaled = values - np.array(self.centre)
        scaled /= np.array(self.scale)
        np.clip(scaled, -CLIP, CLIP, out=scaled)
        return np.nan_to_num(scaled, copy=False, nan=0.0).astype(np.float32)

    def to_dict(self) -> dict[str, list]:
        """The scaler as JSON values, without loss of precision."""
        return {"columns": list(self.columns), "centre": list(self.centre), "scale": list(self.scale)}

    @classmethod
    def from_dict(cls, fitted: Mapping[str, Sequence]) -> Scaler:
        """The scaler from the result of ``to_dict``."""
        return cls(tuple(fitted["columns"]), tuple(fitted["centre"]), tuple(fitted["scale"]))


def _centre_and_scale(values: np.ndarray) -> tuple[float, float]:
    """Median and robust deviation of ``values`` (k,), ignoring NaN."""
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return 0.0, 1.0
    low, median, high = np.percentile(numbers, (25, 50, 75))
    # a spread below the rounding error of the median is rounding error itself
    floor = 1e-12 * max(abs(median), 1e-3)
    for scale in ((high - low) / NORMAL_IQR, numbers.std()):
        if scale > floor:
            return float(median), float(scale)
    return float(median), 1.0
