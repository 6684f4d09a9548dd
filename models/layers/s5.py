"""S5: one state-space system with many inputs and many outputs, diagonal, run as a scan.

Paper: Smith, Warrington, Linderman 2023, 2208.04933 (section 3; initial values and block diagonal in appendix B).

Glossary: b sequences · l bars · d channels (H) · p = N/2 conjugate pairs of the state (the paper's P states are N here)
· Λ (p,) eigenvalues, Re Λ = −exp(log_decay) · B (p, d), C (d, p) complex input and output maps in the eigenbasis (B̃, C̃)
· D (d,) skip · Δ (p,) step size of every state, times the bar's gap · Ā, B̄ = G B discretised · h (b, p, 2) the state,
real and imaginary part of one state of each pair; names end in _r for the real part, in _i for the imaginary part. With
z = ΛΔ,

    zoh       Ā = exp(z), G = (Ā − 1) / Λ                  zero-order hold
    bilinear  Ā = 2R − 1, G = Δ R, R = 1 / (1 − z/2)

    h_t = Ā h_{t−1} + G B x_t        y_t = 2 Re(C h_t) + D x_t

Initial values: Λ has the eigenvalues and V the eigenvectors of HiPPO-N, the normal part of LegS, repeated ``blocks``
times. B and C are drawn as real matrices; then B̃ = V* B and C̃ = C V. ``step`` is the recurrence; ``forward`` computes
it as a scan.

Departs from the paper: the decay is learned as a logarithm, so that Re Λ < 0 for all learned values. C is
drawn real, so that the initial system is exactly a real system in its eigenbasis.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.nn.functional import linear

from models.layers.checks import (
    check_bar,
    check_choice,
    check_even,
    check_positive,
    check_sequence,
    check_state,
    check_weights,
)
from models.layers.errors import SizeError
from models.layers.hippo import nplr
from models.layers.initialisers import draw_log_steps
from models.layers.kernels.scan_onnx import scan_over_bars
from models.layers.scan import diagonal_scan
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
DISCRETISATIONS = ("zoh", "bilinear")


class S5(CachingModule):
    """(b, l, d) → (b, l, d). The initial step sizes Δ, in bars, are drawn log-uniformly from [dt_min, dt_max].

    ``blocks``: number of HiPPO-N matrices on the diagonal of the initial state matrix; their size d_state / blocks must
    be even. ``discretisation`` is one of DISCRETISATIONS. ``learn_dt=False`` fixes Δ at its initial values.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        blocks: int = 1,
        discretisation: str = "zoh",
        dt_min: float = 0.01,
        dt_max: float = 0.5,
        learn_dt: bool = True,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, blocks=blocks)
        check_even(d_state)
        check_choice("discretisation", discretisation, DISCRETISATIONS)
        if d_state % (2 * blocks):
            raise SizeError(f"d_state {d_state} does not split into {blocks} blocks of even size; change one of them")
        self.discretisation = discretisation
        eigenvalues, V = _hippo_blocks(d_state, blocks)
        B = V.mH @ torch.randn(d_state, d_model).to(V.dtype) * d_model**-0.5
        C = torch.randn(d_model, d_state).to(V.dtype) @ V * d_state**-0.5
        self.log_decay = nn.Parameter(torch.log(-eigenvalues.real).float())
        self.frequency = nn.Parameter(eigenvalues.imag.float())
        log_dt = draw_log_steps(d_state // 2, dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self.B = nn.Parameter(torch.view_as_real(B).float())  # (p, d, 2)
        self.C = nn.Parameter(torch.view_as_real(C).float())  # (d, p, 2)
        self.D = nn.Parameter(torch.randn(d_model))
        self._step_weights = WeightCache(self._compute_step_weights)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.log_dt, self.B]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.B.new_zeros(batch, len(self.B), 2),)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError.

        ``gaps`` (b, l), the time since the previous bar in bars, scale Δ; without them all gaps are 1. A gap of 0
        marks a padded bar, which leaves the state unchanged.
        """
        check_sequence(x, len(self.D), gaps)
        check_weights(self.D)
        state = self.initial_state(len(x)) if state is None else state
        check_state(state, [(len(x), len(self.B), 2)])
        if torch.compiler.is_exporting():
            return scan_over_bars(self._recur_one_bar, state, x, *([] if gaps is None else [gaps]))
        with torch.autocast(x.device.type, enabled=False):
            signal = x.to(self.D.dtype)
            if gaps is None:
                a_r, a_i, g_r, g_i = (v[None, None] for v in self._discrete(torch.exp(self.log_dt)))
            else:
                signal = signal.masked_fill(gaps[..., None] == 0, 0.0)
                dt = torch.exp(self.log_dt) * gaps[..., None].to(signal.dtype)
                a_r, a_i, g_r, g_i = self._discrete(dt)
            b_r = linear(signal, self.B[..., 0])  # B x, (b, l, p)
            b_i = linear(signal, self.B[..., 1])
            entering = torch.complex(g_r * b_r - g_i * b_i, g_r * b_i + g_i * b_r)
            h = torch.view_as_complex(state[0].to(signal.dtype).contiguous())
            states, last = diagonal_scan(torch.complex(a_r, a_i), entering, h)
            y = linear(torch.view_as_real(states).flatten(2), self._output_matrix()) + self.D * signal
        return y.to(x.dtype), (torch.view_as_real(last),)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        is_plain = gap is None and not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if is_plain and x.dtype == torch.float32 and x.device.type == "cpu":
            return self._compiled_step(x, state)
        check_bar(x, len(self.D))
        check_state(state, [(len(x), len(self.B), 2)])
        return self._recur_one_bar(state, x, gap)

    def _recur_one_bar(self, state: State, x: Tensor, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """As step, in torch's operations and without checks."""
        dt = torch.exp(self.log_dt)
        signal = x.to(self.D.dtype)
        if gap is not None:
            dt = dt * gap[:, None].to(dt.dtype)
            signal = signal.masked_fill(gap[:, None] == 0, 0.0)
        a_r, a_i, g_r, g_i = self._discrete(dt)
        b_r = linear(signal, self.B[..., 0])
        b_i = linear(signal, self.B[..., 1])
        h_r, h_i = state[0].to(signal.dtype).unbind(-1)
        real = a_r * h_r - a_i * h_i + g_r * b_r - g_i * b_i
        imag = a_r * h_i + a_i * h_r + g_r * b_i + g_i * b_r
        h = torch.stack([real, imag], dim=-1)
        return (linear(h.flatten(1), self._output_matrix()) + self.D * signal).to(x.dtype), (h,)

    def _compiled_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As step, for float32 on a CPU and regular bars: one compiled kernel."""
        if not state or len(state) > 1 or state[0].dtype != x.dtype:
            check_state(state, [(len(x), len(self.B), 2)])
        a_bar, b_bar, output_matrix, D = self._step_weights()
        x_array = x.contiguous().numpy()
        h = state[0].contiguous().numpy()
        if x_array.shape != (len(h), len(D)) or h.shape[1:] != a_bar.shape:
            check_bar(x, len(D))
            check_state(state, [(len(x), *a_bar.shape)])
        y = np.empty_like(x_array)
        next_h = np.empty_like(h)
        _step_kernel(x_array, h, a_bar, b_bar, output_matrix, D, y, next_h)
        return torch.from_numpy(y), (torch.from_numpy(next_h),)

    def _compute_step_weights(self) -> tuple[np.ndarray, ...]:
        """Ā (p, 2), B̄ (d, p, 2), the matrix (p, 2, d) from h to y, and D (d,), as float32."""
        a_r, a_i, g_r, g_i = (v.detach() for v in self._discrete(torch.exp(self.log_dt)))
        b_bar = torch.view_as_real(torch.complex(g_r, g_i)[:, None] * torch.view_as_complex(self.B.detach()))
        output_matrix = self._output_matrix().detach().t().unflatten(0, (-1, 2))
        weights = (torch.stack([a_r, a_i], dim=-1), b_bar.transpose(0, 1), output_matrix, self.D.detach())
        return tuple(v.float().contiguous().numpy() for v in weights)

    def _output_matrix(self) -> Tensor:
        """The matrix (d, 2p) that gives 2 Re(C h) from the interleaved real and imaginary parts of h."""
        return torch.stack([2 * self.C[..., 0], -2 * self.C[..., 1]], dim=-1).flatten(1)

    def _discrete(self, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ā and G for step sizes ``dt`` (…, p): their real and imaginary parts, of the same shape."""
        decay = -torch.exp(self.log_decay)
        frequency = self.frequency
        z_r = decay * dt
        z_i = frequency * dt
        if self.discretisation == "bilinear":
            real = 1 - z_r / 2
            imag = z_i / 2
            norm = real * real + imag * imag
            r_r = real / norm
            r_i = imag / norm
            return 2 * r_r - 1, 2 * r_i, dt * r_r, dt * r_i
        magnitude = torch.exp(z_r)
        half_sine = torch.sin(z_i / 2)
        a_i = magnitude * torch.sin(z_i)
        # Re Ā − 1, accurate also for small step sizes
        a_r_minus_one = torch.expm1(z_r) * torch.cos(z_i) - 2 * half_sine * half_sine
        norm = decay * decay + frequency * frequency
        g_r = (a_r_minus_one * decay + a_i * frequency) / norm
        g_i = (a_i * decay - a_r_minus_one * frequency) / norm
        return magnitude * torch.cos(z_i), a_i, g_r, g_i


def _hippo_blocks(d_state: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Λ (p,) and eigenvectors (N, p), one of each conjugate pair, of ``blocks`` HiPPO-N matrices on a diagonal."""
    size = d_state // blocks
    eigenvalues, _, _, eigenvectors = nplr(size)
    block = torch.as_tensor(eigenvectors[:, size // 2 :])
    return torch.as_tensor(eigenvalues[size // 2 :]).repeat(blocks), torch.block_diag(*[block] * blocks)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=True)
def _step_kernel(
    x: np.ndarray,
    h: np.ndarray,
    a_bar: np.ndarray,
    b_bar: np.ndarray,
    output_matrix: np.ndarray,
    D: np.ndarray,
    y: np.ndarray,
    next_h: np.ndarray,
) -> None:
    """Writes ``y`` (b, d) and ``next_h`` (b, p, 2) for one bar x (b, d), the state h (b, p, 2) and the step weights."""
    d, p = b_bar.shape[:2]
    for b in range(len(x)):
        for j in range(p):
            next_h[b, j, 0] = a_bar[j, 0] * h[b, j, 0] - a_bar[j, 1] * h[b, j, 1]
            next_h[b, j, 1] = a_bar[j, 0] * h[b, j, 1] + a_bar[j, 1] * h[b, j, 0]
        for c in range(d):
            for j in range(p):
                next_h[b, j, 0] += b_bar[c, j, 0] * x[b, c]
                next_h[b, j, 1] += b_bar[c, j, 1] * x[b, c]
        for c in range(d):
            y[b, c] = D[c] * x[b, c]
        for j in range(p):
            for c in range(d):
                y[b, c] += output_matrix[j, 0, c] * next_h[b, j, 0] + output_matrix[j, 1, c] * next_h[b, j, 1]
