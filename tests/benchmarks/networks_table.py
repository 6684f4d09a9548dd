"""How much time a network on demand (SSF-13) and pooled bars (SSF-12) save when bars arrive one at a time.

A network on demand has a cheap forecast for every bar, and an encoder that is switched on only at some bars.
Glossary: t bars, n assets, f features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models import zoo
from models.nets.forecast import Batch
from models.nets.on_demand import HOLD, OnDemand
from models.zoo import Spec
from tests.benchmarks.cases import Case, Work

ASSETS = 8
FEATURES = 17
HORIZONS = 3
ON_SHARE = 0.2  # share of the bars at which the encoder is switched on
SIZES = {"d_model": 64, "d_state": 64, "n_layers": 4}


def networks(bars: int = 500) -> Iterator[Case]:
    """Cases of a network with 4 layers of 64 channels that steps through bars of 8 assets, one bar at a time."""
    equal_assets = batch_of(torch.randn(bars, 1, FEATURES).expand(bars, ASSETS, FEATURES))
    different_assets = batch_of(torch.randn(bars, ASSETS, FEATURES))
    share = f"on for {ON_SHARE:.0%} of the bars"
    makers = {
        f"{share}, all assets at once": lambda: on_demand(equal_assets, ON_SHARE),
        f"{share}, each asset by itself": lambda: on_demand(different_assets, ON_SHARE),
        "always on": lambda: on_demand(equal_assets, 1.0),
        "never on": lambda: on_demand(equal_assets, 0.0),
        "the same S4D without the switch": lambda: step_through(network("s4d"), equal_assets),
    }
    yield Case("network on demand, bar by bar, 8 assets", bars, makers, threads=1)
    pooled = {f"pool_bars {k}": lambda k=k: step_through(network("s4d", pool_bars=k), different_assets) for k in (4, 1)}
    yield Case("network with pooled bars, bar by bar, 8 assets", bars, pooled, threads=1)


def batch_of(x: Tensor) -> Batch:
    """A batch of one chunk with the features ``x`` (t, n, f), without a missing bar."""
    return Batch(x[None], torch.ones(1, *x.shape[:2], dtype=torch.bool), torch.ones(1, len(x)))


def network(name: str, **options: object) -> torch.nn.Module:
    """The network ``name`` of the zoo, in evaluation mode."""
    return zoo.build(Spec(name, **SIZES, dropout=0.0, options=options), FEATURES, HORIZONS).eval()


def on_demand(batch: Batch, share: float) -> Work:
    """A function that steps a network on demand through the bars, with its encoder on at a ``share`` of them."""
    model = network("on_demand")
    assert isinstance(model, OnDemand)
    with torch.no_grad():
        forecast = model.cheap(model.gate(batch), batch.mask)
        p_hold = torch.softmax(forecast.logits, dim=-1)[..., HOLD].flatten()
        model.hold = 2.0 if share == 1 else float(p_hold.quantile(share)) if share else 0.0
        on_share = float(model.is_switched_on(forecast).float().mean())
    assert abs(on_share - share) < 0.02, f"on for {on_share:.0%} of the bars"
    return step_through(model, batch)


def step_through(model: torch.nn.Module, batch: Batch) -> Work:
    """A function that steps the model through every bar, starting from the initial state."""
    bars = [batch.bars(t, t + 1) for t in range(batch.x.shape[1])]

    def run() -> None:
        state = model.initial_state(1, ASSETS)  # type: ignore[operator]
        with torch.no_grad():
            for bar in bars:
                _, state = model.step(bar, state)  # type: ignore[operator]

    return run
