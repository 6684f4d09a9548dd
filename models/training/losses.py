"""Losses of a forecast.

Glossary: b chunks · l bars · n assets · h horizons · σ trailing volatility per bar. The targets and their units are
those of ``models.training.data.Targets``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, softplus

from models.features.labels import UNKNOWN_CLASS
from models.nets.forecast import Forecast
from models.nets.regimes import regime_loss
from models.training.config import TrainConfig
from models.training.data import Targets

MIN_VARIANCE = 1e-6  # in σ²; added to the variance of earnings, so that a portfolio near cash has no high Sharpe ratio
MAX_EXPONENT = 40.0  # exp(MAX_EXPONENT) is far above any plausible forecast and far below overflow
MAX_ABS_LOG_RATIO = 3.0  # bound of log(volatility ÷ σ): a calm period after a turbulent one must not dominate the loss


def forecast_loss(forecast: Forecast, targets: Targets, config: TrainConfig) -> Tensor:
    """The weighted sum of the losses of returns, volatility and classes, a scalar.

    The losses of portfolio weights, regimes, co-moving pairs and links are added if the forecast contains them.
    Weights and pairs are compared with the returns of the first horizon, regimes with those of the last. Links count
    only at bars with a known return. A loss without a known target is 0.
    """
    first_returns = targets.returns[..., 0]
    last_returns = targets.returns[..., -1]
    loss = config.return_weight * return_loss(forecast.returns, targets.returns, config.return_loss)
    volatility = volatility_loss(forecast.log_volatility, targets.log_volatility, config.volatility_loss)
    loss = loss + config.volatility_weight * volatility
    loss = loss + config.class_weight * class_loss(forecast.logits, targets.class_5)
    if forecast.weights is not None:
        loss = loss + config.sharpe_weight * sharpe_loss(forecast.weights, first_returns)
    if forecast.regime is not None:
        loss = loss + regime_loss(forecast.regime, last_returns, targets.log_volatility, targets.horizons[-1])
    if forecast.co_movement is not None:
        loss = loss + config.class_weight * co_movement_loss(forecast.co_movement, first_returns)
    if forecast.links is not None:
        has_target = (~torch.isnan(targets.returns)).flatten(2).any(2)  # (b, l)
        is_scored = has_target[forecast.links.chunk, forecast.links.bar]
        loss = loss + config.link_weight * link_loss(forecast.links.logits[:, is_scored])
    return loss


def link_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy of logits (c, q) for q events: row 0 are the real events, rows 1 to c − 1 negatives.

    The negatives together have the same weight as the real events. log 2 if all logits are 0; 0 without logits.
    """
    if not logits.numel():
        return logits.sum()
    event_logits = logits[0]
    negative_logits = logits[1:]
    return (softplus(-event_logits).mean() + softplus(negative_logits).mean()) / 2


def co_movement_loss(logits: Tensor, returns: Tensor) -> Tensor:
    """Binary cross-entropy of the logits (b, l, n, n) that two assets move in the same direction.

    The mean is over the pairs of assets (i < j) whose returns (b, l, n) are both known and not 0; 0 without a pair.
    """
    direction = torch.where(torch.isnan(returns), 0.0, returns).sign()
    agreement = (direction[..., :, None] * direction[..., None, :]).triu(1)  # 1 same, −1 opposite, 0 no pair
    loss = binary_cross_entropy_with_logits(logits, (agreement > 0).to(logits.dtype), reduction="none")
    return (loss * agreement.abs()).sum() / agreement.abs().sum().clamp(min=1)


def sharpe_loss(weights: Tensor, returns: Tensor) -> Tensor:
    """Minus the Sharpe ratio of Σ_n weight · return, over the bars of all chunks with at least one known return.

    ``weights`` and ``returns`` (b, l, n); returns in units of σ, NaN where unknown, which counts as 0. The loss is 0
    with fewer than two such bars.
    """
    is_known = ~torch.isnan(returns)
    earnings = (weights * torch.where(is_known, returns, 0.0)).sum(-1)[is_known.any(-1)]
    if len(earnings) < 2:
        return weights.sum() * 0.0
    return -earnings.mean() / torch.sqrt(earnings.var() + MIN_VARIANCE)


def return_loss(forecast: Tensor, target: Tensor, kind: str = "huber") -> Tensor:
    """The mean loss of returns in units of σ over targets that are not NaN; 0 without one.

    ``kind``: "huber" (δ = 1 σ) or "mse", the squared error.
    """
    is_known = ~torch.isnan(target)
    difference = torch.where(is_known, forecast - target, 0.0)
    zero = torch.zeros_like(difference)
    loss = difference**2 if kind == "mse" else huber_loss(difference, zero, reduction="none")
    return loss.sum() / is_known.sum().clamp(min=1)


def volatility_loss(forecast: Tensor, target: Tensor, kind: str = "gaussian") -> Tensor:
    """The mean loss of log volatilities over targets that are not NaN; 0 without one.

    ``kind``: "gaussian", the negative log-likelihood ½ exp(2 (target − forecast)) + forecast, or "mse", the squared
    error. Targets are clipped to ±MAX_ABS_LOG_RATIO. The negative log-likelihood has its minimum where exp(forecast) is
    the root mean square of exp(target), so exp(forecast) is a volatility and not the geometric mean of volatilities.
    """
    is_known = ~torch.isnan(target)
    clipped = torch.where(is_known, target, 0.0).clamp(-MAX_ABS_LOG_RATIO, MAX_ABS_LOG_RATIO)
    if kind == "mse":
        loss = (forecast - clipped) ** 2
    else:
        loss = 0.5 * torch.exp((2 * (clipped - forecast)).clamp(max=MAX_EXPONENT)) + forecast
    return torch.where(is_known, loss, 0.0).sum() / is_known.sum().clamp(min=1)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the five classes over targets that are not UNKNOWN_CLASS; 0 without one."""
    loss = cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=UNKNOWN_CLASS, reduction="sum")
    return loss / (target != UNKNOWN_CLASS).sum().clamp(min=1)
