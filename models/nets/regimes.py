"""Market regimes read from an encoder's state (S4-26).

Glossary: b chunks · l bars · n assets · h horizons · σ trailing volatility. A readout is five numbers per bar and
asset, learned beside the forecasts without a gradient into the encoder: trend (the coming return over the longest
horizon ÷ (σ √h), squashed into (−1, 1)), logits of three volatility regimes, and a logit that the last move goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

CALM, WILD = -0.25, 0.25  # bounds of log(coming volatility ÷ σ): a fifth below and a quarter above σ


@dataclass(frozen=True, eq=False)
class Regime:
    """``trend`` (b, l, n) in (−1, 1): direction and strength; ``volatility`` (b, l, n, 3): probabilities that it falls,
    stays, rises; ``momentum`` (b, l, n): probability that the last move goes on rather than reverts."""

    trend: Tensor
    volatility: Tensor
    momentum: Tensor

    @classmethod
    def from_readout(cls, readout: Tensor) -> Regime:
        """The regime of a readout (b, l, n, 5)."""
        trend, volatility, momentum = readout.split([1, 3, 1], dim=-1)
        return cls(torch.tanh(trend[..., 0]), torch.softmax(volatility, dim=-1), torch.sigmoid(momentum[..., 0]))


def regime_loss(readout: Tensor, returns: Tensor, log_volatility: Tensor, horizon_bars: int) -> Tensor:
    """The mean of the three losses (trend, volatility, momentum) of a readout (b, l, n, 5) over known targets.

    ``returns`` (b, l, n): scaled, over the longest horizon, of ``horizon_bars``; ``log_volatility`` (b, l, n); NaN
    where unknown. The last move is the return over the ``horizon_bars`` before the bar, known at the bar.
    """
    trend = readout[..., 0]
    volatility = readout[..., 1:4]
    momentum = readout[..., 4]
    is_known = ~torch.isnan(returns)
    target = torch.tanh(torch.where(is_known, returns, 0.0))
    trend_loss = torch.where(is_known, (torch.tanh(trend) - target) ** 2, 0.0).sum() / is_known.sum().clamp(min=1)
    regime = torch.where(log_volatility < CALM, 0, torch.where(log_volatility > WILD, 2, 1))
    regime = torch.where(torch.isnan(log_volatility), -1, regime)
    volatility_loss = cross_entropy(volatility.flatten(0, -2), regime.flatten(), ignore_index=-1, reduction="sum")
    volatility_loss = volatility_loss / (regime >= 0).sum().clamp(min=1)
    last = returns[:, :-horizon_bars]
    coming = returns[:, horizon_bars:]
    are_known = ~torch.isnan(last) & ~torch.isnan(coming)
    goes_on = (last * coming > 0).to(momentum.dtype)
    momentum_loss = binary_cross_entropy_with_logits(momentum[:, horizon_bars:], goes_on, reduction="none")
    momentum_loss = torch.where(are_known, momentum_loss, 0.0).sum() / are_known.sum().clamp(min=1)
    return (trend_loss + volatility_loss + momentum_loss) / 3
