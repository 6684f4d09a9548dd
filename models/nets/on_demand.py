"""A state-space network that runs its encoder on demand (SSF-13).

A linear gate forecasts every bar of every asset. Where the gate's probability of the class HOLD is below the option
``hold``, the bar is switched on: the encoder reads it, and the encoder's forecast is added to the gate's. The encoder
does not read the other bars. Its next bar then follows after a longer gap, which a state-space layer computes as one
longer step. ``step`` skips the encoder at bars that are off. ``forward`` runs it at all bars and sets their gap to 0.

Glossary: b chunks · l bars · n assets · d channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layers.errors import SizeError
from models.nets.forecast import N_CLASSES, Batch, Embedding, Forecast, Heads
from models.nets.sequence import Encoder, State, flatten_state, unflatten_state
from models.nets.sequence_layers import sequence_layer
from models.nets.spec import Spec

HOLD = N_CLASSES // 2  # position of the class in the logits
GAPS_ANYWHERE = ("s4", "s4d", "dss", "s5")  # a convolution inside the layer, as in Mamba, cannot skip bars


class OnDemand(nn.Module):
    """Batch → Forecast.

    Options: ``layer``, one of GAPS_ANYWHERE; ``hold``, the probability of HOLD below which the encoder runs; and the
    options of the layer.
    """

    def __init__(
        self, spec: Spec, n_features: int, n_horizons: int, layer: str = "s4d", hold: float = 0.5, **options: Any
    ) -> None:
        super().__init__()
        if layer not in GAPS_ANYWHERE:
            raise SizeError(f"{layer} cannot leave bars out; choose one of {', '.join(GAPS_ANYWHERE)}")
        layer_entry = sequence_layer(layer)
        self.hold = hold
        has_discretisation = "discretisation" in options
        self.gate = Embedding(n_features, spec.d_model)
        self.cheap = Heads(spec.d_model, n_horizons)
        make_layer = layer_entry.layer_factory(spec, options)
        if options or has_discretisation:
            raise SizeError(f"on_demand has no {', '.join(options) or 'discretisation'}; leave it out")
        self.encoder = Encoder(spec, n_features, make_layer, layer_entry.adds_glu)
        self.heads = Heads(spec.d_model, n_horizons)

    def initial_state(self, b: int, n: int) -> State:
        """The encoder's state, then a part with the time since each asset's last bar that was on, (b · n,) in bars."""
        return *self.encoder.initial_state(b, n), (self.heads.bias.new_zeros(b * n),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        gate = self.cheap(self.gate(batch), batch.mask)
        is_on = self.is_switched_on(gate)
        gaps = _time_since_last_on(batch.gaps[..., None].expand(is_on.shape), is_on)
        return _add_where(is_on, gate, self.heads(self.encoder(batch, gaps), batch.mask))

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it; the encoder runs only for the assets that are on."""
        gate = self.cheap(self.gate(batch), batch.mask)
        is_on = self.is_switched_on(gate)
        b, _, n = is_on.shape
        *parts, (elapsed,) = state
        encoder_state = tuple(parts)
        elapsed = elapsed + batch.gaps.expand(b, 1).repeat_interleave(n, dim=0)[:, 0]
        on_index = is_on.flatten().nonzero()[:, 0]  # positions among the b · n assets of all chunks
        if not len(on_index):
            return gate, (*encoder_state, (elapsed,))
        x = batch.x.flatten(0, 2)[on_index, None, None]
        mask = batch.mask.flatten()[on_index, None, None]
        gaps = elapsed[on_index, None]
        on_state: State = tuple(tuple(t[on_index] for t in part) for part in encoder_state)
        h, on_state = self.encoder.step(Batch(x, mask, gaps), on_state, gaps[..., None])
        encoded = h.new_zeros(is_on.numel(), h.shape[-1]).index_copy(0, on_index, h[:, 0, 0]).view(*is_on.shape, -1)
        tensors = zip(flatten_state(encoder_state), flatten_state(on_state), strict=True)
        merged = [all_assets.index_copy(0, on_index, on_assets) for all_assets, on_assets in tensors]
        elapsed = elapsed.index_fill(0, on_index, 0.0)
        forecast = _add_where(is_on, gate, self.heads(encoded, batch.mask))
        return forecast, (*unflatten_state(merged, encoder_state), (elapsed,))

    def is_switched_on(self, gate: Forecast) -> Tensor:
        """Mask (b, l, n), True where the encoder runs; ``gate`` is the gate's forecast."""
        return torch.softmax(gate.logits.detach(), dim=-1)[..., HOLD] < self.hold


def _time_since_last_on(gaps: Tensor, is_on: Tensor) -> Tensor:
    """Time (b, l, n) since the previous bar that was on, or since the start of the chunk; 0 at bars that are off.

    ``gaps`` (b, l, n): time since the previous bar. ``is_on`` (b, l, n) bool.
    """
    time = gaps.cumsum(1)
    last_on = torch.where(is_on, time, 0.0).cummax(1).values
    previous_on = torch.cat([torch.zeros_like(last_on[:, :1]), last_on[:, :-1]], dim=1)
    return torch.where(is_on, time - previous_on, 0.0)


def _add_where(is_on: Tensor, gate: Forecast, encoded: Forecast) -> Forecast:
    """The sum of both forecasts where ``is_on`` (b, l, n) is True, the gate's forecast elsewhere."""
    return Forecast(
        returns=gate.returns + torch.where(is_on[..., None], encoded.returns, 0.0),
        log_volatility=gate.log_volatility + torch.where(is_on, encoded.log_volatility, 0.0),
        logits=gate.logits + torch.where(is_on[..., None], encoded.logits, 0.0),
    )
