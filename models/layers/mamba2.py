"""The Mamba-2 block: a gated selective state-space layer whose heads each forget at one rate.

Paper: Dao & Gu 2024, 2405.21060 (section 6, SSD by blocks; section 7, the block and its heads).

Glossary: b sequences · l bars · d_model · e = expand · d_model channels inside · p = head_dim channels a head (P) ·
h = e / p heads · g = n_groups of heads that share B and C (section 7.2) · n = d_state (N) · k = d_conv taps · q bars a
chunk (Q) · A (h,) = −exp(A_log) · D (h,) skip · Δ (b, l, h) = softplus(dt + dt_bias), times the bar's gap · B, C (b, l,
g, n) · S (b, h, p, n) the state.

    S_t = exp(Δ_t A) S_{t−1} + Δ_t x_t B_tᵀ        y_t = S_t C_t + D x_t

``ssd_reference`` is that recurrence. ``ssd`` cuts the bars into chunks: within one, y = (L ∘ C Bᵀ) (Δ x) with L[t, s] =
exp(Σ_{s<r≤t} Δ_r A), masked before it is exponentiated; between chunks the state. Chunks are counted from the first bar
given and the last is filled up with bars that do nothing, so no output depends on how many bars follow it.

State: the last k − 1 inputs of the convolution (b, k − 1, e + 2 g n) and S.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from models.layers.checks import check_bar, check_positive, check_sequence, check_state
from models.layers.depthwise import causal_depthwise_silu, depthwise_silu_step
from models.layers.errors import SizeError
from models.layers.irregular import in_blocks
from models.layers.scan_exported import over_bars

State = tuple[Tensor, ...]
SPAN_ELEMENTS = 1 << 19  # of (b, h, q, bars) worked on at once: about what the last-level cache holds


class Mamba2(nn.Module):
    """(b, l, d) → (b, l, d). ``dt_min`` and ``dt_max`` bound the first step sizes Δ, per bar, log-uniform.

    ``head_dim`` divides the channels inside; unless said, the largest power of two that leaves four heads, 64 at most.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
        n_groups: int = 1,
        chunk_bars: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        inner = expand * d_model
        self.head_dim = math.gcd(max(inner // 4, 1), 64) if head_dim is None else head_dim
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, head_dim=self.head_dim)
        check_positive(n_groups=n_groups, chunk_bars=chunk_bars)
        if inner % self.head_dim or inner // self.head_dim % n_groups:
            raise SizeError(
                f"{inner} channels ({expand} · {d_model}) do not make heads of {self.head_dim} in {n_groups} equal "
                "groups; choose a head_dim that divides them and n_groups that divide the heads"
            )
        self.d_model, self.d_state, self.n_groups, self.chunk_bars = d_model, d_state, n_groups, chunk_bars
        heads, mixed = inner // self.head_dim, inner + 2 * n_groups * d_state
        self.sizes = [inner, mixed, heads]
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
        self.conv_weight = nn.Parameter(torch.empty(mixed, d_conv).uniform_(-1, 1) / math.sqrt(d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(mixed))
        dt = torch.exp(torch.rand(heads) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.log(torch.empty(heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.A_log, self.D, self.dt_bias, self.norm_weight]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return tuple(self.D.new_zeros(shape) for shape in self._shapes(batch))

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar; ``gaps`` (b, l) scale Δ, 0 marks a padded bar.

        A padded bar holds the state; padding may stand at the end of a sequence only, since the convolution reads the
        bars as they stand. Raises ShapeError, DtypeError, StateError.
        """
        check_sequence(x, self.d_model, gaps)
        state = self.initial_state(len(x)) if state is None else state
        check_state(state, self._shapes(len(x)))
        if gaps is not None:
            x = x.masked_fill(gaps[..., None] == 0, 0.0)
        z, mixed, dt = self.in_proj(x).split(self.sizes, dim=-1)
        mixed, tail = causal_depthwise_silu(mixed, self.conv_weight, self.conv_bias, state[0], gaps)
        with torch.autocast(x.device.type, enabled=False):
            u, dt, B, C = self._parts(mixed, dt, gaps)
            form = _ssd_exported if torch.compiler.is_exporting() else partial(ssd, chunk_bars=self.chunk_bars)
            y, last = form(u, dt, -torch.exp(self.A_log), B, C, self.D, state[1])
            y = self._gated_norm(y.flatten(2), z.to(y.dtype))
        return self.out_proj(y.to(x.dtype)), (tail.to(state[0].dtype), last)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        check_bar(x, self.d_model)
        check_state(state, self._shapes(len(x)))
        tail, S = state
        if gap is not None:
            x = x.masked_fill(gap[:, None] == 0, 0.0)
        z, mixed, dt = self.in_proj(x).split(self.sizes, dim=-1)
        mixed, after = depthwise_silu_step(mixed.to(tail.dtype), self.conv_weight, self.conv_bias, tail)
        u, dt, B, C = self._parts(mixed, dt, gap)
        y, S = _one_bar(u, dt, -torch.exp(self.A_log), B, C, self.D, S)
        y = self._gated_norm(y.flatten(1), z.to(y.dtype))
        after = after if gap is None else torch.where(gap[:, None, None] > 0, after, tail)
        return self.out_proj(y.to(x.dtype)), (after, S)

    def _shapes(self, batch: int) -> list[tuple[int, ...]]:
        mixed, taps = self.conv_weight.shape
        return [(batch, taps - 1, mixed), (batch, len(self.D), self.head_dim, self.d_state)]

    def _parts(self, mixed: Tensor, dt: Tensor, gaps: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The head inputs (…, h, p), Δ (…, h), B and C (…, g, n) of what the convolution gave."""
        n = self.n_groups * self.d_state
        u, B, C = mixed.to(self.D.dtype).split([self.sizes[0], n, n], dim=-1)
        dt = softplus(dt.to(self.D.dtype) + self.dt_bias)
        dt = dt if gaps is None else dt * gaps[..., None].to(dt.dtype)
        by_group = (self.n_groups, self.d_state)
        return u.unflatten(-1, (-1, self.head_dim)), dt, B.unflatten(-1, by_group), C.unflatten(-1, by_group)

    def _gated_norm(self, y: Tensor, z: Tensor) -> Tensor:
        """y · SiLU(z) divided by its root mean square within each group of heads, times a learned weight."""
        y = (y * silu(z)).unflatten(-1, (self.n_groups, -1))
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).flatten(-2) * self.norm_weight


def ssd_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """y (b, l, h, p) and the last state (b, h, p, n): the recurrence, bar by bar; shapes as in the glossary."""
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        y, state = _one_bar(x_t, dt_t, A, B_t, C_t, D, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, chunk_bars: int = 64
) -> tuple[Tensor, Tensor]:
    """As ``ssd_reference``, by matrix products in chunks; a span of chunks keeps its inputs alone and runs twice."""
    (b, length, heads, _), groups = x.shape, B.shape[2]
    short = -length % chunk_bars
    by_bar = [pad(v, (0, 0) * (v.dim() - 2) + (0, short)) if short else v for v in (x, dt, B, C)]
    S = state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3).flatten(3)  # (b, g, n, (h / g) p)

    def run(S: Tensor, *span: Tensor) -> tuple[Tensor, Tensor]:
        return _span(A, chunk_bars, S, *span)

    bars = max(1, SPAN_ELEMENTS // (b * heads * chunk_bars * chunk_bars)) * chunk_bars
    y, S = in_blocks(run, S, *by_bar, bars=bars)
    last = S.unflatten(3, (heads // groups, -1)).permute(0, 1, 3, 4, 2).flatten(1, 2)
    return y[:, :length] + D[:, None] * x, last


def _ssd_exported(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``ssd_reference``, as one operator of a graph that leaves torch."""

    def step(state: State, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, State]:
        y, S = _one_bar(x, dt, A, B, C, D, state[0])
        return y, (S,)

    y, (last,) = over_bars(step, (state,), x, dt, B, C)
    return y, last


def _span(A: Tensor, q: int, S: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, c q, h, p) and the last S of c whole chunks; S (b, g, n, (h / g) p) before and after."""
    x, dt, B, C = (v.unflatten(1, (-1, q)) for v in (x, dt, B, C))  # (b, c, q, …)
    elapsed = (dt * A).transpose(2, 3).double().cumsum(3)  # (b, c, h, q); double, since its differences are what counts
    between = (elapsed[..., None] - elapsed[..., None, :]).to(x.dtype)  # [t, s] = Σ_{s<r≤t} Δ_r A
    L = torch.exp(between.tril())  # above the diagonal it could be infinite, and its gradient then not a number
    from_start = torch.exp(elapsed.to(x.dtype)).transpose(2, 3)  # (b, c, q, h)
    to_end = L[..., -1, :].transpose(2, 3)
    B, C = B.transpose(2, 3), C.transpose(2, 3)  # (b, c, g, q, n)
    groups = B.shape[2]
    scores = torch.matmul(C, B.transpose(3, 4))  # (b, c, g, q, q)
    M = (L.unflatten(2, (groups, -1)) * scores.tril()[:, :, :, None]).flatten(2, 3)
    stepped = x * dt[..., None]
    y = torch.matmul(M, stepped.transpose(2, 3)).transpose(2, 3)  # (b, c, q, h, p)
    entering = _by_group(stepped * to_end[..., None], groups)
    added = torch.matmul(B.transpose(3, 4), entering)  # (b, c, g, n, (h / g) p)
    decay = from_start[:, :, -1].unflatten(2, (groups, -1)).repeat_interleave(x.shape[-1], 3)[:, :, :, None]
    before = []
    for add, kept in zip(added.unbind(1), decay.unbind(1), strict=True):
        before.append(S)
        S = torch.addcmul(add, kept, S)
    carried = torch.matmul(C, torch.stack(before, dim=1))  # (b, c, g, q, (h / g) p)
    carried = carried.transpose(2, 3).reshape(x.shape) * from_start[..., None]
    return (y + carried).flatten(1, 2), S


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(b, c, q, h, p) → (b, c, g, q, (h / g) p)."""
    return x.unflatten(3, (groups, -1)).flatten(4).transpose(2, 3)


def _one_bar(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, h, p) and the state after one bar: x (b, h, p), dt (b, h), B and C (b, g, n), S (b, h, p, n)."""
    heads = x.shape[1] // B.shape[1]
    B, C = B.repeat_interleave(heads, 1), C.repeat_interleave(heads, 1)
    S = torch.exp(dt * A)[..., None, None] * S + (dt[..., None] * x)[..., None] * B[:, :, None]
    return (S * C[:, :, None]).sum(-1) + D[:, None] * x, S
