"""The Mamba block: a gated selective state-space layer.

Paper: Gu & Dao 2023, 2312.00752 (section 3.4, figure 3).

Glossary: b sequences · l bars · d_model · e = expand · d_model channels inside · n = d_state · k = d_conv taps ·
r = dt_rank, ⌈d_model / 16⌉ by default · A (e, n) = −exp(A_log), decay rates · D (e,) skip · u input of the scan, z its
gate, both (b, l, e) · B, C (b, l, n) · dt (b, l, r), from which Δ (b, l, e) = softplus(W_dt dt + bias), the step size.
State: the last k − 1 inputs of the convolution, its tail (b, k − 1, e), and h (b, e, n).

``Mamba.simplified`` is the variant of MAM-11 to MAM-13: dt of rank 1, and one A for all channels.

Ids such as MAM-11: .github/sources.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from models.layers.checks import check_bar, check_choice, check_positive, check_sequence, check_state, check_weights
from models.layers.depthwise import causal_depthwise_silu, depthwise_silu_step
from models.layers.initialisers import draw_log_steps, inverse_softplus
from models.layers.scan import DISCRETISATIONS, discretise, selective_scan

State = tuple[Tensor, ...]


class Mamba(nn.Module):
    """(b, l, d) → (b, l, d). The initial step sizes Δ, in bars, are drawn log-uniformly from [dt_min, dt_max].

    ``discretisation`` is one of scan.DISCRETISATIONS. With ``shared_decay`` all channels share one row of A.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        discretisation: str = "zoh_euler",
        shared_decay: bool = False,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        check_choice("discretisation", discretisation, DISCRETISATIONS)
        n_inner = expand * d_model
        self.d_model = d_model
        self.d_state = d_state
        self.discretisation = discretisation
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        check_positive(dt_rank=self.dt_rank)
        self.in_proj = nn.Linear(d_model, 2 * n_inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(n_inner, d_conv).uniform_(-1, 1) / math.sqrt(d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(n_inner))
        self.x_proj = nn.Linear(n_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, n_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        initial_delta = torch.exp(draw_log_steps(n_inner, dt_min, dt_max))
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(initial_delta))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(1 if shared_decay else n_inner, 1))
        self.D = nn.Parameter(torch.ones(n_inner))
        self.out_proj = nn.Linear(n_inner, d_model, bias=False)

    @classmethod
    def simplified(cls, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> Mamba:
        """The block of the source articles: dt has rank 1, and all channels share one row of A."""
        return cls(d_model, d_state, d_conv, expand, dt_rank=1, shared_decay=True)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.A_log, self.D, self.dt_proj.bias]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        n_inner, n_taps = self.conv_weight.shape
        return self.D.new_zeros(batch, n_taps - 1, n_inner), self.D.new_zeros(batch, n_inner, self.d_state)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError.

        ``gaps`` (b, l), the time since the previous bar in bars, scale Δ; None means regular bars, all 1. A gap of 0
        marks a padded bar, which leaves the state unchanged. Padded bars may only be at the end of a sequence.
        """
        check_sequence(x, self.d_model, gaps, self.in_proj.weight)
        check_weights(self.D)
        tail, h = self.initial_state(len(x)) if state is None else self._checked_state(state, len(x))
        if gaps is not None:
            x = x.masked_fill(gaps[..., None] == 0, 0.0)
        weight_u, weight_z = self.in_proj.weight.chunk(2)  # two products: no output has to be split and copied
        u = linear(x, weight_u)
        z = linear(x, weight_z)
        u, tail = causal_depthwise_silu(u, self.conv_weight, self.conv_bias, tail, gaps)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = linear(dt, self.dt_proj.weight)
        y, h = selective_scan(
            u.transpose(1, 2),
            dt.transpose(1, 2),
            self._decay(),
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.D,
            z=z.transpose(1, 2),
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=h,
            return_last_state=True,
            gaps=gaps,
            discretisation=self.discretisation,
        )
        return self.out_proj(y.transpose(1, 2).to(x.dtype)), (tail, h)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        check_bar(x, self.d_model, self.in_proj.weight)
        tail, h = self._checked_state(state, len(x))
        if gap is not None:
            x = x.masked_fill(gap[:, None] == 0, 0.0)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, next_tail = depthwise_silu_step(u, self.conv_weight, self.conv_bias, tail)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = softplus(self.dt_proj(dt))
        if gap is not None:
            delta = delta * gap[:, None]
            next_tail = torch.where(gap[:, None, None] > 0, next_tail, tail)
        decay, input_factor = discretise(delta[..., None], self._decay(), self.discretisation)
        h = decay * h + input_factor * u[..., None] * B[:, None]
        y = ((h * C[:, None]).sum(-1) + self.D * u) * silu(z)
        return self.out_proj(y), (next_tail, h)

    def step_sizes(self, x: Tensor, state: State | None = None) -> Tensor:
        """Δ (b, l, e) of every bar and inner channel, for regular bars x (b, l, d) (MAM-35).

        Δ decides how much a bar changes the state: near 0 the bar is ignored, a large Δ replaces the past by the bar.
        Raises ShapeError, DtypeError, StateError.
        """
        check_sequence(x, self.d_model)
        tail, _ = self.initial_state(len(x)) if state is None else self._checked_state(state, len(x))
        weight_u, _ = self.in_proj.weight.chunk(2)
        u = linear(x, weight_u)
        u, _ = causal_depthwise_silu(u, self.conv_weight, self.conv_bias, tail)
        return softplus(self.dt_proj(self.x_proj(u)[..., : self.dt_rank]))

    def _decay(self) -> Tensor:
        """A (e, n)."""
        return -torch.exp(self.A_log).expand(len(self.D), -1)

    def _checked_state(self, state: State, batch: int) -> State:
        """``state``, unchanged. Raises StateError if its shapes are not those of the layer."""
        n_inner, n_taps = self.conv_weight.shape
        check_state(state, [(batch, n_taps - 1, n_inner), (batch, n_inner, self.d_state)])
        return state
