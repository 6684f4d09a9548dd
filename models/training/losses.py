"""Losses of a forecast.

Glossary: b chunks · l bars · n assets · h horizons · σ trailing volatility; targets as ``training.data.Targets``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, softplus

from models.features.labels import UNKNOWN
from models.nets.forecast import Forecast
from models.nets.regimes import regime_loss
from models.training.config import TrainConfig
from models.training.data import Targets

SMALLEST_VARIANCE = 1e-6  # of a bar's earnings, in σ²: a portfolio with almost no position must not get a high Sharpe
EXPONENT_BOUND = 40.0  # exp of it is far beyond any sensible forecast and far below overflow
LOG_BOUND = 3.0  # of log(volatility ÷ σ): a calm period after a turbulent one must not dominate the loss


def forecast_loss(forecast: Forecast, targets: Targets, config: TrainConfig) -> Tensor:
    """The weighted sum of the losses, each a mean over its known targets (0 when none is known).

    Losses of portfolio weights, regimes, co-moving pairs and links are added if the forecast contains them.
    """
    cost = config.return_weight * return_loss(forecast.returns, targets.returns, config.return_loss)
    volatility = volatility_loss(forecast.log_volatility, targets.log_volatility, config.volatility_loss)
    cost = cost + config.volatility_weight * volatility
    cost = cost + config.class_weight * class_loss(forecast.logits, targets.class_5)
    if forecast.weights is not None:
        cost = cost + config.sharpe_weight * sharpe_loss(forecast.weights, targets.returns[..., 0])
    if forecast.regime is not None:
        longest = targets.returns[..., -1]
        cost = cost + regime_loss(forecast.regime, longest, targets.log_volatility, targets.horizons[-1])
    if forecast.together is not None:
        cost = cost + config.class_weight * together_loss(forecast.together, targets.returns[..., 0])
    if forecast.links is not None:
        scored = (~torch.isnan(targets.returns)).flatten(2).any(2)[forecast.links.chunk, forecast.links.bar]
        cost = cost + config.link_weight * link_loss(forecast.links.logits[:, scored])
    return cost


def link_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy of logits (c, q): the first row are real events, the other rows negatives.

    All negatives together have the same weight as the real events. log 2 where all logits are 0; 0 without logits.
    """
    if not logits.numel():
        return logits.sum()
    return (softplus(-logits[0]).mean() + softplus(logits[1:]).mean()) / 2


def together_loss(logits: Tensor, returns: Tensor) -> Tensor:
    """Binary cross-entropy of logits (b, l, n, n) that two assets move in the same direction, over the pairs whose
    returns (b, l, n) are both known and not 0."""
    direction = torch.where(torch.isnan(returns), 0.0, returns).sign()
    product = (direction[..., :, None] * direction[..., None, :]).triu(1)
    cost = binary_cross_entropy_with_logits(logits, (product > 0).to(logits.dtype), reduction="none")
    return (cost * product.abs()).sum() / product.abs().sum().clamp(min=1)


def sharpe_loss(weights: Tensor, returns: Tensor) -> Tensor:
    """Minus the mean over the standard deviation of Σ_n weight · return, over the bars where a return is known.

    ``weights`` and ``returns`` (b, l, n), returns in units of σ, NaN where unknown. 0 with fewer than two such bars.
    """
    is_known = ~torch.isnan(returns)
    earnings = (weights * torch.where(is_known, returns, 0.0)).sum(-1)[is_known.any(-1)]
    if len(earnings) < 2:
        return weights.sum() * 0.0
    return -earnings.mean() / torch.sqrt(earnings.var() + SMALLEST_VARIANCE)


def return_loss(forecast: Tensor, target: Tensor, kind: str = "huber") -> Tensor:
    """Huber loss (δ = 1 σ) or mean squared error of scaled returns, over targets that are not NaN."""
    is_known = ~torch.isnan(target)
    difference = torch.where(is_known, forecast - target, 0.0)
    cost = difference**2 if kind == "mse" else huber_loss(difference, torch.zeros_like(difference), reduction="none")
    return cost.sum() / is_known.sum().clamp(min=1)


def volatility_loss(forecast: Tensor, target: Tensor, kind: str = "gaussian") -> Tensor:
    """Gaussian negative log-likelihood, ½ exp(2 (target − forecast)) + forecast, or mean squared error of the logs.

    The likelihood has its minimum where exp(forecast) is the root mean square of exp(target), so the forecast is a
    volatility and not the exponential of a mean log.
    """
    is_known = ~torch.isnan(target)
    bounded = torch.where(is_known, target, 0.0).clamp(-LOG_BOUND, LOG_BOUND)
    cost = (
        (forecast - bounded) ** 2
        if kind == "mse"
        else 0.5 * torch.exp((2 * (bounded - forecast)).clamp(max=EXPONENT_BOUND)) + forecast
    )
    return torch.where(is_known, cost, 0.0).sum() / is_known.sum().clamp(min=1)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the five classes over targets that are not UNKNOWN."""
    cost = cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=UNKNOWN, reduction="sum")
    return cost / (target != UNKNOWN).sum().clamp(min=1)
