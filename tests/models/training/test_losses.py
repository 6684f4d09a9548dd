"""Losses equal numbers computed by hand (MAM-16, MAM-17, S4-30; ids: .github/sources.md)."""

import math

import pytest
import torch

from models.features.labels import UNKNOWN_CLASS
from models.nets.forecast import Forecast, Links
from models.nets.regimes import Regime, regime_loss
from models.training.config import TrainConfig
from models.training.data import Targets
from models.training.losses import (
    MAX_ABS_LOG_RATIO,
    class_loss,
    co_movement_loss,
    forecast_loss,
    link_loss,
    return_loss,
    sharpe_loss,
    volatility_loss,
)

NAN = math.nan


def test_huber_loss_is_half_the_square_up_to_an_error_of_one_and_linear_above() -> None:
    """The errors are 0.5 and 3; the third target is unknown."""
    forecast = torch.tensor([0.0, 0.0, 5.0])
    target = torch.tensor([0.5, -3.0, NAN])
    assert float(return_loss(forecast, target, "huber")) == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)
    assert float(return_loss(forecast, target, "mse")) == pytest.approx((0.5**2 + 3**2) / 2)


def test_gaussian_volatility_loss_is_half_the_exponential_plus_the_forecast() -> None:
    forecast = torch.tensor([0.1, 0.0])
    target = torch.tensor([0.3, NAN])
    assert float(volatility_loss(forecast, target)) == pytest.approx(0.5 * math.exp(2 * (0.3 - 0.1)) + 0.1)


def test_squared_volatility_loss_is_the_mean_squared_difference_of_known_targets() -> None:
    forecast = torch.tensor([0.1, 0.0])
    target = torch.tensor([0.3, NAN])
    assert float(volatility_loss(forecast, target, "mse")) == pytest.approx((0.3 - 0.1) ** 2)


def test_gaussian_volatility_loss_is_least_at_the_root_mean_square() -> None:
    target = torch.log(torch.tensor([0.5, 1.0, 2.0]))
    log_rms = 0.5 * math.log((0.5**2 + 1**2 + 2**2) / 3)
    below, at_rms, above = (float(volatility_loss(torch.full((3,), log_rms + d), target)) for d in (-0.05, 0.0, 0.05))
    assert at_rms < below
    assert at_rms < above


def test_a_log_volatility_above_its_bound_has_the_loss_of_the_bound() -> None:
    at_bound = volatility_loss(torch.zeros(1), torch.tensor([MAX_ABS_LOG_RATIO]))
    above_bound = volatility_loss(torch.zeros(1), torch.tensor([10 * MAX_ABS_LOG_RATIO]))
    assert float(above_bound) == float(at_bound)


def test_class_loss_ignores_unknown_classes() -> None:
    """The first row has the probability 4 / (4 + 4 · 1) for class 1, the last one 1 / 5 for class 4."""
    logits = torch.zeros(3, 5)
    logits[0, 1] = math.log(4)
    target = torch.tensor([1, UNKNOWN_CLASS, 4])
    expected = (-math.log(4 / 8) - math.log(1 / 5)) / 2
    assert float(class_loss(logits, target)) == pytest.approx(expected)


def test_the_forecast_loss_is_the_weighted_sum_of_the_losses() -> None:
    forecast = Forecast(
        returns=torch.zeros(1, 1, 1, 2), log_volatility=torch.zeros(1, 1, 1), logits=torch.zeros(1, 1, 1, 5)
    )
    targets = Targets(
        returns=torch.full((1, 1, 1, 2), 0.5),
        log_volatility=torch.full((1, 1, 1), 0.3),
        class_5=torch.full((1, 1, 1), 2),
        horizons=(1, 5),
    )
    config = TrainConfig(return_weight=2.0, volatility_weight=3.0, class_weight=5.0)
    huber = 0.5 * 0.5**2
    gaussian = 0.5 * math.exp(2 * 0.3)
    cross_entropy = math.log(5)
    expected = 2 * huber + 3 * gaussian + 5 * cross_entropy
    assert float(forecast_loss(forecast, targets, config)) == pytest.approx(expected)


def test_link_loss_counts_only_bars_with_a_known_return_and_weighs_an_event_like_all_its_negatives() -> None:
    """One event and two negatives (the rows of the logits) in each of the bars 0, 1 and 2; bar 0 has no return."""
    returns = torch.tensor([[NAN, NAN], [NAN, 0.0], [0.0, 0.0]])[None, ..., None]
    logits = torch.tensor([[9.0, 1.0, -1.0], [9.0, 2.0, 0.0], [9.0, 0.0, 3.0]])
    links = Links(logits, chunk=torch.zeros(3, dtype=torch.int64), bar=torch.arange(3))
    forecast = Forecast(
        returns=torch.zeros(1, 3, 2, 1),
        log_volatility=torch.zeros(1, 3, 2),
        logits=torch.zeros(1, 3, 2, 5),
        links=links,
    )
    targets = Targets(
        returns=returns,
        log_volatility=torch.full((1, 3, 2), NAN),
        class_5=torch.full((1, 3, 2), UNKNOWN_CLASS),
        horizons=(1,),
    )

    def negative_loss(logit: float) -> float:
        """The loss of a negative; that of an event with this logit is ``negative_loss(-logit)``."""
        return math.log1p(math.exp(logit))

    event_loss = (negative_loss(-1) + negative_loss(1)) / 2
    mean_negative_loss = (negative_loss(2) + negative_loss(0) + negative_loss(0) + negative_loss(3)) / 4
    expected = (event_loss + mean_negative_loss) / 2
    assert float(forecast_loss(forecast, targets, TrainConfig(link_weight=3.0))) == pytest.approx(3 * expected)


def test_the_link_loss_of_zero_logits_is_log_two_and_without_logits_zero() -> None:
    assert float(link_loss(torch.zeros(5, 4))) == pytest.approx(math.log(2))
    assert float(link_loss(torch.zeros(5, 0))) == 0.0


def test_without_known_targets_loss_and_gradients_are_zero() -> None:
    outputs = {
        "returns": torch.zeros(1, 2, 1, 2, requires_grad=True),
        "log_volatility": torch.zeros(1, 2, 1, requires_grad=True),
        "logits": torch.zeros(1, 2, 1, 5, requires_grad=True),
    }
    targets = Targets(
        returns=torch.full((1, 2, 1, 2), NAN),
        log_volatility=torch.full((1, 2, 1), NAN),
        class_5=torch.full((1, 2, 1), UNKNOWN_CLASS),
        horizons=(1, 5),
    )
    loss = forecast_loss(Forecast(**outputs), targets, TrainConfig())
    loss.backward()
    assert float(loss.detach()) == 0
    for output in outputs.values():
        assert output.grad is not None
        assert not output.grad.any()


def test_sharpe_loss_is_minus_the_mean_over_the_standard_deviation_of_the_earnings() -> None:
    """MAM-18, S4-29: the earnings are 0.5 · 2 = 1, −1 · 1 = −1 and 1 · 3 = 3, with mean 1 and standard deviation 2.

    An unknown return counts as 0; the last bar has no known return.
    """
    weights = torch.tensor([[[0.5, 0.0], [-1.0, 1.0], [1.0, 0.0], [9.0, 9.0]]])
    returns = torch.tensor([[[2.0, 7.0], [1.0, NAN], [3.0, 0.0], [NAN, NAN]]])
    assert float(sharpe_loss(weights, returns)) == pytest.approx(-1 / 2, rel=1e-5)


def test_the_sharpe_loss_of_a_single_bar_is_zero() -> None:
    assert float(sharpe_loss(torch.ones(1, 1, 2), torch.ones(1, 1, 2))) == 0


def test_the_gradient_of_the_sharpe_loss_moves_weights_towards_the_sign_of_the_returns() -> None:
    torch.manual_seed(0)
    returns = torch.randn(1, 200, 2) + torch.tensor([0.5, -0.5])
    score = torch.zeros(2, requires_grad=True)
    sharpe_loss(torch.tanh(score + 0.1).expand(1, 200, 2), returns).backward()
    assert score.grad is not None
    gradient_of_rising, gradient_of_falling = score.grad  # a descent step adds minus the gradient
    assert gradient_of_rising < 0 < gradient_of_falling


def test_regime_loss_is_the_mean_of_the_losses_of_trend_volatility_and_momentum() -> None:
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


def test_co_movement_loss_is_the_mean_over_the_pairs_with_known_returns_that_are_not_zero() -> None:
    """Only the pair of assets 0 and 1 counts: the return of asset 2 is 0 in the first bar, unknown in the second."""
    returns = torch.tensor([[[1.0, -2.0, 0.0], [1.0, 3.0, torch.nan]]])
    logits = torch.full((1, 2, 3, 3), 9.0)
    logits[0, 0, 0, 1] = logits[0, 1, 0, 1] = 0.5
    opposite = math.log1p(math.exp(0.5))
    same = math.log1p(math.exp(-0.5))
    assert float(co_movement_loss(logits, returns)) == pytest.approx((opposite + same) / 2)


def test_co_movement_loss_without_known_returns_is_zero() -> None:
    assert float(co_movement_loss(torch.ones(1, 2, 3, 3), torch.full((1, 2, 3), torch.nan))) == 0.0
