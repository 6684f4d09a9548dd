"""Scaling: fitted on known training rows, exact through JSON, and blind to outliers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.features.indicators import FeatureError
from models.features.scaling import NORMAL_IQR, Scaler


def column(*values: float) -> np.ndarray:
    """One feature of one asset, (t, 1, 1)."""
    return np.array(values, dtype=float)[:, None, None]


def fitted(values: np.ndarray, mask: np.ndarray | None = None) -> Scaler:
    mask = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
    return Scaler.fit(values, mask, [f"f{k}" for k in range(values.shape[2])])


def test_centre_is_the_median_and_scale_the_middle_half() -> None:
    scaler = fitted(column(1, 2, 3, 4, 1000))
    assert scaler.centre == (3.0,)
    np.testing.assert_allclose(scaler.scale, (4 - 2) / NORMAL_IQR)


def test_normal_values_come_out_with_mean_zero_and_deviation_one() -> None:
    values = np.random.default_rng(0).normal(7, 3, (5000, 4, 1))
    scaled = fitted(values).transform(values)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=0.02)


def test_each_feature_has_its_own_scale_over_all_assets() -> None:
    draw = np.random.default_rng(0)
    values = np.stack([draw.normal(0, 1, (300, 3)), draw.normal(50, 10, (300, 3))], axis=-1)
    scaler = fitted(values)
    np.testing.assert_allclose(scaler.centre, [0, 50], atol=2)
    np.testing.assert_allclose(scaler.scale, [1, 10], rtol=0.1)


def test_unknown_values_become_the_centre_and_outliers_stop_at_five() -> None:
    scaler = fitted(column(-1, 0, 1))
    scaled = scaler.transform(column(np.nan, 0, 1e9, -1e9, np.inf))
    np.testing.assert_array_equal(scaled.ravel(), [0, 0, 5, -5, 5])


def test_masked_rows_and_unknown_values_do_not_move_the_fit() -> None:
    """Field note 13."""
    values, mask = column(1, 2, 3, 1e6, np.nan), np.array([[True], [True], [True], [False], [True]])
    assert fitted(values, mask) == fitted(column(1, 2, 3))


def test_a_feature_whose_middle_half_is_one_value_is_scaled_by_its_deviation() -> None:
    values = column(*[0.0001] * 9, 0.0011)
    np.testing.assert_allclose(fitted(values).scale, values.std())


def test_a_constant_or_never_known_feature_stays_finite() -> None:
    values = np.concatenate([column(0.3, 0.3, 0.3), column(np.nan, np.nan, np.nan)], axis=2)
    scaler = fitted(values)
    assert scaler.scale == (1.0, 1.0) and scaler.centre == (0.3, 0.0)
    np.testing.assert_array_equal(scaler.transform(values), 0.0)


def test_transform_leaves_its_input_alone() -> None:
    values = column(1, 2, np.nan)
    fitted(values).transform(values)
    np.testing.assert_array_equal(values, column(1, 2, np.nan))


def test_scaler_through_json_is_the_same_to_the_last_bit() -> None:
    scaler = fitted(np.random.default_rng(0).normal(0, 1, (50, 3, 4)) / 3)
    assert Scaler.from_dict(json.loads(json.dumps(scaler.to_dict()))) == scaler


def test_nothing_to_fit_on_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FeatureError, match="every row is masked"):
        fitted(column(1, 2), np.zeros((2, 1), dtype=bool))
    with pytest.raises(FeatureError, match="do not fit mask"):
        Scaler.fit(column(1, 2), np.ones((2, 1), dtype=bool), ["a", "b"])
    with pytest.raises(FeatureError, match="values have 2 features, the scaler knows 1"):
        fitted(column(1, 2)).transform(np.zeros((3, 1, 2)))
