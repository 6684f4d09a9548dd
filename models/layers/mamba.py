"""The Mamba block: a gated selective state-space layer.

Paper: Gu & Dao 2023, 2312.00752 (section 3.4, figure 3).

Glossary: b sequences · l bars · d_model · e = expand · d_model channels inside · n = d_state · k = d_conv taps ·
r = dt_rank, ⌈d_model / 16⌉ unless said · A (e, n) = −exp(A_log) · D (e,) skip · Δ = softplus(W_dt dt + bias).
State: the last k − 1 inputs of the convolution (b, k − 1, e) and h (b, e, n).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from models.layers.convolution import causal_depthwise
from models.layers.scan import selective_scan

State = tuple[Tensor, ...]


class Mamba(nn.Module):
    """(b, l, d) → (b, l, d). ``dt_min`` and ``dt_max`` bound the first step sizes Δ, per bar, log-uniform."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        inner, self.d_state = expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, d_conv).uniform_(-1, 1) / math.sqrt(d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.rand(inner) * math.log(dt_max / dt_min) + math.log(dt_min))
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.A_log, self.D, self.dt_proj.bias]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        inner, taps = self.conv_weight.shape
        return self.D.new_zeros(batch, taps - 1, inner), self.D.new_zeros(batch, inner, self.d_state)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar."""
        tail, h = self.initial_state(x.shape[0]) if state is None else state
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, tail = causal_depthwise(u, self.conv_weight, self.conv_bias, tail)
        u = silu(u)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = linear(dt, self.dt_proj.weight)
        y, h = selective_scan(
            u.transpose(1, 2),
            dt.transpose(1, 2),
            -torch.exp(self.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.D,
            z=z.transpose(1, 2),
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=h,
            return_last_state=True,
        )
        return self.out_proj(y.transpose(1, 2).to(x.dtype)), (tail, h)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it."""
        tail, h = state
        u, z = self.in_proj(x).chunk(2, dim=-1)
        window = torch.cat([tail, u[:, None]], dim=1)
        u = silu(torch.einsum("bke,ek->be", window, self.conv_weight) + self.conv_bias)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = softplus(self.dt_proj(dt))
        h = torch.exp(dt[..., None] * -torch.exp(self.A_log)) * h + (dt * u)[..., None] * B[:, None]
        y = ((h * C[:, None]).sum(-1) + self.D * u) * silu(z)
        return self.out_proj(y), (window[:, 1:], h)
