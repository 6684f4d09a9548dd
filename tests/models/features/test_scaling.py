"""Scaling: fitted on the known values of training rows, restored exactly from JSON, robust against outliers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.features.indicators import FeatureError
from models.features.scaling import MAX_ABS_SCALED, NORMAL_IQR, Scaler


def make_values(*values: float) -> np.ndarray:
    """One feature of one asset, (t, 1, 1)."""
    return np.array(values, dtype=float)[:, None, None]


def fit_scaler(values: np.ndarray, mask: np.ndarray | None = None) -> Scaler:
    """A scaler fitted on ``values`` (t, n, f); without ``mask`` every bar exists."""
    mask = np.ones(values.shape[:2], dtype=bool) if mask is None else mask
    return Scaler.fit(values, mask, [f"f{k}" for k in range(values.shape[2])])


def test_centre_is_the_median_and_scale_the_normalised_interquartile_range() -> None:
    scaler = fit_scaler(make_values(1, 2, 3, 4, 1000))
    assert scaler.centre == (3.0,)
    np.testing.assert_allclose(scaler.scale, (4 - 2) / NORMAL_IQR)  # the quartiles are 2 and 4


def test_scaled_normal_values_have_mean_zero_and_standard_deviation_one() -> None:
    values = np.random.default_rng(0).normal(7, 3, (5000, 4, 1))
    scaled = fit_scaler(values).transform(values)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=0.02)


def test_each_feature_has_its_own_scale_over_all_assets() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(0, 1, (300, 3)), rng.normal(50, 10, (300, 3))], axis=-1)
    scaler = fit_scaler(values)
    np.testing.assert_allclose(scaler.centre, [0, 50], atol=2)
    np.testing.assert_allclose(scaler.scale, [1, 10], rtol=0.1)


def test_unknown_values_become_zero_and_outliers_are_clipped() -> None:
    scaler = fit_scaler(make_values(-1, 0, 1))
    scaled = scaler.transform(make_values(np.nan, 0, 1e9, -1e9, np.inf))
    np.testing.assert_array_equal(scaled.ravel(), [0, 0, MAX_ABS_SCALED, -MAX_ABS_SCALED, MAX_ABS_SCALED])


def test_masked_rows_and_unknown_values_do_not_change_the_fit() -> None:
    """Field note 13."""
    values = make_values(1, 2, 3, 1e6, np.nan)
    mask = np.array([[True], [True], [True], [False], [True]])
    assert fit_scaler(values, mask) == fit_scaler(make_values(1, 2, 3))


def test_a_feature_whose_interquartile_range_is_zero_is_scaled_by_its_standard_deviation() -> None:
    values = make_values(*[0.0001] * 9, 0.0011)
    np.testing.assert_allclose(fit_scaler(values).scale, values.std())


def test_a_constant_feature_and_an_always_unknown_feature_are_scaled_to_zero() -> None:
    values = np.concatenate([make_values(0.3, 0.3, 0.3), make_values(np.nan, np.nan, np.nan)], axis=2)
    scaler = fit_scaler(values)
    assert scaler.scale == (1.0, 1.0)
    assert scaler.centre == (0.3, 0.0)
    np.testing.assert_array_equal(scaler.transform(values), 0.0)


def test_transform_does_not_modify_the_values_that_it_receives() -> None:
    values = make_values(1, 2, np.nan)
    fit_scaler(values).transform(values)
    np.testing.assert_array_equal(values, make_values(1, 2, np.nan))


def test_a_scaler_restored_from_json_is_identical() -> None:
    scaler = fit_scaler(np.random.default_rng(0).normal(0, 1, (50, 3, 4)) / 3)
    assert Scaler.from_dict(json.loads(json.dumps(scaler.to_dict()))) == scaler


def test_a_mask_without_a_bar_is_refused() -> None:
    with pytest.raises(FeatureError, match="every row is masked"):
        fit_scaler(make_values(1, 2), mask=np.zeros((2, 1), dtype=bool))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FeatureError, match="do not fit mask"):
        Scaler.fit(make_values(1, 2), np.ones((2, 1), dtype=bool), ["a", "b"])
    with pytest.raises(FeatureError, match="values have 2 features, the scaler knows 1"):
        fit_scaler(make_values(1, 2)).transform(np.zeros((3, 1, 2)))
