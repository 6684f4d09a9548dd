"""Estimators find planted relations, select on the validated rows only, and read no row outside their spans.

Glossary: t bars · n assets · f features · h horizons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.layers.errors import SizeError
from models.nets.boosting import GradientBoosting
from models.nets.estimators import Estimator, TrainingRows
from models.nets.forecast import Batch, Forecast
from models.nets.ridge import PENALTIES, Ridge, linear, logistic
from models.nets.spec import Spec
from models.training.artifact import load_artifact, save_artifact
from models.training.errors import ForeignArtifactError
from models.training.fit import fit_fold

T = 1500
N = 3
COLUMNS = ("return_1", "noise", "volatility_60")


def make_planted_rows(seed: int = 0) -> TrainingRows:
    """Rows whose returns depend on the bar before, and volatility and classes on the bar itself; the returns over 5
    bars are unknown in all rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, T, N, 3, generator=generator)
    noise = torch.randn(T, N, generator=generator)
    returns = torch.stack([0.5 * x[0, ..., 1].roll(1, dims=0) + 0.5 * noise, torch.full((T, N), torch.nan)], dim=-1)
    log_volatility = 0.4 * x[0, ..., 0] + 0.5 * torch.randn(T, N, generator=generator)
    scores = x[0, ..., 2, None] * torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]) + torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0])
    classes = torch.multinomial(torch.softmax(scores, -1).flatten(0, 1), 1, generator=generator).reshape(T, N)
    batch = Batch(x, torch.ones(1, T, N, dtype=torch.bool), torch.ones(1, T))
    return TrainingRows(batch, returns, log_volatility, classes, (0, 1000), (1005, T), COLUMNS, (1, 5), seed)


def fit_estimator(kind: Callable[..., Estimator], rows: TrainingRows, **options: object) -> Estimator:
    model = kind(Spec("any"), rows.batch.x.shape[-1], len(rows.horizons), **options)
    model.fit_rows(rows)
    return model


def run_forecast(model: Estimator, rows: TrainingRows) -> Forecast:
    with torch.no_grad():
        return model(rows.batch)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.fixture(scope="module", params=[Ridge, GradientBoosting])
def lagged_fit(request: pytest.FixtureRequest) -> tuple[Estimator, TrainingRows, Forecast]:
    """A model fitted to planted rows, other planted rows, and its forecasts of those."""
    model = fit_estimator(request.param, make_planted_rows())
    other_rows = make_planted_rows(seed=1)
    return model, other_rows, run_forecast(model, other_rows)


def test_a_return_that_depends_on_the_bar_before_is_forecast(
    lagged_fit: tuple[Estimator, TrainingRows, Forecast],
) -> None:
    _, rows, forecast = lagged_fit
    assert correlation(forecast.returns[0, 1:, :, 0], rows.returns[1:, :, 0]) > 0.6  # 0.71 at best


def test_without_the_bar_before_the_return_is_not_forecast() -> None:
    rows = make_planted_rows(seed=1)
    forecast = run_forecast(fit_estimator(Ridge, make_planted_rows(), lags=0), rows)
    assert abs(correlation(forecast.returns[0, ..., 0], rows.returns[..., 0])) < 0.1


def test_an_output_without_known_targets_forecasts_zero(lagged_fit: tuple[Estimator, TrainingRows, Forecast]) -> None:
    assert torch.equal(lagged_fit[2].returns[..., 1], torch.zeros(1, T, N))


def test_forecast_volatilities_match_the_mean_of_squares(lagged_fit: tuple[Estimator, TrainingRows, Forecast]) -> None:
    _, rows, forecast = lagged_fit
    surprise = 2 * (rows.log_volatility - forecast.log_volatility[0])
    assert float(surprise.exp().mean()) == pytest.approx(1.0, abs=0.2)  # exp of the mean log would give 1.65
    assert correlation(forecast.log_volatility[0], rows.log_volatility) > 0.55  # 0.62 at best


def test_class_probabilities_are_calibrated(lagged_fit: tuple[Estimator, TrainingRows, Forecast]) -> None:
    """In every tenth of the forecasts a class occurs about as often as forecast; and the forecasts are better than the
    class frequencies."""
    _, rows, forecast = lagged_fit
    classes = rows.class_5.flatten()
    probabilities = torch.softmax(forecast.logits[0], dim=-1).flatten(0, 1)
    for k in range(5):
        for tenth in probabilities[:, k].argsort().chunk(10):
            frequency = (classes[tenth] == k).float().mean()
            assert float(frequency) == pytest.approx(float(probabilities[tenth, k].mean()), abs=0.1)
    log_frequencies = torch.log(torch.bincount(classes) / (T * N))
    loss = float(cross_entropy(forecast.logits[0].flatten(0, 1), classes))
    assert loss < float(cross_entropy(log_frequencies.expand(T * N, 5), classes)) - 0.05


def test_rows_between_and_after_the_spans_are_never_read(lagged_fit: tuple[Estimator, TrainingRows, Forecast]) -> None:
    kind = type(lagged_fit[0])
    rows = make_planted_rows()
    for outside in (slice(1000, 1005), slice(1400, None)):
        rows.returns[outside] = 1e6
        rows.log_volatility[outside] = 1e6
        rows.class_5[outside] = 0
    changed = fit_estimator(kind, replace(rows, validated=(1005, 1400))).state_dict()
    unchanged = fit_estimator(kind, replace(make_planted_rows(), validated=(1005, 1400))).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(changed.values(), unchanged.values(), strict=True))


def test_ridge_is_the_closed_form_with_the_penalty_of_least_validated_error() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x = normal(60, 30)
    validated = normal(4000, 30)
    true_weight = 0.2 * normal(30)
    y, y_validated = (v @ true_weight + 3 + normal(len(v)) for v in (x, validated))
    weight, bias, penalty = linear(x, y, validated, y_validated)
    costs = []
    for candidate in PENALTIES:
        centred = x - x.mean(0)
        gram = centred.T @ centred + 60 * candidate * torch.eye(30, dtype=torch.float64)
        expected = torch.linalg.inv(gram) @ centred.T @ (y - y.mean())
        costs.append(float((validated @ expected + y.mean() - x.mean(0) @ expected - y_validated).square().mean()))
        if candidate == penalty:
            torch.testing.assert_close(weight, expected)
            torch.testing.assert_close(bias, y.mean() - x.mean(0) @ expected)
    assert penalty == PENALTIES[int(np.argmin(costs))] and penalty not in (PENALTIES[0], PENALTIES[-1])


def test_a_return_of_pure_noise_is_shrunk_to_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 50, dtype=torch.float64, generator=generator)
    y = torch.randn(200, dtype=torch.float64, generator=generator)
    weight, bias, penalty = linear(x[:100], y[:100], x[100:], y[100:])
    assert penalty == PENALTIES[0]
    assert float(weight.norm()) < 0.02 and float(bias) == pytest.approx(float(y[:100].mean()), abs=0.01)


def test_logistic_regression_ends_where_the_gradient_of_its_loss_is_zero() -> None:
    rows = make_planted_rows()
    x = rows.batch.x[0].flatten(0, 1).double()
    y = rows.class_5.flatten()
    weight, bias, penalty = logistic(x[:2000], y[:2000], x[2000:], y[2000:])
    indicator = torch.nn.functional.one_hot(y[:2000], 5).double()
    residual = torch.softmax(x[:2000] @ weight + bias, -1) - indicator
    gradient = x[:2000].T @ residual / 2000 + penalty * weight
    torch.testing.assert_close(gradient, torch.zeros_like(weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(residual.mean(0), torch.zeros_like(bias), atol=1e-5, rtol=0)


def test_trees_stop_growing_where_the_validated_error_stops_falling() -> None:
    """On noise within ten rounds. Another seed grows other trees."""
    rows = make_planted_rows()
    noise = replace(rows, returns=torch.randn(T, N, 2, generator=torch.Generator().manual_seed(3)))
    noise_trees, planted_trees = (
        fit_estimator(GradientBoosting, r)._text("return_0").count("Tree=") for r in (noise, rows)
    )
    assert noise_trees < 10 < 40 < planted_trees < 300
    other = fit_estimator(GradientBoosting, replace(rows, seed=1))
    assert other._text("return_0") != fit_estimator(GradientBoosting, rows)._text("return_0")


def test_a_model_file_with_another_number_of_features_is_refused(market, tmp_path: Path) -> None:
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
