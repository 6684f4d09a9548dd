"""DSS: diagonal state spaces that share one state matrix between all channels, in two forms of the kernel.

Paper: Gupta, Gu, Berant 2022, 2203.14343 (section 3: proposition 1, the forms exp and softmax; appendix: Skew-HiPPO).

Glossary: b sequences · l bars · d channels (H) · m = N/2 conjugate pairs of the state · λ (m,), Re λ = −exp(log_decay)
· Δ (d,) step size · w (d, m) learned weights, complex · D (d,) skip · K_j kernel at a distance of j bars · L =
kernel_bars · h (b, d, m, 2) the state, real and imaginary part.

    exp      K_j = 2 Re Σ_m w (e^{λΔ} − 1) / λ · e^{λΔj}
    softmax  K_j = 2 Re Σ_m w / λ · e^{λΔj} / Σ_{r<L} e^{λΔr}  =  the exp form with w / (e^{λΔL} − 1) in place of w

    h_t = e^{λΔ} h_{t−1} + x_t        y_t = 2 Re Σ_m v h_t + D x_t        with v (d, m) the factor of e^{λΔj} in K_j

Departs from the paper in three points. Re λ < 0 holds in both forms, so the recurrence stays bounded and no denominator
is zero; the paper's softmax form does not restrict λ, and divides every row by its largest term. The softmax sums over
a fixed L instead of the input's length, so a longer input does not change earlier outputs. N counts both states of a
conjugate pair.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.checks import (
    check_bar,
    check_choice,
    check_even,
    check_positive,
    check_sequence,
    check_state,
    check_weights,
)
from models.layers.hippo import SPECTRA
from models.layers.initialisers import draw_log_steps
from models.layers.irregular import diagonal_ssm_irregular
from models.layers.kernels.diagonal_cpu import ssm_step
from models.layers.scan import diagonal_ssm
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
FORMS = ("exp", "softmax")


class DSS(CachingModule):
    """(b, l, d) → (b, l, d).

    The initial step sizes Δ, in time per bar, are drawn log-uniformly from [dt_min, dt_max]. ``d_state`` is N, an even
    number; ``form`` is one of FORMS and ``spectrum`` of hippo.SPECTRA. Raises SizeError.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        form: str = "exp",
        spectrum: str = "legs",
        kernel_bars: int = 1024,
        learn_dt: bool = True,
        dt_min: float = 0.01,
        dt_max: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, kernel_bars=kernel_bars)
        check_even(d_state)
        check_choice("form", form, FORMS)
        check_choice("spectrum", spectrum, SPECTRA)
        self.form = form
        self.kernel_bars = kernel_bars
        eigenvalues = torch.as_tensor(SPECTRA[spectrum](d_state))
        self.log_decay = nn.Parameter(torch.log(-eigenvalues.real).float())
        self.frequency = nn.Parameter(eigenvalues.imag.float())
        log_dt = draw_log_steps(d_model, dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self.w = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))
        self._step_weights = WeightCache(self._compute_step_weights)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.log_dt]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.w.new_zeros(batch, *self.w.shape),)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, NotFiniteError, StateError.

        ``gaps`` (b, l), the time since the previous bar in bars, multiply Δ; without them all gaps are 1. A gap of 0
        marks a padded bar, which leaves the state unchanged.
        """
        check_sequence(x, self.D.shape[0], gaps)
        check_weights(self.D)
        with torch.autocast(x.device.type, enabled=False):
            h = None if state is None else self._unpack(state, len(x))
            signal = x.to(self.D.dtype)
            A, dt = self._continuous()
            a_bar, hold, weights = self._discrete(A, dt)
            if gaps is None:
                y, h = diagonal_ssm(signal, a_bar, 2 * weights, self.D, h)
            else:
                y, h = diagonal_ssm_irregular(signal, A, dt, gaps, weights, self.D, h, B=1 / hold)
        return y.to(x.dtype), (torch.view_as_real(h),)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it. ``gap`` (b,) as in forward. Raises as forward."""
        check_bar(x, self.D.shape[0])
        if gap is not None:
            y, state = self.forward(x[:, None], state, gap[:, None])
            return y[:, 0], state
        is_float32 = x.dtype == self.D.dtype == torch.float32
        has_kernel = is_float32 and x.device.type == "cpu" and not torch.compiler.is_exporting()
        if has_kernel and not torch.is_grad_enabled():
            return self._compiled_step(x, state)
        a_bar, _, weights = self._discrete(*self._continuous())
        h = a_bar * self._unpack(state, len(x)) + x.to(self.D.dtype)[..., None]
        y = 2 * (weights * h).real.sum(-1) + self.D * x
        return y.to(x.dtype), (torch.view_as_real(h),)

    def _compiled_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``step``, in one kernel call. The arrays of the weights are cached until a weight changes."""
        check_state(state, [(len(x), *self.w.shape)])
        weights, D = self._step_weights()
        x_array = x.contiguous().numpy()
        h = state[0].contiguous().numpy()
        y = np.empty_like(x_array)
        next_h = np.empty_like(h)
        ssm_step(x_array, weights, D, h, y, next_h)
        return torch.from_numpy(y), (torch.from_numpy(next_h),)

    def _compute_step_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The arguments ``weights`` (d, m, 4) and D (d,) of ``ssm_step``, as arrays."""
        a_bar, _, weights = self._discrete(*self._continuous())
        step_weights = torch.cat([torch.view_as_real(a_bar), torch.view_as_real(2 * weights)], dim=-1)
        return step_weights.detach().numpy(), self.D.detach().numpy()

    def _unpack(self, state: State, batch: int) -> Tensor:
        """h (b, d, m) complex. Raises StateError."""
        check_state(state, [(batch, *self.w.shape)])
        return torch.view_as_complex(state[0].to(self.D.dtype).contiguous())

    def _continuous(self) -> tuple[Tensor, Tensor]:
        """λ for every channel (d, m), complex, and Δ (d,)."""
        eigenvalues = torch.complex(-torch.exp(self.log_decay), self.frequency)
        return eigenvalues.expand(len(self.D), -1), torch.exp(self.log_dt)

    def _discrete(self, A: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """e^{λΔ}, (e^{λΔ} − 1) / λ and v, each (d, m) complex. v does not include the factor 2 of a conjugate pair."""
        exponent = A * dt[:, None]
        hold = torch.expm1(exponent) / A
        weights = torch.view_as_complex(self.w) * hold
        if self.form == "softmax":
            weights = weights / torch.expm1(exponent * self.kernel_bars)
        return torch.exp(exponent), hold, weights
