"""What a forecast costs.

Glossary: b chunks · l bars · n assets · h horizons · σ trailing volatility; targets as ``training.data.Targets``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss

from models.features.labels import UNKNOWN
from models.nets.forecast import Forecast
from models.training.config import TrainConfig
from models.training.data import Targets

LOG_BOUND = 3.0  # of log(volatility ÷ σ): a calm stretch after a storm must not outweigh everything else


def forecast_loss(forecast: Forecast, targets: Targets, config: TrainConfig) -> Tensor:
    """The weighted sum of the three losses, each a mean over its known targets (0 when none is known)."""
    return (
        config.return_weight * return_loss(forecast.returns, targets.returns, config.return_loss)
        + config.volatility_weight
        * volatility_loss(forecast.log_volatility, targets.log_volatility, config.volatility_loss)
        + config.class_weight * class_loss(forecast.logits, targets.class_5)
    )


def return_loss(forecast: Tensor, target: Tensor, kind: str = "huber") -> Tensor:
    """Huber loss (δ = 1 σ) or mean squared error of scaled returns, over targets that are not NaN."""
    known = ~torch.isnan(target)
    difference = torch.where(known, forecast - target, 0.0)
    cost = difference**2 if kind == "mse" else huber_loss(difference, torch.zeros_like(difference), reduction="none")
    return cost.sum() / known.sum().clamp(min=1)


def volatility_loss(forecast: Tensor, target: Tensor, kind: str = "gaussian") -> Tensor:
    """Gaussian negative log-likelihood, ½ exp(2 (target − forecast)) + forecast, or mean squared error of the logs.

    The first is least where exp(forecast) is the root mean square of exp(target), so the forecast is a volatility and
    not the exponential of a mean log.
    """
    known = ~torch.isnan(target)
    bounded = torch.where(known, target, 0.0).clamp(-LOG_BOUND, LOG_BOUND)
    cost = (forecast - bounded) ** 2 if kind == "mse" else 0.5 * torch.exp(2 * (bounded - forecast)) + forecast
    return torch.where(known, cost, 0.0).sum() / known.sum().clamp(min=1)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the five classes over targets that are not UNKNOWN."""
    cost = cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=UNKNOWN, reduction="sum")
    return cost / (target != UNKNOWN).sum().clamp(min=1)
