"""The Mamba-2 block: a gated selective state-space layer with one decay rate per head.

Paper: Dao & Gu 2024, 2405.21060 (section 6, SSD, state-space duality, by blocks; section 7, the block and its heads).

Glossary: b sequences · l bars · d_model · e = expand · d_model channels inside · p = head_dim channels a head (P) · h =
e / p heads · g = n_groups of heads that share B and C (section 7.2) · n = d_state (N) · k = d_conv taps · q bars a
chunk (Q) · A (h,) = −exp(A_log) · D (h,) skip · Δ (b, l, h) = softplus(dt + dt_bias), times the bar's gap · B, C (b, l,
g, n) · x (b, l, h, p) the heads' inputs · S (b, h, p, n) the state · span: consecutive chunks that are computed at
once.

    S_t = exp(Δ_t A) S_{t−1} + Δ_t x_t B_tᵀ        y_t = S_t C_t + D x_t

``ssd_reference`` computes this recurrence bar by bar. ``ssd`` cuts the bars into chunks: within one, y = (L ∘ C Bᵀ) (Δ
x) with L[t, s] = exp(Σ_{s<r≤t} Δ_r A), whose upper triangle is set to 0 before the exponential; the state S passes from
chunk to chunk. Chunks are counted from the first bar of the call. The last chunk is padded with bars that have no
effect, so no output depends on the number of later bars.

Departs from the paper's code: sums of log decays are computed in float64. A chunk has 32 bars, the fastest length
measured on a CPU for 16 and for 64 states; the paper's code has 256, for the matrix units of a GPU.

State: the last k − 1 inputs of the convolution, its tail (b, k − 1, e + 2 g n), and S.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, silu, softplus

from models.layers.checks import check_bar, check_positive, check_sequence, check_state, check_weights
from models.layers.depthwise import causal_depthwise_silu, depthwise_silu_step
from models.layers.errors import SizeError
from models.layers.initialisers import draw_log_steps, inverse_softplus
from models.layers.kernels.mamba2_step import compute_bar
from models.layers.kernels.scan_onnx import scan_over_bars
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
MAX_SPAN_BARS = 1 << 10  # limit on the bars of one span, summed over sequences: about what a CPU's cache holds


class Mamba2(CachingModule):
    """(b, l, d) → (b, l, d). The initial step sizes Δ, in bars, are drawn log-uniformly from [dt_min, dt_max].

    ``head_dim`` must divide e. By default it is gcd(e / 4, 64): a power of two up to 64, for at least four heads where
    e ≥ 4. ``n_groups`` must divide the number of heads. Raises SizeError.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
        n_groups: int = 1,
        chunk_bars: int = 32,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        n_inner = expand * d_model
        self.head_dim = math.gcd(max(n_inner // 4, 1), 64) if head_dim is None else head_dim
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, head_dim=self.head_dim)
        check_positive(n_groups=n_groups, chunk_bars=chunk_bars)
        if n_inner % self.head_dim or n_inner // self.head_dim % n_groups:
            raise SizeError(
                f"{n_inner} channels ({expand} · {d_model}) do not make heads of {self.head_dim} in {n_groups} equal "
                "groups; choose a head_dim that divides them and n_groups that divide the heads"
            )
        self.d_model = d_model
        self.d_state = d_state
        self.n_groups = n_groups
        self.chunk_bars = chunk_bars
        n_heads = n_inner // self.head_dim
        n_mixed = n_inner + 2 * n_groups * d_state  # channels of the convolution: x, B and C
        self.split_sizes = [n_inner, n_mixed, n_heads]
        self.in_proj = nn.Linear(d_model, sum(self.split_sizes), bias=False)
        self.conv_weight = nn.Parameter(torch.empty(n_mixed, d_conv).uniform_(-1, 1) / math.sqrt(d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(n_mixed))
        initial_delta = torch.exp(draw_log_steps(n_heads, dt_min, dt_max))
        self.dt_bias = nn.Parameter(inverse_softplus(initial_delta))
        self.A_log = nn.Parameter(torch.log(torch.empty(n_heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm_weight = nn.Parameter(torch.ones(n_inner))
        self.out_proj = nn.Linear(n_inner, d_model, bias=False)
        self._step_weights = WeightCache(self._compute_step_weights)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.A_log, self.D, self.dt_bias, self.norm_weight]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return tuple(self.D.new_zeros(shape) for shape in self._state_shapes(batch))

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError.

        ``gaps`` (b, l), the time since the previous bar in bars, scale Δ; None means regular bars, all 1. A gap of 0
        marks a padded bar, which leaves the state unchanged. Padded bars may only be at the end of a sequence, since
        the convolution reads neighbouring bars whatever their gaps.
        """
        check_sequence(x, self.d_model, gaps, self.in_proj.weight)
        check_weights(self.D)
        state = self.initial_state(len(x)) if state is None else state
        check_state(state, self._state_shapes(len(x)))
        tail, S = state
        if gaps is not None:
            x = x.masked_fill(gaps[..., None] == 0, 0.0)
        z, mixed, dt = self.in_proj(x).split(self.split_sizes, dim=-1)
        mixed, next_tail = causal_depthwise_silu(mixed, self.conv_weight, self.conv_bias, tail, gaps)
        with torch.autocast(x.device.type, enabled=False):
            u, dt, B, C = self._ssd_inputs(mixed, dt, gaps)
            scan = _ssd_exported if torch.compiler.is_exporting() else partial(ssd, chunk_bars=self.chunk_bars)
            y, S = scan(u, dt, -torch.exp(self.A_log), B, C, self.D, S)
            y = self._gated_norm(y.flatten(2), z.to(y.dtype))
        return self.out_proj(y.to(x.dtype)), (next_tail.to(tail.dtype), S)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        check_bar(x, self.d_model, self.in_proj.weight)
        check_state(state, self._state_shapes(len(x)))
        is_plain = gap is None and not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if is_plain and x.dtype == self.D.dtype == torch.float32 and x.device.type == "cpu":
            return self._compiled_step(x, state)
        tail, S = state
        if gap is not None:
            x = x.masked_fill(gap[:, None] == 0, 0.0)
        z, mixed, dt = self.in_proj(x).split(self.split_sizes, dim=-1)
        mixed, next_tail = depthwise_silu_step(mixed.to(tail.dtype), self.conv_weight, self.conv_bias, tail)
        u, dt, B, C = self._ssd_inputs(mixed, dt, gap)
        y, S = _recur_one_bar(u, dt, -torch.exp(self.A_log), B, C, self.D, S)
        y = self._gated_norm(y.flatten(1), z.to(y.dtype))
        next_tail = next_tail if gap is None else torch.where(gap[:, None, None] > 0, next_tail, tail)
        return self.out_proj(y.to(x.dtype)), (next_tail, S)

    def _compiled_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As step, for float32 on a CPU and regular bars: one compiled kernel between the two projections."""
        w, w_bias, dt_bias, A, D, norm = self._step_weights()
        projected = self.in_proj(x).float().numpy()
        tail, S = (v.contiguous().numpy() for v in state)
        y = np.empty((len(x), len(norm)), np.float32)
        next_tail = np.empty_like(tail)
        next_S = np.empty_like(S)
        compute_bar(projected, tail, S, w, w_bias, dt_bias, A, D, norm, self.n_groups, y, next_tail, next_S)
        return self.out_proj(torch.from_numpy(y)), (torch.from_numpy(next_tail), torch.from_numpy(next_S))

    def _compute_step_weights(self) -> tuple[np.ndarray, ...]:
        """The arrays that the kernel reads: convolution weight and bias, dt_bias, A, D and the norm's weight."""
        weights = (self.conv_weight, self.conv_bias, self.dt_bias, -torch.exp(self.A_log), self.D, self.norm_weight)
        return tuple(v.detach().contiguous().numpy() for v in weights)

    def _state_shapes(self, batch: int) -> list[tuple[int, ...]]:
        n_mixed, n_taps = self.conv_weight.shape
        return [(batch, n_taps - 1, n_mixed), (batch, len(self.D), self.head_dim, self.d_state)]

    def _ssd_inputs(self, mixed: Tensor, dt: Tensor, gaps: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The head inputs (…, h, p), Δ (…, h), B and C (…, g, n), from the output ``mixed`` of the convolution."""
        n = self.n_groups * self.d_state
        u, B, C = mixed.to(self.D.dtype).split([self.split_sizes[0], n, n], dim=-1)
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
        y, state = _recur_one_bar(x_t, dt_t, A, B_t, C_t, D, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, chunk_bars: int = 32
) -> tuple[Tensor, Tensor]:
    """As ``ssd_reference``, by matrix products within chunks. The backward pass recomputes these products."""
    _, length, n_heads, _ = x.shape
    n_groups = B.shape[2]
    n_padding = -length % chunk_bars
    by_bar = [pad(v, (0, 0) * (v.dim() - 2) + (0, n_padding)) if n_padding else v for v in (x, dt, B, C)]
    S = state.unflatten(1, (n_groups, -1)).permute(0, 1, 4, 2, 3).flatten(3)  # (b, g, n, (h / g) p)
    y, S = _Chunked.apply(*by_bar, A, S, chunk_bars)
    last_state = S.unflatten(3, (n_heads // n_groups, -1)).permute(0, 1, 3, 4, 2).flatten(1, 2)
    return y[:, :length] + D[:, None] * x, last_state


def _ssd_exported(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``ssd_reference``, as one operator of an exported ONNX file."""

    def step(state: State, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, State]:
        y, S = _recur_one_bar(x, dt, A, B, C, D, state[0])
        return y, (S,)

    y, (last_state,) = scan_over_bars(step, (state,), x, dt, B, C)
    return y, last_state


class _Chunked(torch.autograd.Function):
    """x (b, c q, h, p), dt, B, C, A, S (b, g, n, (h / g) p), q → y and the last S, for c chunks.

    For the backward pass it saves the inputs and S at the start of every chunk.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, S: Tensor, q: int) -> Any:
        outputs = []
        starts = []
        for span in _split_into_spans(q, x, dt, B, C):
            terms = _Terms(A, q, *span)
            added = torch.matmul(terms.B.mT, terms.by_group(terms.stepped * terms.to_end))  # (b, c, g, n, (h / g) p)
            before = []  # S at the start of every chunk of the span
            for add, decay in zip(added.unbind(1), terms.decay.unbind(1), strict=True):
                before.append(S)
                S = torch.addcmul(add, decay, S)
            starts.append(torch.stack(before, dim=1))
            y = torch.matmul(terms.M(), terms.stepped.transpose(2, 3)).transpose(2, 3)  # (b, c, q, h, p)
            y_from_state = terms.by_head(torch.matmul(terms.C, starts[-1]))
            outputs.append(torch.addcmul(y, y_from_state, terms.from_start).flatten(1, 2))
        ctx.save_for_backward(x, dt, B, C, A, *starts)
        ctx.q = q
        return torch.cat(outputs, dim=1), S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gS: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, B, C, A, *starts = ctx.saved_tensors
        spans = list(zip(*([*_split_into_spans(ctx.q, v)] for v in (x, dt, B, C, gy)), starts, strict=True))
        grads = []
        gA = torch.zeros_like(A)
        for *span, gy_span, before in reversed(spans):
            terms = _Terms(A, ctx.q, *(v for (v,) in span))
            *by_bar, g_rate, gS = terms.backward(gy_span[0].unflatten(1, (-1, ctx.q)), before, gS)
            gA += (g_rate * terms.dt).sum((0, 1, 2))
            by_bar[1] = torch.addcmul(by_bar[1], g_rate, A)
            grads.append([g.flatten(1, 2) for g in by_bar])
        return *(torch.cat(g, dim=1) for g in zip(*reversed(grads), strict=True)), gA, gS, None


class _Terms:
    """Intermediate values of a span of c whole chunks, all (b, c, …).

    ``stepped``: Δ x. ``scores``: C Bᵀ. ``from_start``, ``to_end``: decay from the chunk's start to a bar, and from a
    bar to the chunk's end. ``decay``: decay over the whole chunk.
    """

    def __init__(self, A: Tensor, q: int, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> None:
        self.x, self.dt, B, C = (v.unflatten(1, (-1, q)) for v in (x, dt, B, C))
        self.B = B.transpose(2, 3)  # (b, c, g, q, n)
        self.C = C.transpose(2, 3)
        self.n_groups = self.B.shape[2]
        self.stepped = self.x * self.dt[..., None]
        # log of the decay since the chunk's start (b, c, h, q); float64, since only its differences are used
        elapsed = (self.dt * A).transpose(2, 3).double().cumsum(3)
        between = (elapsed[..., None] - elapsed[..., None, :]).to(x.dtype)  # [t, s] = Σ_{s<r≤t} Δ_r A
        self.L = between.tril_().exp_()  # 1 above the diagonal: there L could be infinite; the scores are 0 there
        self.scores = torch.matmul(self.C, self.B.mT).tril_()  # (b, c, g, q, q)
        self.from_start = torch.exp(elapsed.to(x.dtype)).transpose(2, 3)[..., None]  # (b, c, q, h, 1)
        self.to_end = self.L[..., -1, :].transpose(2, 3)[..., None]
        whole = self.from_start[:, :, -1].unflatten(2, (self.n_groups, 1, -1))  # (b, c, g, 1, h / g, 1)
        self.decay = whole.expand(*whole.shape[:-1], x.shape[-1]).flatten(4)  # (b, c, g, 1, (h / g) p)

    def M(self) -> Tensor:  # noqa: N802
        """L ∘ C Bᵀ, (b, c, h, q, q)."""
        return (self.L.unflatten(2, (self.n_groups, -1)) * self.scores[:, :, :, None]).flatten(2, 3)

    def by_group(self, x: Tensor) -> Tensor:
        """(b, c, q, h, p) → (b, c, g, q, (h / g) p)."""
        return x.unflatten(3, (self.n_groups, -1)).flatten(4).transpose(2, 3)

    def by_head(self, x: Tensor) -> Tensor:
        """(b, c, g, q, (h / g) p) → (b, c, q, h, p)."""
        return x.transpose(2, 3).reshape(self.x.shape)

    def backward(self, gy: Tensor, before: Tensor, gS: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, Δ, B, C and Δ A (b, c, q, …), and of S at the span's start.

        ``gy`` is the gradient of y, ``before`` S at every chunk's start, and ``gS`` the gradient of S at the span's
        end. The gradient of Δ covers its effect through Δ x only, not through Δ A.
        """
        q = gy.shape[2]
        read = self.by_group(gy * self.from_start)
        g_read = torch.matmul(self.C.mT, read)
        after = []  # the gradient of S at the end of every chunk, from the last chunk to the first
        for add, decay in zip(reversed(g_read.unbind(1)), reversed(self.decay.unbind(1)), strict=True):
            after.append(gS)
            gS = torch.addcmul(add, decay, gS)
        g_after = torch.stack(after[::-1], dim=1)
        by_end = self.by_head(torch.matmul(self.B, g_after)) * self.to_end
        gy_h = gy.transpose(2, 3)  # (b, c, h, q, p)
        g_stepped = torch.matmul(self.M().mT, gy_h).transpose(2, 3) + by_end
        gL = torch.matmul(gy_h, self.stepped.permute(0, 1, 3, 4, 2)).mul_(self.L).unflatten(2, (self.n_groups, -1))
        g_scores = gL.sum(3).tril_()
        gC = torch.matmul(g_scores, self.B) + torch.matmul(read, before.mT)
        entering = self.by_group(self.stepped * self.to_end)
        gB = torch.matmul(g_scores.mT, self.C) + torch.matmul(entering, g_after.mT)
        moved = gL.mul_(self.scores.tril(-1)[:, :, :, None]).flatten(2, 3)  # gradient of the log decay from s to t
        g_elapsed = (moved.sum(4) - moved.sum(3)).transpose(2, 3)  # (b, c, q, h)
        carried = self.by_head(torch.matmul(self.C, before)) * self.from_start
        by_end = (by_end * self.stepped).sum(4)
        g_elapsed = g_elapsed + (carried * gy).sum(4) - by_end
        g_decay = (g_after * before * self.decay).unflatten(4, (-1, gy.shape[4])).sum((3, 5)).flatten(2)  # (b, c, h)
        g_elapsed[:, :, q - 1] += by_end.sum(2) + g_decay
        g_rate = g_elapsed.double().flip(2).cumsum(2).flip(2).to(gy.dtype)
        g_dt = (g_stepped * self.x).sum(4)
        return g_stepped * self.dt[..., None], g_dt, gB.transpose(2, 3), gC.transpose(2, 3), g_rate, gS


def _split_into_spans(q: int, x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same slices of all tensors, of whole chunks: at least one chunk, otherwise at most MAX_SPAN_BARS bars."""
    n_chunks = max(1, MAX_SPAN_BARS // (len(x) * q))
    return zip(*(v.split(n_chunks * q, dim=1) for v in (x, *others)), strict=True)


def _recur_one_bar(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """y (b, h, p) and the state after one bar: x (b, h, p), dt (b, h), B and C (b, g, n), S (b, h, p, n)."""
    heads_per_group = x.shape[1] // B.shape[1]
    B = B.repeat_interleave(heads_per_group, 1)
    C = C.repeat_interleave(heads_per_group, 1)
    S = torch.exp(dt * A)[..., None, None] * S + (dt[..., None] * x)[..., None] * B[:, :, None]
    return (S * C[:, :, None]).sum(-1) + D[:, None] * x, S
