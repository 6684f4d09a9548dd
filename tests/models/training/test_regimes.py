"""The regime study: what a fold may see, and that a network can learn what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features.regimes import coming_volatility, regimes, terciles
from models.training import regimes as training
from models.training.regimes import (
    NETWORKS,
    RegimeConfig,
    RegimeNetwork,
    RegimeRows,
    fitted,
    regime_folds,
    scaled,
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
    """Features (300, 4), the first of which tells the coming month's volatility, and returns (300,)."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.permutation(np.tile([0.01, 0.02, 0.04], 10)), 10)
    returns = level * rng.choice([-1.0, 1.0], 300)
    told = np.log(np.append(level[1:], level[-1]))
    return np.column_stack([told, rng.normal(size=(300, 3))]), returns


def test_every_training_label_has_ended_before_the_test_begins(market) -> None:
    coming = coming_volatility(market[1], CONFIG.horizon_bars)
    pairs = regime_folds(DAYS, coming, LAST, CONFIG)
    assert len(pairs) > 2
    for fold, test in pairs:
        assert fold.train[-1] + CONFIG.horizon_bars < fold.train_stop <= test[0] - CONFIG.embargo_bars
        assert fold.purge_bars == CONFIG.horizon_bars
        assert not np.isnan(coming[test]).any()


def test_no_day_is_tested_twice_or_after_the_features_end(market) -> None:
    coming = coming_volatility(market[1], CONFIG.horizon_bars)
    days = np.concatenate([test for _, test in regime_folds(DAYS, coming, DAYS[250], CONFIG)])
    assert len(set(days)) == len(days)
    assert days[-1] == 250


def test_the_rows_that_choose_the_epoch_lie_behind_a_purge_of_their_own() -> None:
    learned, held_out = validation_split(np.arange(100, 200), CONFIG)
    assert learned[-1] + CONFIG.horizon_bars < held_out[0]
    assert held_out[-1] == 199
    with pytest.raises(ValueError, match="raise train_bars"):
        validation_split(np.arange(5), CONFIG)


def test_thresholds_and_scaler_do_not_see_the_test_span(market) -> None:
    features, returns = market
    fold, test = regime_folds(DAYS, coming_volatility(returns, CONFIG.horizon_bars), LAST, CONFIG)[0]
    later_features, later_returns = features.copy(), returns.copy()
    later_features[test[0] :] *= 100
    later_returns[test[0] :] *= 100
    one, other = (study_of(f, r) for f, r in (market, (later_features, later_returns)))
    assert one.thresholds[0].tobytes() == other.thresholds[0].tobytes()
    assert one.thresholds[1].tobytes() != other.thresholds[1].tobytes()
    before = slice(0, test[0])
    assert scaled(features, fold)[before].tobytes() == scaled(later_features, fold)[before].tobytes()


def study_of(features: np.ndarray, returns: np.ndarray, days: int = 300) -> training.RegimeStudy:
    return study(DAYS[:days], features[:days], returns[:days], LAST, replace(CONFIG, epochs=1, seeds=(0,)))


def test_days_that_are_still_to_come_change_nothing_that_was_said(market) -> None:
    whole, cut = study_of(*market), study_of(*market, days=240)
    count = len(cut.dates)
    assert 0 < count < len(whole.dates)
    np.testing.assert_array_equal(whole.dates[:count], cut.dates)
    for name, said in cut.said.items():
        np.testing.assert_array_equal(whole.said[name][:, :count], said, err_msg=name)


def test_what_a_model_reads_ends_with_its_row_and_begins_a_look_back_before() -> None:
    x = torch.arange(40.0)[:, None]
    windows = x.unfold(0, CONFIG.lookback_bars, 1).transpose(1, 2)
    read, labels = RegimeRows(windows, torch.arange(40), CONFIG).at(np.array([11, 30, 39]))
    assert read[:, -1, 0].tolist() == [11, 30, 39] == labels.tolist()
    assert read[:, 0, 0].tolist() == [0, 19, 28]
    assert read.shape == (3, CONFIG.lookback_bars, 1)


def test_features_after_a_test_day_never_change_what_was_said_of_it(market) -> None:
    features, returns = market
    whole = study_of(*market)
    day = len(whole.dates) - 10
    later = features.copy()
    later[np.flatnonzero(whole.dates[day] == DAYS)[0] + 1 :] += 50
    again = study_of(later, returns)
    for name in ("logistic", *NETWORKS):
        np.testing.assert_array_equal(again.said[name][:, : day + 1], whole.said[name][:, : day + 1], err_msg=name)
        assert not np.array_equal(again.said[name], whole.said[name])


def test_the_baselines_say_what_their_names_say(market) -> None:
    done = study_of(*market)
    returns = market[1]
    coming = coming_volatility(returns, CONFIG.horizon_bars)
    fold, test = regime_folds(DAYS, coming, LAST, CONFIG)[0]
    labels = regimes(coming[fold.train], terciles(coming[fold.train]))
    assert set(done.said["majority"][0, : len(test)]) == {int(np.bincount(labels).argmax())}
    expected = [np.sqrt(np.mean(returns[t - 4 : t + 1] ** 2)) for t in test]
    np.testing.assert_array_equal(done.said["persistence"][0, : len(test)], regimes(expected, done.thresholds[0]))
    assert done.parameters["majority"] == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_a_regime_that_the_last_bar_tells(name: str) -> None:
    torch.manual_seed(0)
    y = torch.randint(0, 3, (90,))
    x = 0.1 * torch.randn(90, 12, 4)
    x[:, -1, 0] += y - 1.0
    config = replace(CONFIG, epochs=30, patience=30, lr=1e-2, dropout=0.0)
    network = fitted(name, 0, (x, y), (x, y), config)
    with torch.no_grad():
        assert float((network(x).argmax(-1) == y).float().mean()) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_follows_from_its_seed_and_leaves_the_process_generator_alone(name: str) -> None:
    x, y = torch.randn(40, 12, 4), torch.randint(0, 3, (40,))
    before = torch.get_rng_state()
    one, again, other = (fitted(name, seed, (x, y), (x[:9], y[:9]), CONFIG)(x) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_networks_are_of_one_size_within_a_fifth() -> None:
    counts = [sum(p.numel() for p in RegimeNetwork(RegimeConfig().spec(n), 14, 0).parameters()) for n in NETWORKS]
    assert max(counts) / min(counts) < 1.2


def test_a_network_without_a_fit_has_no_opinion() -> None:
    assert (RegimeNetwork(CONFIG.spec("mamba"), 4, 0)(torch.randn(5, 12, 4)) == 0).all()


def test_too_short_a_history_is_refused(market) -> None:
    with pytest.raises(ValueError, match="too few for one fold"):
        study_of(*market, days=100)
