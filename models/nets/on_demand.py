"""A state-space network that runs its encoder on demand (SSF-13).

A linear gate forecasts every bar of every asset. Where the gate's probability of the class HOLD is below the option
``hold``, the bar is switched on: the encoder reads the bar, and its forecast is added to the gate's forecast. The
encoder skips all other bars; the gap before its next bar becomes longer, and a state-space layer computes the longer
gap as one longer step. ``step`` does not run the encoder at skipped bars. ``forward`` runs it at all bars and sets the
gap of the skipped bars to 0, which leaves the state unchanged.

Glossary: b chunks · l bars · n assets · d channels. Ids: .github/sources.md.
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
LAYERS_THAT_SKIP_BARS = ("s4", "s4d", "dss", "s5")  # Mamba's convolution cannot skip bars


class OnDemand(nn.Module):
    """Batch → Forecast.

    Options: ``layer``, one of LAYERS_THAT_SKIP_BARS; ``hold``, the probability of HOLD below which the encoder runs;
    and the options of the layer. Raises SizeError for another layer or option.
    """

    def __init__(
        self, spec: Spec, n_features: int, n_horizons: int, layer: str = "s4d", hold: float = 0.5, **options: Any
    ) -> None:
        super().__init__()
        if layer not in LAYERS_THAT_SKIP_BARS:
            raise SizeError(f"{layer} cannot leave bars out; choose one of {', '.join(LAYERS_THAT_SKIP_BARS)}")
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
        """The parts of the encoder's state, then one part with one tensor (b · n,): the time in bars since each asset's
        last bar that was switched on."""
        return *self.encoder.initial_state(b, n), (self.heads.bias.new_zeros(b * n),)

    def forward(self, batch: Batch) -> Forecast:
        """The forecast of every bar."""
        gate_forecast = self.cheap(self.gate(batch), batch.mask)
        is_on = self.is_switched_on(gate_forecast)
        gaps = _time_since_last_on(batch.gaps[..., None].expand(is_on.shape), is_on)
        return _add_where(is_on, gate_forecast, self.heads(self.encoder(batch, gaps), batch.mask))

    def step(self, batch: Batch, state: State) -> tuple[Forecast, State]:
        """The forecast of one more bar, and the state after it; the encoder runs only for the assets that are switched
        on."""
        gate_forecast = self.cheap(self.gate(batch), batch.mask)
        is_on = self.is_switched_on(gate_forecast)
        b, _, n = is_on.shape
        *encoder_parts, (elapsed,) = state
        encoder_state = tuple(encoder_parts)
        elapsed = elapsed + batch.gaps.expand(b, 1).repeat_interleave(n, dim=0)[:, 0]
        on_index = is_on.flatten().nonzero()[:, 0]  # positions among the b · n assets of all chunks
        if not len(on_index):
            return gate_forecast, (*encoder_state, (elapsed,))
        x = batch.x.flatten(0, 2)[on_index, None, None]
        mask = batch.mask.flatten()[on_index, None, None]
        gaps = elapsed[on_index, None]
        on_state: State = tuple(tuple(tensor[on_index] for tensor in part) for part in encoder_state)
        h, on_state = self.encoder.step(Batch(x, mask, gaps), on_state, gaps[..., None])
        encoded = h.new_zeros(is_on.numel(), h.shape[-1]).index_copy(0, on_index, h[:, 0, 0]).view(*is_on.shape, -1)
        tensors = zip(flatten_state(encoder_state), flatten_state(on_state), strict=True)
        merged = [all_assets.index_copy(0, on_index, on_assets) for all_assets, on_assets in tensors]
        elapsed = elapsed.index_fill(0, on_index, 0.0)
        forecast = _add_where(is_on, gate_forecast, self.heads(encoded, batch.mask))
        return forecast, (*unflatten_state(merged, encoder_state), (elapsed,))

    def is_switched_on(self, gate_forecast: Forecast) -> Tensor:
        """Mask (b, l, n) bool, True where the encoder runs."""
        return torch.softmax(gate_forecast.logits.detach(), dim=-1)[..., HOLD] < self.hold


def _time_since_last_on(gaps: Tensor, is_on: Tensor) -> Tensor:
    """Time (b, l, n) in bars since the previous bar that was switched on, or since the start of the chunk; 0 where
    ``is_on`` (b, l, n) bool is False.

    ``gaps`` (b, l, n): time since the previous bar, in bars.
    """
    time_in_chunk = gaps.cumsum(1)
    last_on = torch.where(is_on, time_in_chunk, 0.0).cummax(1).values
    previous_on = torch.cat([torch.zeros_like(last_on[:, :1]), last_on[:, :-1]], dim=1)
    return torch.where(is_on, time_in_chunk - previous_on, 0.0)


def _add_where(is_on: Tensor, gate_forecast: Forecast, encoded: Forecast) -> Forecast:
    """The sum of both forecasts where ``is_on`` (b, l, n) is True, the gate's forecast elsewhere."""
    return Forecast(
        returns=gate_forecast.returns + torch.where(is_on[..., None], encoded.returns, 0.0),
        log_volatility=gate_forecast.log_volatility + torch.where(is_on, encoded.log_volatility, 0.0),
        logits=gate_forecast.logits + torch.where(is_on[..., None], encoded.logits, 0.0),
    )
