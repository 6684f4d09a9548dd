"""Models fitted in one go: they find what was planted, choose on the validated rows only, and read no later bar.

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

T, N, COLUMNS = 1500, 3, ("return_1", "noise", "volatility_60")


def planted(seed: int = 0) -> TrainingRows:
    """Returns follow the bar before, volatility and classes the bar itself; horizon 5 is never known."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, T, N, 3, generator=draw)
    noise = torch.randn(T, N, generator=draw)
    returns = torch.stack([0.5 * x[0, ..., 1].roll(1, dims=0) + 0.5 * noise, torch.full((T, N), torch.nan)], dim=-1)
    log_volatility = 0.4 * x[0, ..., 0] + 0.5 * torch.randn(T, N, generator=draw)
    scores = x[0, ..., 2, None] * torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]) + torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0])
    classes = torch.multinomial(torch.softmax(scores, -1).flatten(0, 1), 1, generator=draw).reshape(T, N)
    batch = Batch(x, torch.ones(1, T, N, dtype=torch.bool), torch.ones(1, T))
    return TrainingRows(batch, returns, log_volatility, classes, (0, 1000), (1005, T), COLUMNS, (1, 5), seed)


def fitted(kind: Callable[..., Estimator], rows: TrainingRows, **options: object) -> Estimator:
    model = kind(Spec("any"), rows.batch.x.shape[-1], len(rows.horizons), **options)
    model.fit_rows(rows)
    return model


def forecast(model: Estimator, rows: TrainingRows) -> Forecast:
    with torch.no_grad():
        return model(rows.batch)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.fixture(scope="module", params=[Ridge, GradientBoosting])
def lagged(request: pytest.FixtureRequest) -> tuple[Estimator, TrainingRows, Forecast]:
    """A model fitted to planted rows, and its forecasts of others."""
    other = planted(seed=1)
    model = fitted(request.param, planted())
    return model, other, forecast(model, other)


def test_a_return_that_follows_the_bar_before_is_found(lagged: tuple[Estimator, TrainingRows, Forecast]) -> None:
    _, other, made = lagged
    assert correlation(made.returns[0, 1:, :, 0], other.returns[1:, :, 0]) > 0.6  # 0.71 at best


def test_without_the_bar_before_there_is_nothing_to_find() -> None:
    made = forecast(fitted(Ridge, planted(), lags=0), other := planted(seed=1))
    assert abs(correlation(made.returns[0, ..., 0], other.returns[..., 0])) < 0.1


def test_an_output_that_is_never_known_has_no_opinion(lagged: tuple[Estimator, TrainingRows, Forecast]) -> None:
    assert torch.equal(lagged[2].returns[..., 1], torch.zeros(1, T, N))


def test_volatility_is_that_which_squares_average_to(lagged: tuple[Estimator, TrainingRows, Forecast]) -> None:
    _, other, made = lagged
    surprise = 2 * (other.log_volatility - made.log_volatility[0])
    assert float(surprise.exp().mean()) == pytest.approx(1.0, abs=0.2)  # exp of the mean log would give 1.65
    assert correlation(made.log_volatility[0], other.log_volatility) > 0.55  # 0.62 at best


def test_class_probabilities_are_calibrated(lagged: tuple[Estimator, TrainingRows, Forecast]) -> None:
    """In every tenth of the forecasts the class comes up about as often as was said; and more is known than its
    frequency."""
    _, other, made = lagged
    said = torch.softmax(made.logits[0], dim=-1).flatten(0, 1)
    for k in range(5):
        for part in said[:, k].argsort().chunk(10):
            came = (other.class_5.flatten()[part] == k).float().mean()
            assert float(came) == pytest.approx(float(said[part, k].mean()), abs=0.1)
    frequencies = torch.log(torch.bincount(other.class_5.flatten()) / (T * N))
    informed = float(cross_entropy(made.logits[0].flatten(0, 1), other.class_5.flatten()))
    assert informed < float(cross_entropy(frequencies.expand(T * N, 5), other.class_5.flatten())) - 0.05


def test_rows_between_and_after_the_spans_are_never_read(lagged: tuple[Estimator, TrainingRows, Forecast]) -> None:
    model, rows = lagged[0], planted()
    for part in (slice(1000, 1005), slice(1400, None)):
        rows.returns[part], rows.log_volatility[part], rows.class_5[part] = 1e6, 1e6, 0
    again = fitted(type(model), replace(rows, validated=(1005, 1400)))
    clean = fitted(type(model), replace(planted(), validated=(1005, 1400)))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), clean.state_dict().values(), strict=True))


def test_ridge_is_the_closed_form_with_the_penalty_that_the_validated_rows_prefer() -> None:
    draw = torch.Generator().manual_seed(0)
    x, validated = (torch.randn(k, 30, dtype=torch.float64, generator=draw) for k in (60, 4000))
    true = 0.2 * torch.randn(30, dtype=torch.float64, generator=draw)
    y, y_validated = (v @ true + 3 + torch.randn(len(v), dtype=torch.float64, generator=draw) for v in (x, validated))
    weight, bias, penalty = linear(x, y, validated, y_validated)
    costs = []
    for candidate in PENALTIES:
        centred = x - x.mean(0)
        normal = centred.T @ centred + 60 * candidate * torch.eye(30, dtype=torch.float64)
        slow = torch.linalg.inv(normal) @ centred.T @ (y - y.mean())
        costs.append(float((validated @ slow + y.mean() - x.mean(0) @ slow - y_validated).square().mean()))
        if candidate == penalty:
            torch.testing.assert_close(weight, slow)
            torch.testing.assert_close(bias, y.mean() - x.mean(0) @ slow)
    assert penalty == PENALTIES[int(np.argmin(costs))] and penalty not in (PENALTIES[0], PENALTIES[-1])


def test_a_return_of_pure_noise_is_shrunk_to_its_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(200, 50, dtype=torch.float64, generator=draw),
        torch.randn(200, dtype=torch.float64, generator=draw),
    )
    weight, bias, penalty = linear(x[:100], y[:100], x[100:], y[100:])
    assert penalty == PENALTIES[0]
    assert float(weight.norm()) < 0.02 and float(bias) == pytest.approx(float(y[:100].mean()), abs=0.01)


def test_logistic_regression_ends_where_the_gradient_of_its_cost_is_zero() -> None:
    rows = planted()
    x = rows.batch.x[0].flatten(0, 1).double()
    y = rows.class_5.flatten()
    weight, bias, penalty = logistic(x[:2000], y[:2000], x[2000:], y[2000:])
    indicator = torch.nn.functional.one_hot(y[:2000], 5).double()
    rest = torch.softmax(x[:2000] @ weight + bias, -1) - indicator
    torch.testing.assert_close(x[:2000].T @ rest / 2000 + penalty * weight, torch.zeros_like(weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(rest.mean(0), torch.zeros_like(bias), atol=1e-5, rtol=0)


def test_trees_stop_where_the_validated_rows_say() -> None:
    """On noise after a round or so; and another seed grows others."""
    rows = planted()
    noise = replace(rows, returns=torch.randn(T, N, 2, generator=torch.Generator().manual_seed(3)))
    trees = [fitted(GradientBoosting, r)._text("return_0").count("Tree=") for r in (noise, rows)]
    assert trees[0] < 10 < 40 < trees[1] < 300
    other = fitted(GradientBoosting, replace(rows, seed=1))
    assert other._text("return_0") != fitted(GradientBoosting, rows)._text("return_0")


def test_a_model_file_of_another_number_of_features_is_refused(market, tmp_path: Path) -> None:
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
