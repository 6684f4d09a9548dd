"""Trading costs: commission and slippage as fractions of the traded notional, charged at the fill."""

from __future__ import annotations

from dataclasses import dataclass

BPS = 1e-4


@dataclass(frozen=True)
class Costs:
    """Fractions of the traded notional |Δ position|: ``commission`` paid to the broker, ``slippage`` to the market."""

    commission: float = 0.0
    slippage: float = 0.0

    def __post_init__(self) -> None:
        if not (self.commission >= 0 and self.slippage >= 0):
            raise ValueError(f"costs cannot be negative: {self}")

    @classmethod
    def from_bps(cls, commission_bps: float, slippage_bps: float) -> Costs:
        """Costs given in basis points: 10 bps are 0.001."""
        return cls(commission_bps * BPS, slippage_bps * BPS)

    @property
    def rate(self) -> float:
        """The total cost of one unit of traded notional."""
        return self.commission + self.slippage
