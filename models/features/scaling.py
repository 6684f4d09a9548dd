"""Feature scaling, fitted on the training rows of one fold and on nothing else.

Glossary: t bars, n assets, f features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.features.indicators import FeatureError

CLIP = 5.0
NORMAL_IQR = 1.3489795003921634  # interquartile range of a standard normal: makes it a robust standard deviation


@dataclass(frozen=True)
class Scaler:
    """Centre and scale of each feature over all assets: median and robust deviation, which outliers do not move."""

    columns: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, values: np.ndarray, mask: np.ndarray, columns: Sequence[str]) -> Scaler:
        """A scaler of the training rows ``values`` (t, n, f) where ``mask`` (t, n); NaN values are left out.

        A feature whose middle half is one value is scaled by its standard deviation, a constant one by 1; one that is
        never known has centre 0 and scale 1.
        """
        if values.shape != (*mask.shape, len(columns)):
            raise FeatureError(f"values {values.shape} do not fit mask {mask.shape} and {len(columns)} columns")
        if not mask.any():
            raise FeatureError("no training row to fit a scaler on: every row is masked")
        fitted = [_centre_and_scale(values[:, :, k][mask]) for k in range(len(columns))]
        return cls(tuple(columns), tuple(c for c, _ in fitted), tuple(s for _, s in fitted))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """``values`` (…, f) scaled and clipped to ±5, float32; 0, the centre, where they are NaN."""
        if values.shape[-1] != len(self.columns):
            raise FeatureError(f"values have {values.shape[-1]} features, the scaler knows {len(self.columns)}")
        scaled = values - np.array(self.centre)
        scaled /= np.array(self.scale)
        np.clip(scaled, -CLIP, CLIP, out=scaled)
        return np.nan_to_num(scaled, copy=False, nan=0.0).astype(np.float32)

    def to_dict(self) -> dict[str, list]:
        """The scaler as JSON can hold it, exactly."""
        return {"columns": list(self.columns), "centre": list(self.centre), "scale": list(self.scale)}

    @classmethod
    def from_dict(cls, fitted: Mapping[str, Sequence]) -> Scaler:
        """The scaler that ``to_dict`` described."""
        return cls(tuple(fitted["columns"]), tuple(fitted["centre"]), tuple(fitted["scale"]))


def _centre_and_scale(values: np.ndarray) -> tuple[float, float]:
    """Median and robust deviation of ``values`` (k,) without NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 1.0
    low, median, high = np.percentile(known, (25, 50, 75))
    # below the rounding of its own level a spread is no spread
    floor = 1e-12 * max(abs(median), 1e-3)
    for scale in ((high - low) / NORMAL_IQR, known.std()):
        if scale > floor:
            return float(median), float(scale)
    return float(median), 1.0
