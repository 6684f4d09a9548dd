"""S4D: a state-space layer with one diagonal complex state matrix per channel.

Paper: Gu, Gupta, Goel, Ré 2022, 2206.11893 (section 3; initial values section 4).

Glossary: b sequences · l bars · d channels (H) · m = N/2 conjugate pairs of the state · A, C (d, m) complex · Δ (d,)
step size · z = ΔA · D (d,) skip · Ā, B̄ discretised; B is fixed to 1, since outputs depend on the product C·B only:

    zoh       Ā = exp(ΔA), B̄ = (Ā − 1) / A              zero-order hold, equation 3
    bilinear  Ā = (1 + ΔA/2) / (1 − ΔA/2), B̄ = Δ / (1 − ΔA/2)

    h_t = Ā h_{t−1} + x_t        y_t = 2 Re(C B̄ h_t) + D x_t        h (b, d, m, 2), real and imaginary part

B̄ is moved from the recurrence to the output map, which changes the scale of h and nothing else.
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
    check_gap,
    check_positive,
    check_sequence,
    check_state,
    check_weights,
)
from models.layers.hippo import SPECTRA
from models.layers.initialisers import draw_log_steps
from models.layers.irregular import diagonal_ssm_irregular
from models.layers.kernels import complex_pairs, scan_onnx
from models.layers.kernels.diagonal_cpu import ssm_gap_step, ssm_step
from models.layers.scan import diagonal_ssm
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
DISCRETISATIONS = ("zoh", "bilinear")


class S4D(CachingModule):
    """(b, l, d) → (b, l, d). The initial step sizes Δ, in bars, are drawn log-uniformly from [dt_min, dt_max].

    ``spectrum`` is a key of hippo.SPECTRA, ``discretisation`` one of DISCRETISATIONS. ``learn_dt=False`` fixes Δ at its
    initial values.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        spectrum: str = "legs",
        dt_min: float = 0.01,
        dt_max: float = 0.5,
        learn_dt: bool = True,
        discretisation: str = "zoh",
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model)
        check_even(d_state)
        check_choice("spectrum", spectrum, SPECTRA)
        check_choice("discretisation", discretisation, DISCRETISATIONS)
        self.discretisation = discretisation
        a = torch.as_tensor(SPECTRA[spectrum](d_state)).repeat(d_model, 1)
        self.log_decay = nn.Parameter(torch.log(-a.real).float())
        self.frequency = nn.Parameter(a.imag.float())
        log_dt = draw_log_steps(d_model, dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))
        self._step_weights = WeightCache(self._compute_step_weights)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.log_dt]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.C.new_zeros(batch, *self.C.shape),)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError.

        ``gaps`` (b, l), the time since the previous bar in bars, scale Δ; without them all gaps are 1. A gap of 0
        marks a padded bar, which leaves the state unchanged. Raises SizeError for gaps unless ``discretisation`` is
        "zoh".
        """
        check_sequence(x, self.D.shape[0], gaps)
        check_weights(self.D)
        with torch.autocast(x.device.type, enabled=False):
            h = None if state is None else self._unpack(state, len(x))
            signal = x.to(self.D.dtype)
            a_bar, b_bar, C = self._discrete()
            if gaps is None:
                y, h = diagonal_ssm(signal, a_bar, 2 * C * b_bar, self.D, h)
            else:
                check_choice("discretisation with gaps", self.discretisation, ("zoh",))
                scan = scan_onnx.diagonal_ssm_irregular if torch.compiler.is_exporting() else diagonal_ssm_irregular
                dt = torch.exp(self.log_dt)
                y, h = scan(signal, self._continuous(), dt, gaps, C * b_bar, self.D, h, 1 / b_bar)
        return y.to(x.dtype), (torch.view_as_real(h),)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        has_kernel = not torch.is_grad_enabled() and x.dtype == torch.float32 and x.device.type == "cpu"
        if torch.compiler.is_exporting():
            return self._step_exported(x, state, gap)
        if has_kernel and (gap is None or self.discretisation == "zoh"):
            return self._compiled_step(x, state, gap)
        check_bar(x, self.D.shape[0])
        a_bar, b_bar, C = self._discrete()
        decay = a_bar
        input_factor = torch.ones_like(a_bar)
        if gap is not None:
            check_choice("discretisation with gaps", self.discretisation, ("zoh",))
            z = self._continuous() * torch.exp(self.log_dt)[:, None]
            exponent = z * gap.to(self.D.dtype)[:, None, None]
            decay = torch.exp(exponent)
            input_factor = torch.expm1(exponent) / torch.expm1(z)
            x = x.masked_fill(gap[:, None] == 0, 0.0)
        h = decay * self._unpack(state, len(x)) + input_factor * x[..., None]
        y = 2 * (C * b_bar * h).real.sum(-1) + self.D * x
        return y, (torch.view_as_real(h),)

    def _compiled_step(self, x: Tensor, state: State, gap: Tensor | None) -> tuple[Tensor, State]:
        """As step, for float32 on a CPU: one compiled kernel."""
        if not state or len(state) > 1 or state[0].dtype != x.dtype:
            check_state(state, [(len(x), *self.C.shape)])
        weights, gap_weights, D = self._step_weights()
        x_array = x.contiguous().numpy()
        h = state[0].contiguous().numpy()
        if x_array.shape != h.shape[:2] or h.shape[1:] != (*weights.shape[:2], 2):
            check_bar(x, len(D))
            check_state(state, [(len(x), *self.C.shape)])
        y = np.empty_like(x_array)
        next_h = np.empty_like(h)
        if gap is None:
            ssm_step(x_array, weights, D, h, y, next_h)
        else:
            check_gap(gap, x)
            ssm_gap_step(x_array, gap.to(x.dtype).contiguous().numpy(), weights, gap_weights, D, h, y, next_h)
        return torch.from_numpy(y), (torch.from_numpy(next_h),)

    def _step_exported(self, x: Tensor, state: State, gap: Tensor | None) -> tuple[Tensor, State]:
        """As step, for an ONNX file: complex numbers are computed from weights alone, x and h in real pairs."""
        a_bar, b_bar, C = self._discrete()
        if gap is None:
            h = complex_pairs.add_real(complex_pairs.multiply(torch.view_as_real(a_bar), state[0]), x[..., None])
        else:
            check_choice("discretisation with gaps", self.discretisation, ("zoh",))
            z = self._continuous() * torch.exp(self.log_dt)[:, None]
            exponent = torch.view_as_real(z) * gap[:, None, None, None]
            input_factor = complex_pairs.multiply(complex_pairs.expm1(exponent), torch.view_as_real(1 / torch.expm1(z)))
            h = complex_pairs.multiply(complex_pairs.exp(exponent), state[0]) + input_factor * x[..., None, None]
        y = complex_pairs.real_of_product(torch.view_as_real(2 * C * b_bar), h).sum(-1) + self.D * x
        return y, (h,)

    def _compute_step_weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[Ā, 2 C B̄] (d, m, 4), with gaps [z, 1 / (exp(z) − 1)] (d, m, 4), and D; complex numbers are pairs."""
        a_bar, b_bar, C = self._discrete()
        z = self._continuous() * torch.exp(self.log_dt)[:, None]
        factors = ((a_bar, 2 * C * b_bar), (z, 1 / torch.expm1(z)))
        weights, gap_weights = (torch.cat([torch.view_as_real(v) for v in pair], dim=-1) for pair in factors)
        return weights.detach().float().numpy(), gap_weights.detach().float().numpy(), self.D.detach().float().numpy()

    def _unpack(self, state: State, batch: int) -> Tensor:
        """h (b, d, m) complex. Raises StateError."""
        check_state(state, [(batch, *self.C.shape)])
        return torch.view_as_complex(state[0].to(self.D.dtype).contiguous())

    def _continuous(self) -> Tensor:
        """A (d, m) complex."""
        return torch.complex(-torch.exp(self.log_decay), self.frequency)

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ā, B̄ and C, each (d, m) complex."""
        A = self._continuous()
        C = torch.view_as_complex(self.C)
        dt = torch.exp(self.log_dt)[:, None]
        if self.discretisation == "bilinear":
            return (1 + A * dt / 2) / (1 - A * dt / 2), dt / (1 - A * dt / 2), C
        return torch.exp(A * dt), torch.expm1(A * dt) / A, C
