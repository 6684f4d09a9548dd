"""Trading costs: commission and slippage as fractions of the traded notional, paid at the fill."""

from __future__ import annotations

from dataclasses import dataclass

BASIS_POINT = 1e-4


@dataclass(frozen=True)
class Costs:
    """Costs as fractions of the traded notional, which counts buys and sells with the same sign.

    ``commission`` is paid to the broker; ``slippage`` is the difference between the fill and the open. Raises
    ValueError for a negative or NaN cost.
    """

    commission: float = 0.0
    slippage: float = 0.0

    def __post_init__(self) -> None:
        if not (self.commission >= 0 and self.slippage >= 0):
            raise ValueError(f"costs cannot be negative: {self}")

    @classmethod
    def from_bps(cls, commission_bps: float, slippage_bps: float) -> Costs:
        """Costs from basis points: 10 bps are the fraction 0.001."""
        return cls(commission_bps * BASIS_POINT, slippage_bps * BASIS_POINT)

    @property
    def rate(self) -> float:
        """The total cost of one unit of traded notional."""
        return self.commission + self.slippage
