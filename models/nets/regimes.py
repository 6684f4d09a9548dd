"""What kind of market an encoder's state says it is (inventory S4-26).

Glossary: b chunks · l bars · n assets · h horizons · σ trailing volatility. A readout gives five numbers per bar and
asset, learned beside the forecasts without touching the encoder: trend (the coming return over the longest horizon
÷ (σ √h), squashed into (−1, 1)), logits of three volatility regimes, and a logit that the last move goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

CALM, WILD = -0.25, 0.25  # of log(coming volatility ÷ σ): a fifth below and a quarter above what it has been


@dataclass(frozen=True, eq=False)
class Regime:
    """``trend`` (b, l, n) in (−1, 1): direction and strength; ``volatility`` (b, l, n, 3): probability of calmer, as
    before, wilder; ``momentum`` (b, l, n): probability that the last move goes on rather than reverts."""

    trend: Tensor
    volatility: Tensor
    momentum: Tensor

    @classmethod
    def of(cls, readout: Tensor) -> Regime:
        """From the five numbers of a readout (b, l, n, 5)."""
        trend, volatility, momentum = readout.split([1, 3, 1], dim=-1)
        return cls(torch.tanh(trend[..., 0]), torch.softmax(volatility, dim=-1), torch.sigmoid(momentum[..., 0]))


def regime_loss(readout: Tensor, returns: Tensor, log_volatility: Tensor, horizon_bars: int) -> Tensor:
    """The mean of three losses of a readout (b, l, n, 5) over known targets.

    ``returns`` (b, l, n): scaled, over the longest horizon, of ``horizon_bars``; ``log_volatility`` (b, l, n); NaN
    where unknown. The last move is that over the ``horizon_bars`` before the bar, known when the bar is.
    """
    trend, volatility, momentum = readout[..., 0], readout[..., 1:4], readout[..., 4]
    known = ~torch.isnan(returns)
    squashed = torch.tanh(torch.where(known, returns, 0.0))
    error = torch.where(known, (torch.tanh(trend) - squashed) ** 2, 0.0).sum() / known.sum().clamp(min=1)
    regime = torch.where(log_volatility < CALM, 0, torch.where(log_volatility > WILD, 2, 1))
    regime = torch.where(torch.isnan(log_volatility), -1, regime)
    wild = cross_entropy(volatility.flatten(0, -2), regime.flatten(), ignore_index=-1, reduction="sum")
    wild = wild / (regime >= 0).sum().clamp(min=1)
    last, coming = returns[:, :-horizon_bars], returns[:, horizon_bars:]
    both = ~torch.isnan(last) & ~torch.isnan(coming)
    goes_on = (last * coming > 0).to(momentum.dtype)
    going = binary_cross_entropy_with_logits(momentum[:, horizon_bars:], goes_on, reduction="none")
    going = torch.where(both, going, 0.0).sum() / both.sum().clamp(min=1)
    return (error + wild + going) / 3
