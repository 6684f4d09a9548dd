"""GARCH recovers its parameters, forecasts as the arch library does, and treats every asset by itself.

Glossary: t bars · n assets · k bars that the volatility label covers. Symbols as in models/nets/garch.py.
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
from models.nets.forecast import N_CLASSES, Batch, Forecast
from models.nets.garch import TYPICAL_ALPHA_BETA, Garch, infer_label_horizon, mean_variance_coefficients
from models.nets.spec import Spec
from models.panel import Panel
from models.scoring.folds import walk_forward
from models.training.artifact import read_header
from models.training.config import TrainConfig
from models.training.fit import fit_fold, predict_fold

N_BARS = 1500
N = 3
FEATURE_NAMES = ("return_1", "other", "volatility_60")
OMEGA = 4e-6
ALPHA = 0.12
BETA = 0.84
SIGMA = 0.01  # the trailing volatility of all synthetic bars
HORIZONS = (1, 5)
LABEL_BARS = 5  # bars that the volatility label covers
CLASS_PROBABILITIES = [0.1, 0.2, 0.4, 0.2, 0.1]


def fit_garch(rows: TrainingRows) -> Garch:
    """A new GARCH, fitted to the rows."""
    model = Garch(Spec("garch"), len(rows.feature_names), len(rows.horizons))
    model.fit_rows(rows)
    return model


def compute_forecast(model: Garch, rows: TrainingRows) -> Forecast:
    """The model's forecast of all rows, computed without gradients."""
    with torch.no_grad():
        return model(rows.batch)


def compute_volatility(model: Garch, rows: TrainingRows) -> np.ndarray:
    """The model's forecast volatility per bar (t, n)."""
    return compute_forecast(model, rows).log_volatility[0].double().exp().numpy() * SIGMA


def make_garch_rows(n_bars: int = N_BARS) -> tuple[TrainingRows, np.ndarray]:
    """Rows whose returns are a GARCH(1, 1), and the true variances (t, n) of the bar after each bar.

    The first two thirds of the rows are for training, the rest for validation. All target returns are unknown.
    """
    rng = np.random.default_rng(0)
    variance = np.full(N, OMEGA / (1 - ALPHA - BETA))
    returns = np.empty((n_bars, N))
    next_variances = np.empty((n_bars, N))
    for t in range(n_bars):
        returns[t] = np.sqrt(variance) * rng.normal(size=N)
        variance = OMEGA + ALPHA * returns[t] ** 2 + BETA * variance
        next_variances[t] = variance
    sigma = np.full((n_bars, N), SIGMA)
    realised_variance = np.stack([np.roll(returns**2, -i, axis=0) for i in range(1, LABEL_BARS + 1)]).mean(0)
    realised_variance[-LABEL_BARS:] = np.nan
    x = np.stack([returns, rng.normal(size=(n_bars, N)), sigma], axis=-1)[None].astype(np.float32)
    classes = rng.choice(N_CLASSES, p=CLASS_PROBABILITIES, size=(n_bars, N))
    training_stop = n_bars * 2 // 3
    rows = TrainingRows(
        batch=Batch(torch.from_numpy(x), torch.ones(1, n_bars, N, dtype=torch.bool), torch.ones(1, n_bars)),
        returns=torch.full((n_bars, N, len(HORIZONS)), torch.nan),
        log_volatility=torch.from_numpy(0.5 * np.log(realised_variance) - np.log(sigma)).float(),
        class_5=torch.from_numpy(classes),
        training_range=(0, training_stop),
        validation_range=(training_stop + LABEL_BARS, n_bars),
        feature_names=FEATURE_NAMES,
        horizons=HORIZONS,
        seed=0,
    )
    return rows, next_variances


def test_garch_recovers_the_parameters_that_generated_the_returns() -> None:
    rows, _ = make_garch_rows(n_bars=9000)
    model = fit_garch(rows)
    np.testing.assert_allclose(model.alpha, ALPHA, atol=0.025)
    np.testing.assert_allclose(model.beta, BETA, atol=0.04)
    np.testing.assert_allclose(model.start, OMEGA / (1 - ALPHA - BETA), rtol=0.3)


def test_garch_forecasts_equal_the_forecasts_of_the_arch_library() -> None:
    """The forecast variance equals the library's mean variance of the next LABEL_BARS bars. The first bars are left
    out: the library starts from another variance, whose effect decays."""
    rows, _ = make_garch_rows()
    model = fit_garch(rows)
    volatility = compute_volatility(model, rows)
    percent = 100.0  # the library fits returns in percent
    start = 300
    for j in range(N):
        returns = rows.batch.x[0, :, j, FEATURE_NAMES.index("return_1")].double().numpy()
        library = arch_model(returns * percent, mean="Zero", rescale=False)
        parameters = [float(model.omega[j]) * percent**2, float(model.alpha[j]), float(model.beta[j])]
        library_forecast = library.fix(parameters).forecast(horizon=LABEL_BARS, start=start)
        expected = np.sqrt(library_forecast.variance.to_numpy().mean(axis=1)) / percent
        np.testing.assert_allclose(volatility[start:, j], expected, rtol=1e-4)


def test_forecast_volatilities_follow_the_true_variance_in_the_validation_rows() -> None:
    rows, next_variances = make_garch_rows()
    validation = slice(*rows.validation_range)
    log_volatility = np.log(compute_volatility(fit_garch(rows), rows)[validation])
    true_log_variance = np.log(next_variances[validation])
    assert np.corrcoef(log_volatility.ravel(), true_log_variance.ravel())[0, 1] > 0.95


def test_forecast_returns_are_zero() -> None:
    rows, _ = make_garch_rows()
    assert not compute_forecast(fit_garch(rows), rows).returns.any()


def test_forecast_class_probabilities_are_the_frequencies_of_the_training_rows() -> None:
    rows, _ = make_garch_rows()
    forecast = compute_forecast(fit_garch(rows), rows)
    training_classes = rows.class_5[slice(*rows.training_range)].flatten()
    frequencies = torch.bincount(training_classes) / len(training_classes)
    any_bar = torch.softmax(forecast.logits[0, 7, 1], dim=-1)
    torch.testing.assert_close(any_bar, frequencies, atol=1e-3, rtol=0)


def test_a_missing_bar_leaves_the_variance_unchanged() -> None:
    """After missing bars, forecasts equal those of a sequence without these bars."""
    rows, _ = make_garch_rows(n_bars=300)
    model = fit_garch(rows)
    start = 100
    stop = 110
    asset = 1
    mask = rows.batch.mask.clone()
    mask[0, start:stop, asset] = False
    with_missing = replace(rows.batch, x=torch.where(mask[..., None], rows.batch.x, torch.nan), mask=mask)
    shortened_x = torch.cat([rows.batch.x[:, :start], rows.batch.x[:, stop:]], dim=1)
    n_shortened = shortened_x.shape[1]
    shortened = Batch(shortened_x, torch.ones(1, n_shortened, N, dtype=torch.bool), torch.ones(1, n_shortened))
    with torch.no_grad():
        log_volatility = model(with_missing).log_volatility[0, :, asset]
        expected = model(shortened).log_volatility[0, :, asset]
    assert torch.equal(log_volatility[stop:], expected[start:])
    assert torch.isfinite(log_volatility).all()


def test_an_asset_without_history_takes_the_median_parameters_of_the_others() -> None:
    """The last asset has only its last 10 training bars: too few for a fit and for a mean square. The mean squares of
    the other assets differ only by chance."""
    rows, _ = make_garch_rows()
    _, training_stop = rows.training_range
    mask = rows.batch.mask.clone()
    mask[0, : training_stop - 10, -1] = False
    model = fit_garch(replace(rows, batch=replace(rows.batch, mask=mask)))
    torch.testing.assert_close(model.alpha[-1], model.alpha[:-1].mean())
    assert 1 / 3 < float(model.start[-1] / model.start[:-1].mean()) < 3


def test_a_forecast_is_finite_where_all_assets_have_too_few_bars() -> None:
    rows, _ = make_garch_rows(n_bars=60)
    model = fit_garch(rows)
    np.testing.assert_allclose(model.alpha + model.beta, sum(TYPICAL_ALPHA_BETA))
    assert compute_forecast(model, rows).log_volatility.isfinite().all()


def test_the_mean_square_replaces_a_fitted_variance_near_zero() -> None:
    """For returns whose volatility falls from 0.03 to 0.01 the library fits ω near 0 and φ below 1: its unconditional
    variance is less than a thousandth of the mean square. Our forecasts stay near the volatilities of the returns."""
    n_bars = 600
    rows, _ = make_garch_rows(n_bars)
    _, training_stop = rows.training_range
    true_volatility = np.linspace(0.03, 0.01, n_bars)[:, None]
    returns = true_volatility * np.random.default_rng(1).normal(size=(n_bars, N))
    training_returns = returns[:training_stop, 0]
    library = arch_model(training_returns / training_returns.std(), mean="Zero", rescale=False)
    omega, alpha, beta = library.fit(disp="off").params
    assert omega / (1 - alpha - beta) < 1e-3
    x = rows.batch.x.clone()
    x[0, :, :, FEATURE_NAMES.index("return_1")] = torch.from_numpy(returns)
    rows = replace(rows, batch=replace(rows.batch, x=x))
    volatility = compute_volatility(fit_garch(rows), rows)
    assert float(volatility.min()) > 0.01 / 2
    assert float(volatility.max()) < 0.05


def test_level_and_carry_give_the_mean_of_variances_computed_one_by_one() -> None:
    omega = np.array([0.1, 0.2])
    phi = np.array([0.9, 1.0])
    v_1 = np.array([3.0, 0.5])
    level, carry = mean_variance_coefficients(omega, phi, k=3)
    v_2 = omega + phi * v_1
    v_3 = omega + phi * v_2
    np.testing.assert_allclose(level + carry * v_1, (v_1 + v_2 + v_3) / 3)


@pytest.mark.parametrize("horizon", [1, 5])
def test_the_horizon_of_the_volatility_label_is_inferred_from_the_returns(
    random_bars: Callable[..., Panel], horizon: int
) -> None:
    bars = random_bars(300, 4, holes=0.02)
    features = compute_features(bars, bars.ts + np.timedelta64(1, "h"))
    sigma = features.column("volatility_60")
    horizons = (1, 5, 20)
    labels = compute_labels(bars, sigma, horizons, horizon)
    label = np.log(labels.volatility / sigma)
    assert infer_label_horizon(features.column("return_1") ** 2, label, sigma, horizons) == horizon


def test_garch_is_fitted_to_unscaled_features(random_bars: Callable[..., Panel], tmp_path: Path) -> None:
    """In a whole fold: the scaler of its file changes no value, and its forecasts are volatilities."""
    bars = random_bars(400, 4)
    features = compute_features(bars, bars.ts + np.timedelta64(1, "h"))
    labels = compute_labels(bars, features.column("volatility_60"), (1, 5), 5)
    fold = walk_forward(features.ts, labels.end, warmup_bars=61, train_bars=250, test_bars=60, embargo_bars=2)[0]
    path = tmp_path / "garch.safetensors"
    fit_result = fit_fold(Spec("garch"), TrainConfig(), features, labels, SideInputs(), fold, path).fit_result
    header = read_header(path)
    one_row = features.values[fold.train[0], 0]
    np.testing.assert_array_equal(header.scaler.transform(one_row), one_row.astype(np.float32))
    assert fit_result.epochs == 1
    assert fit_result.parameters == 3 * len(bars.symbols) + N_CLASSES
    forecasts = predict_fold(path, features, SideInputs(), fold)
    volatility = forecasts.volatility[forecasts.valid]
    assert 0.015 < float(np.median(volatility)) < 0.025  # the random bars have a volatility of 0.02


def test_wrong_input_is_refused_with_what_to_do() -> None:
    rows, _ = make_garch_rows(n_bars=300)
    model = fit_garch(rows)
    with pytest.raises(ShapeError, match="5 assets, but this GARCH was fitted to 3; fit it to these"):
        model.initial_state(b=1, n=5)
    with pytest.raises(StateError, match="start from initial_state"):
        model.step(rows.batch, ((torch.zeros(2, N),),))  # two chunks; the batch has one
    with pytest.raises(FeatureError, match="the features have no return_1"):
        fit_garch(replace(rows, feature_names=("a", "b", "volatility_60")))
