"""Market regimes read from an encoder's state (S4-26).

A readout is five numbers per bar and asset. They are trained together with the forecasts, but their loss passes no
gradient into the encoder:
trend       its tanh estimates tanh(coming return over the longest horizon ÷ (σ √(bars of the horizon)))
volatility  three logits: the volatility falls, stays or rises
momentum    a logit that the coming return has the sign of the last return

Glossary: b chunks · l bars · n assets · σ trailing volatility per bar. Ids: .github/sources.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

# the volatility stays where log(coming volatility ÷ σ) is in [FALLS_BELOW, RISES_ABOVE], that is 0.78 σ to 1.28 σ
FALLS_BELOW = -0.25
RISES_ABOVE = 0.25


@dataclass(frozen=True, eq=False)
class Regime:
    """The market regime of every bar and asset.

    ``trend`` (b, l, n) in (−1, 1): its sign is the direction, its absolute value the strength. ``volatility``
    (b, l, n, 3): probabilities that the volatility falls, stays, rises. ``momentum`` (b, l, n): probability that the
    coming return has the sign of the last return.
    """

    trend: Tensor
    volatility: Tensor
    momentum: Tensor

    @classmethod
    def from_readout(cls, readout: Tensor) -> Regime:
        """The regime of a readout (b, l, n, 5)."""
        trend, volatility, momentum = readout.split([1, 3, 1], dim=-1)
        return cls(torch.tanh(trend[..., 0]), torch.softmax(volatility, dim=-1), torch.sigmoid(momentum[..., 0]))


def regime_loss(readout: Tensor, returns: Tensor, log_volatility: Tensor, horizon_bars: int) -> Tensor:
    """The mean of the losses of trend, volatility and momentum, each over its known targets. A loss without known
    targets is 0.

    ``readout`` (b, l, n, 5). ``returns`` (b, l, n): log returns over the ``horizon_bars`` bars of the longest horizon ÷
    (σ √horizon_bars). ``log_volatility`` (b, l, n): log(coming volatility ÷ σ). Both are NaN where unknown. The last
    return of a bar is the return that began ``horizon_bars`` bars before it; the first bars have none.
    """
    trend = readout[..., 0]
    volatility = readout[..., 1:4]
    momentum = readout[..., 4]
    is_known = ~torch.isnan(returns)
    target = torch.tanh(torch.where(is_known, returns, 0.0))
    trend_loss = torch.where(is_known, (torch.tanh(trend) - target) ** 2, 0.0).sum() / is_known.sum().clamp(min=1)
    change_class = torch.where(log_volatility < FALLS_BELOW, 0, torch.where(log_volatility > RISES_ABOVE, 2, 1))
    change_class = torch.where(torch.isnan(log_volatility), -1, change_class)
    volatility_loss = cross_entropy(volatility.flatten(0, -2), change_class.flatten(), ignore_index=-1, reduction="sum")
    volatility_loss = volatility_loss / (change_class >= 0).sum().clamp(min=1)
    last_returns = returns[:, :-horizon_bars]
    coming_returns = returns[:, horizon_bars:]
    has_both = ~torch.isnan(last_returns) & ~torch.isnan(coming_returns)
    has_same_sign = (last_returns * coming_returns > 0).to(momentum.dtype)
    momentum_loss = binary_cross_entropy_with_logits(momentum[:, horizon_bars:], has_same_sign, reduction="none")
    momentum_loss = torch.where(has_both, momentum_loss, 0.0).sum() / has_both.sum().clamp(min=1)
    return (trend_loss + volatility_loss + momentum_loss) / 3
