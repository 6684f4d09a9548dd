"""The regime study: which data a fold may read, and that a network can learn a planted relation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features.regimes import future_volatility, regimes, terciles
from models.training import regimes as training
from models.training.regimes import (
    NETWORKS,
    RegimeConfig,
    RegimeNetwork,
    RegimeRows,
    fit_network,
    regime_folds,
    scale_features,
    study,
    validation_split,
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
DAYS = np.arange("2020-01-01", "2020-10-27", dtype="datetime64[D]")
LAST = DAYS[-1]


@pytest.fixture
def market() -> tuple[np.ndarray, np.ndarray]:
    """Features (300, 4), the first of which is the next day's log volatility, and returns (300,)."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.permutation(np.tile([0.01, 0.02, 0.04], 10)), 10)
    returns = level * rng.choice([-1.0, 1.0], 300)
    next_volatility = np.log(np.append(level[1:], level[-1]))
    return np.column_stack([next_volatility, rng.normal(size=(300, 3))]), returns


def test_every_training_label_has_ended_before_the_test_begins(market) -> None:
    future = future_volatility(market[1], CONFIG.horizon_bars)
    pairs = regime_folds(DAYS, future, LAST, CONFIG)
    assert len(pairs) > 2
    for fold, test in pairs:
        assert fold.train[-1] + CONFIG.horizon_bars < fold.train_stop <= test[0] - CONFIG.embargo_bars
        assert fold.purge_bars == CONFIG.horizon_bars
        assert not np.isnan(future[test]).any()


def test_no_day_is_tested_twice_or_after_the_features_end(market) -> None:
    future = future_volatility(market[1], CONFIG.horizon_bars)
    days = np.concatenate([test for _, test in regime_folds(DAYS, future, DAYS[250], CONFIG)])
    assert len(set(days)) == len(days)
    assert days[-1] == 250


def test_a_purge_lies_between_training_and_validation_rows() -> None:
    train, validation = validation_split(np.arange(100, 200), CONFIG)
    assert train[-1] + CONFIG.horizon_bars < validation[0]
    assert validation[-1] == 199
    with pytest.raises(ValueError, match="raise train_bars"):
        validation_split(np.arange(5), CONFIG)


def test_thresholds_and_scaler_do_not_depend_on_the_test_span(market) -> None:
    features, returns = market
    fold, test = regime_folds(DAYS, future_volatility(returns, CONFIG.horizon_bars), LAST, CONFIG)[0]
    changed_features = features.copy()
    changed_returns = returns.copy()
    changed_features[test[0] :] *= 100
    changed_returns[test[0] :] *= 100
    original = run_study(features, returns)
    changed = run_study(changed_features, changed_returns)
    assert original.thresholds[0].tobytes() == changed.thresholds[0].tobytes()
    assert original.thresholds[1].tobytes() != changed.thresholds[1].tobytes()
    before = slice(0, test[0])
    assert scale_features(features, fold)[before].tobytes() == scale_features(changed_features, fold)[before].tobytes()


def run_study(features: np.ndarray, returns: np.ndarray, days: int = 300) -> training.RegimeStudy:
    return study(DAYS[:days], features[:days], returns[:days], LAST, replace(CONFIG, epochs=1, seeds=(0,)))


def test_later_days_do_not_change_earlier_predictions(market) -> None:
    whole = run_study(*market)
    truncated = run_study(*market, days=240)
    count = len(truncated.dates)
    assert 0 < count < len(whole.dates)
    np.testing.assert_array_equal(whole.dates[:count], truncated.dates)
    for name, predictions in truncated.predictions.items():
        np.testing.assert_array_equal(whole.predictions[name][:, :count], predictions, err_msg=name)


def test_a_window_ends_with_its_row_and_is_lookback_bars_long() -> None:
    x = torch.arange(40.0)[:, None]
    windows = x.unfold(0, CONFIG.lookback_bars, 1).transpose(1, 2)
    selected, labels = RegimeRows(windows, torch.arange(40), CONFIG).select(np.array([11, 30, 39]))
    assert selected[:, -1, 0].tolist() == [11, 30, 39] == labels.tolist()
    assert selected[:, 0, 0].tolist() == [0, 19, 28]
    assert selected.shape == (3, CONFIG.lookback_bars, 1)


def test_features_after_a_test_day_do_not_change_its_predictions(market) -> None:
    features, returns = market
    whole = run_study(*market)
    day = len(whole.dates) - 10
    changed_features = features.copy()
    changed_features[np.flatnonzero(whole.dates[day] == DAYS)[0] + 1 :] += 50
    changed = run_study(changed_features, returns)
    for name in ("logistic", *NETWORKS):
        expected = whole.predictions[name]
        actual = changed.predictions[name]
        np.testing.assert_array_equal(actual[:, : day + 1], expected[:, : day + 1], err_msg=name)
        assert not np.array_equal(actual, expected)


def test_the_baselines_predict_the_majority_regime_and_the_trailing_regime(market) -> None:
    result = run_study(*market)
    returns = market[1]
    future = future_volatility(returns, CONFIG.horizon_bars)
    fold, test = regime_folds(DAYS, future, LAST, CONFIG)[0]
    labels = regimes(future[fold.train], terciles(future[fold.train]))
    assert set(result.predictions["majority"][0, : len(test)]) == {int(np.bincount(labels).argmax())}
    trailing = [np.sqrt(np.mean(returns[t - 4 : t + 1] ** 2)) for t in test]
    persistence = result.predictions["persistence"][0, : len(test)]
    np.testing.assert_array_equal(persistence, regimes(trailing, result.thresholds[0]))
    assert result.parameters["majority"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_a_regime_that_the_last_bar_determines(name: str) -> None:
    torch.manual_seed(0)
    y = torch.randint(0, 3, (90,))
    x = 0.1 * torch.randn(90, 12, 4)
    x[:, -1, 0] += y - 1.0
    config = replace(CONFIG, epochs=30, patience=30, lr=1e-2, dropout=0.0)
    network = fit_network(name, 0, (x, y), (x, y), config)
    with torch.no_grad():
        assert float((network(x).argmax(-1) == y).float().mean()) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_is_determined_by_its_seed_and_does_not_use_the_global_generator(name: str) -> None:
    x = torch.randn(40, 12, 4)
    y = torch.randint(0, 3, (40,))
    state = torch.get_rng_state()
    first, same_seed, other_seed = (fit_network(name, seed, (x, y), (x[:9], y[:9]), CONFIG)(x) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same_seed)
    assert not torch.equal(first, other_seed)


def test_the_sizes_of_the_networks_differ_by_less_than_a_fifth() -> None:
    counts = [sum(p.numel() for p in RegimeNetwork(RegimeConfig().spec(n), 14, 0).parameters()) for n in NETWORKS]
    assert max(counts) / min(counts) < 1.2


def test_an_unfitted_network_returns_zero_logits() -> None:
    assert (RegimeNetwork(CONFIG.spec("mamba"), 4, 0)(torch.randn(5, 12, 4)) == 0).all()


def test_too_short_a_history_is_refused(market) -> None:
    with pytest.raises(ValueError, match="too few for one fold"):
        run_study(*market, days=100)
