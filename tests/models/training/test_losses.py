"""Losses against numbers computed by hand (MAM-16, MAM-17, S4-30)."""

import math

import pytest
import torch

from models.nets.forecast import Forecast, Links
from models.nets.regimes import Regime, regime_loss
from models.training.config import TrainConfig
from models.training.data import Targets
from models.training.losses import (
    class_loss,
    forecast_loss,
    link_loss,
    return_loss,
    sharpe_loss,
    together_loss,
    volatility_loss,
)

NAN = math.nan


def test_huber_is_half_a_square_within_one_and_linear_beyond() -> None:
    forecast = torch.tensor([0.0, 0.0, 5.0])
    target = torch.tensor([0.5, -3.0, NAN])
    assert float(return_loss(forecast, target)) == pytest.approx((0.5 * 0.25 + 2.5) / 2)
    assert float(return_loss(forecast, target, "mse")) == pytest.approx((0.25 + 9) / 2)


def test_gaussian_volatility_loss_by_hand() -> None:
    forecast = torch.tensor([0.1, 0.0])
    target = torch.tensor([0.3, NAN])
    assert float(volatility_loss(forecast, target)) == pytest.approx(0.5 * math.exp(0.4) + 0.1)
    assert float(volatility_loss(forecast, target, "mse")) == pytest.approx(0.04)


def test_gaussian_volatility_loss_is_least_at_the_root_mean_square() -> None:
    target = torch.log(torch.tensor([0.5, 1.0, 2.0]))
    best = 0.5 * math.log((0.25 + 1 + 4) / 3)
    losses = [float(volatility_loss(torch.full((3,), best + d), target)) for d in (-0.05, 0.0, 0.05)]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_a_target_volatility_above_its_bound_costs_as_much_as_the_bound() -> None:
    at_bound, above_bound = (volatility_loss(torch.zeros(1), torch.tensor([target])) for target in (3.0, 30.0))
    assert float(above_bound) == float(at_bound)


def test_class_loss_ignores_unknown_classes() -> None:
    logits = torch.zeros(3, 5)
    target = torch.tensor([1, -1, 4])
    logits[0, 1] = math.log(4)
    expected = (-math.log(4 / 8) - math.log(1 / 5)) / 2
    assert float(class_loss(logits, target)) == pytest.approx(expected)


def test_the_forecast_loss_is_the_weighted_sum_of_the_losses() -> None:
    forecast = Forecast(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 5))
    targets = Targets(torch.full((1, 1, 1, 2), 0.5), torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 2), (1, 5))
    config = TrainConfig(return_weight=2.0, volatility_weight=3.0, class_weight=5.0)
    expected = 2 * 0.125 + 3 * 0.5 * math.exp(0.6) + 5 * math.log(5)
    assert float(forecast_loss(forecast, targets, config)) == pytest.approx(expected)


def test_link_loss_counts_bars_with_a_known_return_and_weighs_an_event_like_all_its_negatives() -> None:
    """Links before the bars 0, 1 and 2, of which the first is burn-in; one event against two negatives each."""
    returns = torch.tensor([[NAN, NAN], [NAN, 0.0], [0.0, 0.0]])[None, ..., None]
    logits = torch.tensor([[9.0, 1.0, -1.0], [9.0, 2.0, 0.0], [9.0, 0.0, 3.0]])
    links = Links(logits, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    forecast = Forecast(torch.zeros(1, 3, 2, 1), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2, 5), links=links)
    targets = Targets(returns, torch.full((1, 3, 2), NAN), torch.full((1, 3, 2), -1), (1,))

    def cost(logit: float) -> float:
        return math.log1p(math.exp(logit))

    expected = (cost(-1) + cost(1)) / 4 + (cost(2) + cost(0) + cost(0) + cost(3)) / 8
    assert float(forecast_loss(forecast, targets, TrainConfig(link_weight=3.0))) == pytest.approx(3 * expected)
    assert float(link_loss(torch.zeros(5, 4))) == pytest.approx(math.log(2))
    assert float(link_loss(torch.zeros(5, 0))) == 0.0


def test_without_known_targets_loss_and_gradients_are_zero() -> None:
    parts = [torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, 5)]
    forecast = Forecast(*(p.requires_grad_() for p in parts))
    targets = Targets(torch.full((1, 2, 1, 2), NAN), torch.full((1, 2, 1), NAN), torch.full((1, 2, 1), -1), (1, 5))
    loss = forecast_loss(forecast, targets, TrainConfig())
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in parts)


def test_sharpe_loss_by_hand() -> None:
    """MAM-18, S4-29. Earnings 0.5·2 = 1, −1·1 + 1·(unknown) = −1, 3: mean 1, variance 4."""
    weights = torch.tensor([[[0.5, 0.0], [-1.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])
    returns = torch.tensor([[[2.0, 7.0], [1.0, NAN], [3.0, 0.0], [NAN, NAN]]])
    assert float(sharpe_loss(weights, returns)) == pytest.approx(-1 / 2, rel=1e-5)
    assert float(sharpe_loss(weights[:, :1], returns[:, :1])) == 0


def test_the_gradient_of_the_sharpe_loss_moves_weights_towards_the_sign_of_the_returns() -> None:
    torch.manual_seed(0)
    returns = torch.randn(1, 200, 2) + torch.tensor([0.5, -0.5])
    score = torch.zeros(2, requires_grad=True)
    sharpe_loss(torch.tanh(score + 0.1).expand(1, 200, 2), returns).backward()
    assert score.grad is not None and score.grad[0] < 0 < score.grad[1]


def test_regime_loss_by_hand() -> None:
    readout = torch.tensor([[[[0.0, 0.0, 0.0, math.log(2), 0.0]], [[0.5, 0.0, 0.0, 0.0, math.log(3)]]]])
    returns = torch.tensor([[[0.5], [-0.2]]])
    log_volatility = torch.tensor([[[0.4], [NAN]]])
    trend = (math.tanh(0.5) ** 2 + (math.tanh(0.5) + math.tanh(0.2)) ** 2) / 2
    high_volatility = -math.log(2 / 4)
    momentum = -math.log(1 / 4)  # the second bar moves against the first
    expected = (trend + high_volatility + momentum) / 3
    assert float(regime_loss(readout, returns, log_volatility, 1)) == pytest.approx(expected, rel=1e-5)
    regime = Regime.from_readout(readout)
    assert float(regime.volatility[0, 0, 0, 2]) == pytest.approx(0.5)
    assert float(regime.momentum[0, 1, 0]) == pytest.approx(0.75)


def test_together_loss_averages_over_the_pairs_with_known_returns_that_are_not_zero() -> None:
    """Three assets; one has return 0 in the first bar and one is unknown in the second: each bar has one pair left."""
    returns = torch.tensor([[[1.0, -2.0, 0.0], [1.0, 3.0, torch.nan]]])
    logits = torch.full((1, 2, 3, 3), 9.0)
    logits[0, 0, 0, 1] = logits[0, 1, 0, 1] = 0.5
    opposite = math.log1p(math.exp(0.5))
    same = math.log1p(math.exp(-0.5))
    assert float(together_loss(logits, returns)) == pytest.approx((opposite + same) / 2)
    assert float(together_loss(logits, torch.full_like(returns, torch.nan))) == 0.0
