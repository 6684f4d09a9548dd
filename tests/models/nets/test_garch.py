"""GARCH recovers its parameters, forecasts as the arch library does, and treats every asset by itself.

Glossary: t bars · n assets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from arch import arch_model

from models.features.indicators import FeatureError, compute_features
from models.features.labels import compute_labels
from models.graphs.context import SideInputs
from models.layers.errors import ShapeError, StateError
from models.nets.estimators import TrainingRows
from models.nets.forecast import Batch, Forecast
from models.nets.garch import Garch, label_bars, mean_ahead
from models.nets.spec import Spec
from models.panel import Panel
from models.scoring.folds import walk_forward
from models.training.artifact import read_header
from models.training.config import TrainConfig
from models.training.fit import fit_fold, predict_fold

T = 1500
N = 3
COLUMNS = ("return_1", "noise", "volatility_60")
OMEGA = 4e-6
ALPHA = 0.12
BETA = 0.84


def fit_garch(rows: TrainingRows) -> Garch:
    model = Garch(Spec("garch"), len(rows.columns), len(rows.horizons))
    model.fit_rows(rows)
    return model


def run_forecast(model: Garch, rows: TrainingRows) -> Forecast:
    with torch.no_grad():
        return model(rows.batch)


def make_garch_rows(seed: int = 0, bars: int = T) -> tuple[TrainingRows, np.ndarray]:
    """Rows whose returns are a GARCH(1, 1), and its true variances (t, n) of the next bar."""
    rng = np.random.default_rng(seed)
    variance = np.full(N, OMEGA / (1 - ALPHA - BETA))
    returns = np.empty((bars, N))
    variances = np.empty((bars, N))
    for t in range(bars):
        returns[t] = np.sqrt(variance) * rng.normal(size=N)
        variance = OMEGA + ALPHA * returns[t] ** 2 + BETA * variance
        variances[t] = variance
    sigma = np.full((bars, N), 0.01)
    ahead = np.stack([np.roll(returns**2, -k, axis=0) for k in range(1, 6)]).mean(0)
    ahead[-5:] = np.nan
    x = torch.from_numpy(np.stack([returns, rng.normal(size=(bars, N)), sigma], -1)[None].astype(np.float32))
    batch = Batch(x, torch.ones(1, bars, N, dtype=torch.bool), torch.ones(1, bars))
    label = torch.from_numpy(0.5 * np.log(ahead) - np.log(sigma)).float()
    classes = torch.from_numpy(rng.choice(5, p=[0.1, 0.2, 0.4, 0.2, 0.1], size=(bars, N)))
    unknown = torch.full((bars, N, 2), torch.nan)
    split = bars * 2 // 3
    rows = TrainingRows(batch, unknown, label, classes, (0, split), (split + 5, bars), COLUMNS, (1, 5), 0)
    return rows, variances


def test_garch_recovers_the_parameters_that_generated_the_returns() -> None:
    rows, _ = make_garch_rows(bars=9000)
    model = fit_garch(rows)
    np.testing.assert_allclose(model.alpha, ALPHA, atol=0.025)
    np.testing.assert_allclose(model.beta, BETA, atol=0.04)
    np.testing.assert_allclose(model.start, OMEGA / (1 - ALPHA - BETA), rtol=0.3)


def test_garch_forecasts_what_the_library_forecasts() -> None:
    """The mean variance of the next 5 bars equals the library's, once the first variance has decayed."""
    rows, _ = make_garch_rows()
    model = fit_garch(rows)
    volatility = run_forecast(model, rows).log_volatility[0].double().exp().numpy() * 0.01
    for j in range(N):
        scale = 100.0
        library = arch_model(rows.batch.x[0, :, j, 0].double().numpy() * scale, mean="Zero", rescale=False)
        parameters = [float(model.omega[j]) * scale**2, float(model.alpha[j]), float(model.beta[j])]
        expected = library.fix(parameters).forecast(horizon=5, start=300).variance.to_numpy().mean(axis=1)
        np.testing.assert_allclose(volatility[300:, j], np.sqrt(expected) / scale, rtol=1e-4)


def test_garch_forecasts_the_true_variance_and_no_returns() -> None:
    rows, variances = make_garch_rows()
    forecast = run_forecast(fit_garch(rows), rows)
    log_volatility = forecast.log_volatility[0, 1005:].numpy()
    assert np.corrcoef(log_volatility.ravel(), np.log(variances[1005:]).ravel())[0, 1] > 0.95
    assert not forecast.returns.any()
    frequencies = torch.bincount(rows.class_5[:1000].flatten()) / (1000 * N)
    torch.testing.assert_close(torch.softmax(forecast.logits[0, 7, 1], -1), frequencies, atol=1e-3, rtol=0)


def test_garch_does_not_change_its_variance_where_there_is_no_bar() -> None:
    rows, _ = make_garch_rows(bars=300)
    model = fit_garch(rows)
    mask = rows.batch.mask.clone()
    mask[0, 100:110, 1] = False
    x = torch.where(mask[..., None], rows.batch.x, torch.nan)
    with_hole = replace(rows.batch, x=x, mask=mask)
    without_hole = Batch(
        torch.cat([x[:, :100], x[:, 110:]], 1), torch.ones(1, 290, N, dtype=torch.bool), torch.ones(1, 290)
    )
    with torch.no_grad():
        volatility = model(with_hole).log_volatility[0, :, 1]
        expected = model(without_hole).log_volatility[0, :, 1]
    assert torch.equal(volatility[110:], expected[100:])
    assert torch.isfinite(volatility).all()


def test_an_asset_without_history_takes_the_median_parameters_of_the_others() -> None:
    rows, _ = make_garch_rows()
    mask = rows.batch.mask.clone()
    mask[0, :990, 2] = False
    model = fit_garch(replace(rows, batch=replace(rows.batch, mask=mask)))
    torch.testing.assert_close(model.alpha[2], model.alpha[:2].mean())
    assert 0.3 < float(model.start[2] / model.start[:2].mean()) < 3


def test_a_forecast_is_finite_where_all_assets_have_too_few_bars() -> None:
    rows, _ = make_garch_rows(bars=60)
    model = fit_garch(rows)
    np.testing.assert_allclose(model.alpha + model.beta, 0.95)
    assert run_forecast(model, rows).log_volatility.isfinite().all()


def test_a_fit_whose_variance_would_die_out_keeps_the_mean_square() -> None:
    """For returns that calm down the library fits ω near 0 and φ below 1, so its forecasts would fall to 0."""
    rows, _ = make_garch_rows(bars=600)
    calming = np.linspace(0.03, 0.01, 600)[:, None] * np.random.default_rng(1).normal(size=(600, N))
    x = rows.batch.x.clone()
    x[0, :, :, 0] = torch.from_numpy(calming)
    library = arch_model(calming[:400, 0] / calming[:400, 0].std(), mean="Zero", rescale=False)
    omega, alpha, beta = library.fit(disp="off").params
    assert omega / (1 - alpha - beta) < 1e-3
    rows = replace(rows, batch=replace(rows.batch, x=x))
    volatility = run_forecast(fit_garch(rows), rows).log_volatility[0].exp() * 0.01
    assert float(volatility.min()) > 0.005 and float(volatility.max()) < 0.05


def test_mean_ahead_is_the_mean_of_the_variances_stepped_one_by_one() -> None:
    omega = np.array([0.1, 0.2])
    phi = np.array([0.9, 1.0])
    v = np.array([3.0, 0.5])
    level, carry = mean_ahead(omega, phi, 3)
    second = omega + phi * v
    third = omega + phi * second
    np.testing.assert_allclose(level + carry * v, (v + second + third) / 3)


@pytest.mark.parametrize("horizon", [1, 5])
def test_label_bars_returns_the_horizon_of_the_volatility_label(
    random_bars: Callable[..., Panel], horizon: int
) -> None:
    bars = random_bars(300, 4, holes=0.02)
    features = compute_features(bars, bars.ts + np.timedelta64(1, "h"))
    labels = compute_labels(bars, features.column("volatility_60"), (1, 5, 20), horizon)
    label = np.log(labels.volatility / features.column("volatility_60"))
    assert label_bars(features.column("return_1") ** 2, label, features.column("volatility_60"), (1, 5, 20)) == horizon


def test_garch_is_fitted_to_unscaled_features(random_bars: Callable[..., Panel], tmp_path: Path) -> None:
    """In a whole fold: the scaler of its file changes no value, and its forecasts are volatilities."""
    bars = random_bars(400, 4)
    features = compute_features(bars, bars.ts + np.timedelta64(1, "h"))
    labels = compute_labels(bars, features.column("volatility_60"), (1, 5), 5)
    fold = walk_forward(features.ts, labels.end, warmup_bars=61, train_bars=250, test_bars=60, embargo_bars=2)[0]
    path = tmp_path / "garch.safetensors"
    outcome = fit_fold(Spec("garch"), TrainConfig(), features, labels, SideInputs(), fold, path).fit_result
    header = read_header(path)
    row = features.values[fold.train[0], 0]
    np.testing.assert_array_equal(header.scaler.transform(row), row.astype(np.float32))
    assert (outcome.epochs, outcome.parameters) == (1, 3 * 4 + 5)
    forecasts = predict_fold(path, features, SideInputs(), fold)
    volatility = forecasts.volatility[forecasts.valid]
    assert 0.015 < float(np.median(volatility)) < 0.025  # the random bars have 0.02


def test_wrong_input_is_refused_with_what_to_do() -> None:
    rows, _ = make_garch_rows(bars=300)
    model = fit_garch(rows)
    with pytest.raises(ShapeError, match="5 assets, but this GARCH was fitted to 3; fit it to these"):
        model.initial_state(1, 5)
    with pytest.raises(StateError, match="start from initial_state"):
        model.step(rows.batch, ((torch.zeros(2, N),),))
    with pytest.raises(FeatureError, match="the features have no return_1"):
        fit_garch(replace(rows, columns=("a", "b", "volatility_60")))
