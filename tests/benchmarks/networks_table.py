"""What a network on demand (inventory SSF-13) and pooled bars (SSF-12) save where bars come one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models import zoo
from models.nets.forecast import Batch
from models.nets.on_demand import HOLD, OnDemand
from models.zoo import Spec
from tests.benchmarks.cases import Case, Work

ASSETS, FEATURES, HORIZONS = 8, 17, 3
ON = 0.2  # share of the bars at which the encoder is switched on
SIZES = {"d_model": 64, "d_state": 64, "n_layers": 4}


def networks(bars: int = 500) -> Iterator[Case]:
    """Bars of 8 assets, one at a time, through a network of 4 layers of 64 channels."""
    together = bars_of(torch.randn(bars, 1, FEATURES).expand(bars, ASSETS, FEATURES))
    apart = bars_of(torch.randn(bars, ASSETS, FEATURES))
    share = f"on for {ON:.0%} of the bars"
    makers = {
        f"{share}, all assets at once": lambda: on_demand(together, ON),
        f"{share}, each asset by itself": lambda: on_demand(apart, ON),
        "always on": lambda: on_demand(together, 1.0),
        "never on": lambda: on_demand(together, 0.0),
        "the same S4D without the switch": lambda: stepping(network("s4d"), together),
    }
    yield Case("network on demand, bar by bar, 8 assets", bars, makers, threads=1)
    pooled = {f"pool_bars {k}": lambda k=k: stepping(network("s4d", pool_bars=k), apart) for k in (4, 1)}
    yield Case("network with pooled bars, bar by bar, 8 assets", bars, pooled, threads=1)


def bars_of(x: Tensor) -> Batch:
    """The features (t, n, f) as one chunk."""
    return Batch(x[None], torch.ones(1, *x.shape[:2], dtype=torch.bool), torch.ones(1, len(x)))


def network(name: str, **options: object) -> torch.nn.Module:
    """A network of the zoo in evaluation mode."""
    return zoo.build(Spec(name, **SIZES, dropout=0.0, options=options), FEATURES, HORIZONS).eval()


def on_demand(batch: Batch, share: float) -> Work:
    """Steps through the bars with the encoder on for that share of them."""
    made = network("on_demand")
    assert isinstance(made, OnDemand)
    with torch.no_grad():
        glance = made.cheap(made.glance(batch), batch.mask)
        holding = torch.softmax(glance.logits, dim=-1)[..., HOLD].flatten()
        made.hold = 2.0 if share == 1 else float(holding.quantile(share)) if share else 0.0
        switched = float(made.switched_on(glance).float().mean())
    assert abs(switched - share) < 0.02, f"on for {switched:.0%} of the bars"
    return stepping(made, batch)


def stepping(made: torch.nn.Module, batch: Batch) -> Work:
    """Every bar in turn from the empty state."""
    bars = [batch.bars(t, t + 1) for t in range(batch.x.shape[1])]

    def run() -> None:
        state = made.initial_state(1, ASSETS)  # type: ignore[operator]
        with torch.no_grad():
            for bar in bars:
                _, state = made.step(bar, state)  # type: ignore[operator]

    return run
