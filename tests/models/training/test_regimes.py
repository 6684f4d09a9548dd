"""The regime study: which data a fold may read, and that a network can learn a synthetic relation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features.regimes import REGIMES, assign_regimes, future_volatility, tercile_thresholds
from models.training.regimes import (
    NETWORKS,
    RegimeConfig,
    RegimeNetwork,
    RegimeRows,
    RegimeStudy,
    fit_network,
    regime_folds,
    run_study,
    scale_features,
    split_validation,
)

CONFIG = RegimeConfig(
    lookback_bars=12,
    horizon_bars=5,
    train_bars=120,
    test_bars=40,
    d_model=8,
    n_layers=1,
    epochs=2,
    stride_bars=2,
    seeds=(0, 1),
)
Market = tuple[np.ndarray, np.ndarray]  # features, returns
N_DAYS = 300
N_FEATURES = 4
DAYS = np.datetime64("2020-01-01", "D") + np.arange(N_DAYS)


@pytest.fixture
def market() -> Market:
    """Features (N_DAYS, N_FEATURES) and returns (N_DAYS,); the first feature is the next day's log volatility.

    The volatility has one of three values and changes every ten days.
    """
    rng = np.random.default_rng(0)
    volatility = np.repeat(rng.permutation(np.tile([0.01, 0.02, 0.04], 10)), 10)
    returns = volatility * rng.choice([-1.0, 1.0], N_DAYS)
    next_volatility = np.log(np.append(volatility[1:], volatility[-1]))
    noise = rng.normal(size=(N_DAYS, N_FEATURES - 1))
    return np.column_stack([next_volatility, noise]), returns


def test_every_training_label_has_ended_before_the_test_begins(market: Market) -> None:
    _, returns = market
    future = future_volatility(returns, CONFIG.horizon_bars)
    pairs = regime_folds(DAYS, future, DAYS[-1], CONFIG)
    assert len(pairs) > 2
    for fold, test_rows in pairs:
        assert fold.train[-1] + CONFIG.horizon_bars < fold.train_stop <= test_rows[0] - CONFIG.embargo_bars
        assert fold.purge_bars == CONFIG.horizon_bars
        assert not np.isnan(future[test_rows]).any()


def test_no_day_is_tested_twice_or_after_the_last_test_day(market: Market) -> None:
    _, returns = market
    future = future_volatility(returns, CONFIG.horizon_bars)
    last_test_day = 250
    pairs = regime_folds(DAYS, future, DAYS[last_test_day], CONFIG)
    test_days = np.concatenate([test_rows for _, test_rows in pairs])
    assert len(set(test_days)) == len(test_days)
    assert test_days[-1] == last_test_day


def test_a_purge_lies_between_training_and_validation_rows() -> None:
    train, validation = split_validation(np.arange(100, 200), CONFIG)
    assert train[-1] + CONFIG.horizon_bars < validation[0]
    assert validation[-1] == 199


def test_too_few_training_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="raise train_bars"):
        split_validation(np.arange(5), CONFIG)


def test_thresholds_and_scaler_do_not_depend_on_the_test_window(market: Market) -> None:
    """Only the first fold is trained on unchanged days alone."""
    features, returns = market
    fold, test_rows = regime_folds(DAYS, future_volatility(returns, CONFIG.horizon_bars), DAYS[-1], CONFIG)[0]
    first_test_day = test_rows[0]
    changed_features = features.copy()
    changed_returns = returns.copy()
    changed_features[first_test_day:] *= 100
    changed_returns[first_test_day:] *= 100
    original = run_small_study(features, returns)
    changed = run_small_study(changed_features, changed_returns)
    assert original.thresholds[0].tobytes() == changed.thresholds[0].tobytes()
    assert original.thresholds[1].tobytes() != changed.thresholds[1].tobytes()
    scaled = scale_features(features, fold)[:first_test_day]
    changed_scaled = scale_features(changed_features, fold)[:first_test_day]
    assert scaled.tobytes() == changed_scaled.tobytes()


def run_small_study(features: np.ndarray, returns: np.ndarray, n_days: int = N_DAYS) -> RegimeStudy:
    """The study of the first ``n_days`` days, with one epoch and one seed."""
    config = replace(CONFIG, epochs=1, seeds=(0,))
    return run_study(DAYS[:n_days], features[:n_days], returns[:n_days], DAYS[-1], config)


def test_later_days_do_not_change_earlier_predictions(market: Market) -> None:
    whole = run_small_study(*market)
    truncated = run_small_study(*market, n_days=240)
    n_dates = len(truncated.dates)
    assert 0 < n_dates < len(whole.dates)
    np.testing.assert_array_equal(whole.dates[:n_dates], truncated.dates)
    for name, predictions in truncated.predictions.items():
        np.testing.assert_array_equal(whole.predictions[name][:, :n_dates], predictions, err_msg=name)


def test_a_window_ends_with_its_row_and_is_lookback_bars_long() -> None:
    """The only feature of a session is its position, and so is its label; a window has 12 sessions."""
    features = torch.arange(40.0)[:, None]
    windows = features.unfold(0, CONFIG.lookback_bars, 1).transpose(1, 2)
    selected, labels = RegimeRows(windows, torch.arange(40), CONFIG).select(np.array([11, 30, 39]))
    first_session_positions = selected[:, 0, 0].tolist()
    last_session_positions = selected[:, -1, 0].tolist()
    assert first_session_positions == [0, 19, 28]
    assert last_session_positions == labels.tolist() == [11, 30, 39]
    assert selected.shape == (3, CONFIG.lookback_bars, 1)


def test_features_after_a_test_day_do_not_change_its_predictions(market: Market) -> None:
    features, returns = market
    whole = run_small_study(*market)
    test_day = len(whole.dates) - 10
    row = int(np.flatnonzero(whole.dates[test_day] == DAYS)[0])
    changed_features = features.copy()
    changed_features[row + 1 :] += 50
    changed = run_small_study(changed_features, returns)
    for name in ("logistic", *NETWORKS):
        expected = whole.predictions[name]
        actual = changed.predictions[name]
        np.testing.assert_array_equal(actual[:, : test_day + 1], expected[:, : test_day + 1], err_msg=name)
        assert not np.array_equal(actual, expected)


def test_the_baselines_predict_the_majority_regime_and_the_trailing_regime(
    market: Market,
) -> None:
    features, returns = market
    result = run_small_study(features, returns)
    future = future_volatility(returns, CONFIG.horizon_bars)
    fold, test_rows = regime_folds(DAYS, future, DAYS[-1], CONFIG)[0]
    labels = assign_regimes(future[fold.train], tercile_thresholds(future[fold.train]))
    assert set(result.predictions["majority"][0, : len(test_rows)]) == {int(np.bincount(labels).argmax())}
    trailing = [np.sqrt(np.mean(returns[t + 1 - CONFIG.horizon_bars : t + 1] ** 2)) for t in test_rows]
    persistence = result.predictions["persistence"][0, : len(test_rows)]
    np.testing.assert_array_equal(persistence, assign_regimes(trailing, result.thresholds[0]))
    assert result.parameters["majority"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_a_regime_that_the_last_bar_determines(name: str) -> None:
    torch.manual_seed(0)
    y = torch.randint(0, len(REGIMES), (90,))
    x = 0.1 * torch.randn(90, CONFIG.lookback_bars, N_FEATURES)
    x[:, -1, 0] += y - 1.0
    config = replace(CONFIG, epochs=30, patience=30, lr=1e-2, dropout=0.0)
    network = fit_network(name, 0, (x, y), (x, y), config)
    with torch.no_grad():
        assert float((network(x).argmax(-1) == y).float().mean()) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_is_determined_by_its_seed_and_does_not_use_the_global_generator(name: str) -> None:
    x = torch.randn(40, CONFIG.lookback_bars, N_FEATURES)
    y = torch.randint(0, len(REGIMES), (40,))
    state = torch.get_rng_state()

    def fit_and_forecast(seed: int) -> torch.Tensor:
        return fit_network(name, seed, train=(x, y), validation=(x[:9], y[:9]), config=CONFIG)(x)

    first = fit_and_forecast(seed=0)
    same_seed = fit_and_forecast(seed=0)
    other_seed = fit_and_forecast(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same_seed)
    assert not torch.equal(first, other_seed)


def test_the_sizes_of_the_networks_differ_by_less_than_a_fifth() -> None:
    networks = [RegimeNetwork(RegimeConfig().spec(name), 14, 0) for name in NETWORKS]
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert max(sizes) / min(sizes) < 1.2


def test_an_unfitted_network_returns_zero_logits() -> None:
    assert (
        RegimeNetwork(CONFIG.spec("mamba"), N_FEATURES, 0)(torch.randn(5, CONFIG.lookback_bars, N_FEATURES)) == 0
    ).all()


def test_a_history_too_short_for_one_fold_is_refused(market: Market) -> None:
    with pytest.raises(ValueError, match="too few for one fold"):
        run_small_study(*market, n_days=100)
