"""A state-space network that runs on demand (inventory SSF-13).

A linear forecast is made for every bar; only where it expects a move, its hold class below ``hold``, is the encoder
switched on and its forecast added. The bars between are no input to the encoder: its next bar comes after a gap, which
a state-space layer takes as one longer step. ``step`` spares the work; ``forward`` does it and leaves the bars out.

Glossary: b chunks · l bars · n assets · d channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layers.errors import SizeError
from models.nets.forecast import CLASSES, Batch, Embedding, Forecast, Heads
from models.nets.sequence import Encoder, State, flat, nested
from models.nets.sequence_layers import sequence_layer
from models.nets.spec import Spec

HOLD = CLASSES // 2
GAPS_ANYWHERE = ("s4", "s4d", "dss", "s5")  # a convolution in the layer, as Mamba's, could not leave bars out


class OnDemand(nn.Module):
    """Batch → Forecast. Options: ``layer`` (a state-space layer that takes gaps anywhere: s4, s4d, dss, s5), ``hold``
    (switch on where the chance of holding is below it), and the layer's own."""

    def __init__(
        self, spec: Spec, n_features: int, n_horizons: int, layer: str = "s4d", hold: float = 0.5, **options: Any
    ) -> None:
        super().__init__()
        if layer not in GAPS_ANYWHERE:
            raise SizeError(f"{layer} cannot leave bars out; choose one of {', '.join(GAPS_ANYWHERE)}")
        chosen, self.hold, taken = sequence_layer(layer), hold, set(options)
        self.gate, self.cheap = Embedding(n_features, spec.d_model), Heads(spec.d_model, n_horizons)
        make = chosen.maker(spec, options)
        if options or "discretisation" in taken:
            raise SizeError(f"on_demand has no {', '.join(options) or 'discretisation'}; leave it out")
        self.encoder = Encoder(spec, n_features, make, chosen.gated)
        self.heads = Heads(spec.d_model, n_horizons)

    def initial_state(self, b: int, n: int) -> State:
        """The encoder's state, and how long ago each asset's last bar in it was."""
        return *self.encoder.initial_state(b, n), (self.heads.bias.new_zeros(b * n),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar, the encoder's part left out where it is off."""
        gate = self.cheap(self.gate(batch), batch.mask)
        on = self.switched_on(gate)
        gaps = _since(batch.gaps[..., None].expand(on.shape), on)
        return _added(gate, self.heads(self.encoder(batch, gaps), batch.mask), on)

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar; the encoder runs for the assets that are on, if any."""
        gate = self.cheap(self.gate(batch), batch.mask)
        on = self.switched_on(gate)
        *parts, (waited,) = state
        inner = tuple(parts)
        waited = waited + batch.gaps.expand(on.shape[0], 1).repeat_interleave(on.shape[2], dim=0)[:, 0]
        chosen = on.flatten().nonzero()[:, 0]
        if not len(chosen):
            return gate, (*inner, (waited,))
        x, mask = batch.x.flatten(0, 2)[chosen, None, None], batch.mask.flatten()[chosen, None, None]
        gaps = waited[chosen, None]
        own = tuple(tuple(t[chosen] for t in part) for part in inner)
        h, own = self.encoder.step(Batch(x, mask, gaps), own, gaps[..., None])
        heard = h.new_zeros(on.numel(), h.shape[-1]).index_copy(0, chosen, h[:, 0, 0]).view(*on.shape, -1)
        merged = [old.index_copy(0, chosen, new) for old, new in zip(flat(inner), flat(own), strict=True)]
        waited = waited.index_fill(0, chosen, 0.0)
        return _added(gate, self.heads(heard, batch.mask), on), (*nested(merged, inner), (waited,))

    def switched_on(self, gate: Forecast) -> Tensor:
        """Where the encoder runs, (b, l, n) bool."""
        return torch.softmax(gate.logits.detach(), dim=-1)[..., HOLD] < self.hold


def _since(gaps: Tensor, on: Tensor) -> Tensor:
    """Time since the last bar that was on, at bars that are (b, l, n); 0 at the others."""
    elapsed = gaps.cumsum(1)
    before = torch.where(on, elapsed, 0.0).cummax(1).values
    last = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], dim=1)
    return torch.where(on, elapsed - last, 0.0)


def _added(gate: Forecast, more: Forecast, on: Tensor) -> Forecast:
    """The gate, and where ``on`` (b, l, n) the sum of both."""
    wide = on[..., None]
    return Forecast(
        gate.returns + torch.where(wide, more.returns, 0.0),
        gate.log_volatility + torch.where(on, more.log_volatility, 0.0),
        gate.logits + torch.where(wide, more.logits, 0.0),
    )
