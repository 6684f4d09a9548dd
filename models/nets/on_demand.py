"""A state-space network that runs its encoder on demand (SSF-13).

A linear gate forecasts every bar. Only where it expects a move, with a probability of the hold class below ``hold``,
the encoder runs and its forecast is added. The other bars are no input of the encoder: its next bar comes after a
gap, which a state-space layer takes as one longer step. ``step`` skips the encoder at those bars; ``forward`` computes
all bars and gives the others a gap of 0.

Glossary: b chunks · l bars · n assets · d channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layers.errors import SizeError
from models.nets.forecast import CLASSES, Batch, Embedding, Forecast, Heads
from models.nets.sequence import Encoder, State, flatten_state, unflatten_state
from models.nets.sequence_layers import sequence_layer
from models.nets.spec import Spec

HOLD = CLASSES // 2
GAPS_ANYWHERE = ("s4", "s4d", "dss", "s5")  # a convolution inside the layer, as in Mamba, cannot skip bars


class OnDemand(nn.Module):
    """Batch → Forecast.

    Options: ``layer``, a state-space layer that takes gaps anywhere (s4, s4d, dss, s5); ``hold``, the probability of
    holding below which the encoder runs; and the options of the layer.
    """

    def __init__(
        self, spec: Spec, n_features: int, n_horizons: int, layer: str = "s4d", hold: float = 0.5, **options: Any
    ) -> None:
        super().__init__()
        if layer not in GAPS_ANYWHERE:
            raise SizeError(f"{layer} cannot leave bars out; choose one of {', '.join(GAPS_ANYWHERE)}")
        sequence = sequence_layer(layer)
        self.hold = hold
        option_names = set(options)
        self.gate = Embedding(n_features, spec.d_model)
        self.cheap = Heads(spec.d_model, n_horizons)
        make_layer = sequence.layer_factory(spec, options)
        if options or "discretisation" in option_names:
            raise SizeError(f"on_demand has no {', '.join(options) or 'discretisation'}; leave it out")
        self.encoder = Encoder(spec, n_features, make_layer, sequence.adds_glu)
        self.heads = Heads(spec.d_model, n_horizons)

    def initial_state(self, b: int, n: int) -> State:
        """The encoder's state, and the time since each asset's last bar in the encoder (b · n,)."""
        return *self.encoder.initial_state(b, n), (self.heads.bias.new_zeros(b * n),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar, without the encoder's part where the encoder is off."""
        gate = self.cheap(self.gate(batch), batch.mask)
        on = self.switched_on(gate)
        gaps = _since_last_on(batch.gaps[..., None].expand(on.shape), on)
        return _add_where(gate, self.heads(self.encoder(batch, gaps), batch.mask), on)

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it; the encoder runs only for the assets that are on."""
        gate = self.cheap(self.gate(batch), batch.mask)
        on = self.switched_on(gate)
        *parts, (elapsed,) = state
        encoder_state = tuple(parts)
        elapsed = elapsed + batch.gaps.expand(on.shape[0], 1).repeat_interleave(on.shape[2], dim=0)[:, 0]
        rows = on.flatten().nonzero()[:, 0]
        if not len(rows):
            return gate, (*encoder_state, (elapsed,))
        x = batch.x.flatten(0, 2)[rows, None, None]
        mask = batch.mask.flatten()[rows, None, None]
        gaps = elapsed[rows, None]
        row_state: State = tuple(tuple(t[rows] for t in part) for part in encoder_state)
        h, row_state = self.encoder.step(Batch(x, mask, gaps), row_state, gaps[..., None])
        encoded = h.new_zeros(on.numel(), h.shape[-1]).index_copy(0, rows, h[:, 0, 0]).view(*on.shape, -1)
        before_after = zip(flatten_state(encoder_state), flatten_state(row_state), strict=True)
        merged = [before.index_copy(0, rows, after) for before, after in before_after]
        elapsed = elapsed.index_fill(0, rows, 0.0)
        forecast = _add_where(gate, self.heads(encoded, batch.mask), on)
        return forecast, (*unflatten_state(merged, encoder_state), (elapsed,))

    def switched_on(self, gate: Forecast) -> Tensor:
        """Where the encoder runs, (b, l, n) bool."""
        return torch.softmax(gate.logits.detach(), dim=-1)[..., HOLD] < self.hold


def _since_last_on(gaps: Tensor, on: Tensor) -> Tensor:
    """Time since the previous bar that was on, for bars that are on (b, l, n); 0 at the others."""
    elapsed = gaps.cumsum(1)
    before = torch.where(on, elapsed, 0.0).cummax(1).values
    last = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], dim=1)
    return torch.where(on, elapsed - last, 0.0)


def _add_where(gate: Forecast, encoded: Forecast, on: Tensor) -> Forecast:
    """The sum of both forecasts where ``on`` (b, l, n), the gate's elsewhere."""
    wide = on[..., None]
    return Forecast(
        gate.returns + torch.where(wide, encoded.returns, 0.0),
        gate.log_volatility + torch.where(on, encoded.log_volatility, 0.0),
        gate.logits + torch.where(wide, encoded.logits, 0.0),
    )
