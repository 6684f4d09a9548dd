"""Estimators fit synthetic relations, use the validation rows only for selection, and read no row outside their ranges.

Glossary: t bars · n assets · f features · h horizons · p inputs of a regression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from models.layers.errors import SizeError
from models.nets.boosting import GradientBoosting
from models.nets.estimators import Estimator, TrainingRows
from models.nets.forecast import N_CLASSES, Batch, Forecast
from models.nets.ridge import PENALTIES, Ridge, fit_logistic, fit_ridge
from models.nets.spec import Spec
from models.training.artifact import load_artifact, save_artifact
from models.training.errors import ForeignArtifactError
from models.training.fit import fit_fold

N_BARS = 1500
N_ASSETS = 3
FEATURE_NAMES = ("volatility_signal", "return_signal", "class_signal")
VOLATILITY_SIGNAL, RETURN_SIGNAL, CLASS_SIGNAL = range(len(FEATURE_NAMES))
TRAINING = (0, 1000)
VALIDATION = (1005, N_BARS)  # five bars of embargo after the training rows
# returns are RETURN_SLOPE · (signal + noise), log-volatilities VOLATILITY_SLOPE · signal + VOLATILITY_NOISE · noise,
# where signals and noise are standard normal
RETURN_SLOPE = 0.5
VOLATILITY_SLOPE = 0.4
VOLATILITY_NOISE = 0.5
# the highest correlation with the target that a forecast can have: that of the signal alone
BEST_RETURN_CORRELATION = 2**-0.5  # 0.71
BEST_VOLATILITY_CORRELATION = VOLATILITY_SLOPE / np.hypot(VOLATILITY_SLOPE, VOLATILITY_NOISE)  # 0.62


class LaggedFit(NamedTuple):
    """A model fitted to synthetic rows, other synthetic rows, and the model's forecast of these."""

    model: Estimator
    test_rows: TrainingRows
    forecast: Forecast


def make_synthetic_rows(seed: int = 0) -> TrainingRows:
    """Rows in which the one-bar return depends on the signal of the bar before, and volatility and class on the signals
    of the bar itself. The returns over 5 bars are unknown in all rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, N_BARS, N_ASSETS, len(FEATURE_NAMES), generator=generator)
    return_noise = torch.randn(N_BARS, N_ASSETS, generator=generator)
    one_bar_returns = RETURN_SLOPE * (x[0, ..., RETURN_SIGNAL].roll(1, dims=0) + return_noise)
    returns = torch.stack([one_bar_returns, torch.full((N_BARS, N_ASSETS), torch.nan)], dim=-1)
    volatility_noise = torch.randn(N_BARS, N_ASSETS, generator=generator)
    log_volatility = VOLATILITY_SLOPE * x[0, ..., VOLATILITY_SIGNAL] + VOLATILITY_NOISE * volatility_noise
    class_slopes = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    class_biases = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0])
    probabilities = torch.softmax(x[0, ..., CLASS_SIGNAL, None] * class_slopes + class_biases, dim=-1)
    classes = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).reshape(N_BARS, N_ASSETS)
    return TrainingRows(
        batch=Batch(x, torch.ones(1, N_BARS, N_ASSETS, dtype=torch.bool), torch.ones(1, N_BARS)),
        returns=returns,
        log_volatility=log_volatility,
        class_5=classes,
        training_range=TRAINING,
        validation_range=VALIDATION,
        feature_names=FEATURE_NAMES,
        horizons=(1, 5),
        seed=seed,
    )


def fit_estimator(estimator: Callable[..., Estimator], rows: TrainingRows, **options: object) -> Estimator:
    """A new estimator, fitted to the rows."""
    model = estimator(Spec("any"), len(rows.feature_names), len(rows.horizons), **options)
    model.fit_rows(rows)
    return model


def compute_forecast(model: Estimator, rows: TrainingRows) -> Forecast:
    """The model's forecast of all rows, computed without gradients."""
    with torch.no_grad():
        return model(rows.batch)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of all elements of two tensors of the same shape."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def count_trees(model: Estimator, output: str) -> int:
    """The number of boosting rounds that the model keeps for the output."""
    assert isinstance(model, GradientBoosting)
    return model._model_text(output).count("Tree=")


@pytest.fixture(scope="module", params=[Ridge, GradientBoosting])
def lagged_fit(request: pytest.FixtureRequest) -> LaggedFit:
    """A ridge regression, or boosted trees, fitted to rows of seed 0, with its forecast of rows of seed 1."""
    model = fit_estimator(request.param, make_synthetic_rows(seed=0))
    test_rows = make_synthetic_rows(seed=1)
    return LaggedFit(model, test_rows, compute_forecast(model, test_rows))


def test_models_with_lags_forecast_a_return_that_depends_on_the_bar_before(lagged_fit: LaggedFit) -> None:
    """The first bar is left out: it has no bar before it."""
    one_bar_forecasts = lagged_fit.forecast.returns[0, 1:, :, 0]
    one_bar_returns = lagged_fit.test_rows.returns[1:, :, 0]
    assert correlation(one_bar_forecasts, one_bar_returns) > BEST_RETURN_CORRELATION - 0.1


def test_a_model_without_lags_cannot_forecast_a_return_that_depends_on_the_bar_before() -> None:
    model = fit_estimator(Ridge, make_synthetic_rows(seed=0), lags=0)
    test_rows = make_synthetic_rows(seed=1)
    forecast = compute_forecast(model, test_rows)
    assert abs(correlation(forecast.returns[0, ..., 0], test_rows.returns[..., 0])) < 0.1


def test_an_output_without_known_targets_forecasts_zero(lagged_fit: LaggedFit) -> None:
    five_bar_forecasts = lagged_fit.forecast.returns[..., 1]
    assert torch.equal(five_bar_forecasts, torch.zeros(1, N_BARS, N_ASSETS))


def test_forecast_volatilities_are_root_mean_squares(lagged_fit: LaggedFit) -> None:
    """The mean of (volatility ÷ forecast)² is 1. For a forecast of the mean log-volatility it would be the mean of a
    log-normal variable, exp(2 · VOLATILITY_NOISE²) = 1.65."""
    log_ratio = lagged_fit.test_rows.log_volatility - lagged_fit.forecast.log_volatility[0]
    assert float((2 * log_ratio).exp().mean()) == pytest.approx(1.0, abs=0.2)


def test_forecast_volatilities_follow_their_signal(lagged_fit: LaggedFit) -> None:
    forecast = lagged_fit.forecast.log_volatility[0]
    assert correlation(forecast, lagged_fit.test_rows.log_volatility) > BEST_VOLATILITY_CORRELATION - 0.07


def test_class_probabilities_are_calibrated(lagged_fit: LaggedFit) -> None:
    """In every decile of its forecast probability a class occurs about as often as forecast."""
    classes = lagged_fit.test_rows.class_5.flatten()
    probabilities = torch.softmax(lagged_fit.forecast.logits[0], dim=-1).flatten(0, 1)
    for k in range(N_CLASSES):
        for decile in probabilities[:, k].argsort().chunk(10):
            frequency = (classes[decile] == k).float().mean()
            assert float(frequency) == pytest.approx(float(probabilities[decile, k].mean()), abs=0.1)


def test_class_probabilities_have_a_lower_loss_than_the_class_frequencies(lagged_fit: LaggedFit) -> None:
    classes = lagged_fit.test_rows.class_5.flatten()
    loss = float(cross_entropy(lagged_fit.forecast.logits[0].flatten(0, 1), classes))
    log_frequencies = torch.log(torch.bincount(classes) / len(classes))
    frequency_loss = float(cross_entropy(log_frequencies.expand(len(classes), N_CLASSES), classes))
    assert loss < frequency_loss - 0.05


def test_targets_outside_both_ranges_are_never_read(lagged_fit: LaggedFit) -> None:
    validation_stop = 1400
    embargo = slice(TRAINING[1], VALIDATION[0])
    after_validation = slice(validation_stop, None)
    shortened = {"validation_range": (VALIDATION[0], validation_stop)}
    changed_rows = replace(make_synthetic_rows(), **shortened)
    for outside in (embargo, after_validation):
        changed_rows.returns[outside] = 1e6
        changed_rows.log_volatility[outside] = 1e6
        changed_rows.class_5[outside] = 0
    estimator = type(lagged_fit.model)
    changed_buffers = fit_estimator(estimator, changed_rows).state_dict()
    expected_buffers = fit_estimator(estimator, replace(make_synthetic_rows(), **shortened)).state_dict()
    assert all(torch.equal(changed_buffers[name], expected_buffers[name]) for name in expected_buffers)


def test_ridge_equals_the_closed_form_and_selects_the_penalty_with_the_lowest_validation_error() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    r = 60
    p = 30
    x = normal(r, p)
    x_validation = normal(4000, p)
    true_weight = 0.2 * normal(p)
    true_bias = 3
    y = x @ true_weight + true_bias + normal(len(x))
    y_validation = x_validation @ true_weight + true_bias + normal(len(x_validation))
    weight, bias, penalty = fit_ridge(x, y, x_validation, y_validation)
    validation_errors = []
    for candidate_penalty in PENALTIES:
        centred = x - x.mean(0)
        penalised_gram = centred.T @ centred + r * candidate_penalty * torch.eye(p, dtype=torch.float64)
        expected_weight = torch.linalg.inv(penalised_gram) @ centred.T @ (y - y.mean())
        expected_bias = y.mean() - x.mean(0) @ expected_weight
        validation_errors.append(float((x_validation @ expected_weight + expected_bias - y_validation).square().mean()))
        if candidate_penalty == penalty:
            torch.testing.assert_close(weight, expected_weight)
            torch.testing.assert_close(bias, expected_bias)
    assert penalty == PENALTIES[int(np.argmin(validation_errors))]
    assert penalty not in (PENALTIES[0], PENALTIES[-1])  # else the case would not show a selection


def test_a_regression_of_pure_noise_has_the_strongest_penalty_and_forecasts_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 50, dtype=torch.float64, generator=generator)
    y = torch.randn(200, dtype=torch.float64, generator=generator)
    training = slice(None, 100)
    validation = slice(100, None)
    weight, bias, penalty = fit_ridge(x[training], y[training], x[validation], y[validation])
    assert penalty == PENALTIES[0]
    assert float(weight.norm()) < 0.02
    assert float(bias) == pytest.approx(float(y[training].mean()), abs=0.01)


def test_logistic_regression_ends_where_the_gradient_of_its_loss_is_zero() -> None:
    rows = make_synthetic_rows()
    x = rows.batch.x[0].flatten(0, 1).double()
    y = rows.class_5.flatten()
    r = 2000
    weight, bias, penalty = fit_logistic(x[:r], y[:r], x[r:], y[r:])
    residual = torch.softmax(x[:r] @ weight + bias, dim=-1) - one_hot(y[:r], N_CLASSES).double()
    weight_gradient = x[:r].T @ residual / r + penalty * weight
    bias_gradient = residual.mean(0)
    torch.testing.assert_close(weight_gradient, torch.zeros_like(weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias_gradient, torch.zeros_like(bias), atol=1e-5, rtol=0)


def test_trees_stop_growing_where_the_validation_loss_stops_falling() -> None:
    """A model of pure noise keeps fewer than 10 of the 300 rounds, a model of a real relation more than 40."""
    rows = make_synthetic_rows()
    noise = torch.randn(rows.returns.shape, generator=torch.Generator().manual_seed(3))
    noise_model = fit_estimator(GradientBoosting, replace(rows, returns=noise), rounds=300)
    signal_model = fit_estimator(GradientBoosting, rows, rounds=300)
    assert count_trees(noise_model, "return_0") < 10
    assert 40 < count_trees(signal_model, "return_0") < 300


def test_another_seed_grows_other_trees() -> None:
    rows = make_synthetic_rows()
    model = fit_estimator(GradientBoosting, rows)
    other_model = fit_estimator(GradientBoosting, replace(rows, seed=rows.seed + 1))
    assert not torch.equal(model.get_buffer("return_0"), other_model.get_buffer("return_0"))


def test_a_model_file_with_another_number_of_features_is_refused(market: Any, tmp_path: Path) -> None:
    path = tmp_path / "ridge.safetensors"
    fit_fold(**market.arguments("ridge"), artifact=path)
    loaded = load_artifact(path)
    weights = {**loaded.network.state_dict(), "weight": torch.zeros(3, 8)}
    save_artifact(path, loaded.header, weights)
    with pytest.raises(ForeignArtifactError, match="do not fit the ridge network"):
        load_artifact(path)


def test_a_negative_number_of_lagged_bars_is_refused() -> None:
    with pytest.raises(SizeError, match="lags is -1"):
        Ridge(Spec("ridge"), 3, 2, lags=-1)
