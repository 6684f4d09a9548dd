"""S5: one state-space system with many inputs and many outputs, diagonal, run as a scan.

Paper: Smith, Warrington, Linderman 2023, 2208.04933 (section 3; initial values and block diagonal in appendix B).

Glossary: b sequences · l bars · d channels (H) · p = N/2 conjugate pairs of the state (the paper's P states are N here)
· Λ (p,) eigenvalues, Re Λ = −exp(log_decay) · B (p, d), C (d, p) complex input and output maps in the eigenbasis (B̃, C̃)
· D (d,) skip · Δ (p,) step size of every state, times the bar's gap · Ā, B̄ = G B discretised · h (b, p, 2) the state,
real and imaginary part of one of each pair. With z = ΛΔ,

    zoh       Ā = exp(z), G = (Ā − 1) / Λ                  zero-order hold
    bilinear  Ā = 2R − 1, G = Δ R, R = 1 / (1 − z/2)

    h_t = Ā h_{t−1} + G B x_t        y_t = 2 Re(C h_t) + D x_t

First values: Λ and the eigenvectors V are those of HiPPO-N, LegS's normal part, ``blocks`` times over; with real
matrices drawn for B and C, B̃ = V* B and C̃ = C V. ``step`` is the recurrence; ``forward`` the scan of it.

Departs from the paper: the decay is learned as a logarithm, so that Λ stays in the left half-plane whatever is learned;
C is drawn real, so that the first system is exactly a real one seen in its eigenbasis.
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
from models.layers.initialisers import log_steps
from models.layers.kernels.scan_onnx import over_bars
from models.layers.scan import diagonal_scan
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
RULES = ("zoh", "bilinear")


class S5(CachingModule):
    """(b, l, d) → (b, l, d). ``dt_min`` and ``dt_max`` bound the first step sizes Δ, per bar, log-uniform.

    ``blocks``: HiPPO-N matrices of d_state / blocks on the first state matrix's diagonal; each must be of even size.
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
        check_choice("discretisation", discretisation, RULES)
        if d_state % (2 * blocks):
            raise SizeError(f"d_state {d_state} does not split into {blocks} blocks of even size; change one of them")
        self.discretisation = discretisation
        spectrum, V = _hippo_blocks(d_state, blocks)
        B = V.mH @ torch.randn(d_state, d_model).to(V.dtype) * d_model**-0.5
        C = torch.randn(d_model, d_state).to(V.dtype) @ V * d_state**-0.5
        self.log_decay = nn.Parameter(torch.log(-spectrum.real).float())
        self.frequency = nn.Parameter(spectrum.imag.float())
        log_dt = log_steps(d_state // 2, dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self.B = nn.Parameter(torch.view_as_real(B).float())  # (p, d, 2)
        self.C = nn.Parameter(torch.view_as_real(C).float())  # (d, p, 2)
        self.D = nn.Parameter(torch.randn(d_model))
        self._constants = WeightCache(self._ready_to_step)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.log_dt, self.B]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.B.new_zeros(batch, len(self.B), 2),)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar; ``gaps`` (b, l) scale Δ, 0 holds the state.

        Raises ShapeError, DtypeError, StateError.
        """
        check_sequence(x, len(self.D), gaps)
        check_weights(self.D)
        state = self.initial_state(len(x)) if state is None else state
        check_state(state, [(len(x), len(self.B), 2)])
        if torch.compiler.is_exporting():
            return over_bars(self._recur, state, x, *([] if gaps is None else [gaps]))
        with torch.autocast(x.device.type, enabled=False):
            signal = x.to(self.D.dtype)
            if gaps is None:
                a_r, a_i, g_r, g_i = (v[None, None] for v in self._discrete(torch.exp(self.log_dt)))
            else:
                signal = signal.masked_fill(gaps[..., None] == 0, 0.0)
                dt = torch.exp(self.log_dt) * gaps[..., None].to(signal.dtype)
                a_r, a_i, g_r, g_i = self._discrete(dt)
            b_r, b_i = linear(signal, self.B[..., 0]), linear(signal, self.B[..., 1])  # (b, l, p)
            entering = torch.complex(g_r * b_r - g_i * b_i, g_r * b_i + g_i * b_r)
            h = torch.view_as_complex(state[0].to(signal.dtype).contiguous())
            states, last = diagonal_scan(torch.complex(a_r, a_i), entering, h)
            y = linear(torch.view_as_real(states).flatten(2), self._read()) + self.D * signal
        return y.to(x.dtype), (torch.view_as_real(last),)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        bare = gap is None and not torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if bare and x.dtype == torch.float32 and x.device.type == "cpu":
            return self._step_at_once(x, state)
        check_bar(x, len(self.D))
        check_state(state, [(len(x), len(self.B), 2)])
        return self._recur(state, x, gap)

    def _recur(self, state: State, x: Tensor, gap: Tensor | None = None) -> tuple[Tensor, State]:
        dt, signal = torch.exp(self.log_dt), x.to(self.D.dtype)
        if gap is not None:
            dt, signal = dt * gap[:, None].to(dt.dtype), signal.masked_fill(gap[:, None] == 0, 0.0)
        a_r, a_i, g_r, g_i = self._discrete(dt)
        b_r, b_i = linear(signal, self.B[..., 0]), linear(signal, self.B[..., 1])
        h_r, h_i = state[0].to(signal.dtype).unbind(-1)
        real = a_r * h_r - a_i * h_i + g_r * b_r - g_i * b_i
        imag = a_r * h_i + a_i * h_r + g_r * b_i + g_i * b_r
        h = torch.stack([real, imag], dim=-1)
        return (linear(h.flatten(1), self._read()) + self.D * signal).to(x.dtype), (h,)

    def _step_at_once(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The same in one kernel call; the arrays of unchanged weights are kept between bars."""
        if not state or len(state) > 1 or state[0].dtype != x.dtype:
            check_state(state, [(len(x), len(self.B), 2)])
        turn, enters, read, D = self._constants()
        bar, before = x.contiguous().numpy(), state[0].contiguous().numpy()
        if bar.shape != (len(before), len(D)) or before.shape[1:] != turn.shape:
            check_bar(x, len(D))
            check_state(state, [(len(x), *turn.shape)])
        y, after = np.empty_like(bar), np.empty_like(before)
        _one_bar(bar, before, turn, enters, read, D, y, after)
        return torch.from_numpy(y), (torch.from_numpy(after),)

    def _ready_to_step(self) -> tuple[np.ndarray, ...]:
        """Ā (p, 2), what a bar adds to h (d, p, 2), what is read of h (p, 2, d), and D."""
        a_r, a_i, g_r, g_i = (v.detach() for v in self._discrete(torch.exp(self.log_dt)))
        enters = torch.view_as_real(torch.complex(g_r, g_i)[:, None] * torch.view_as_complex(self.B.detach()))
        read = self._read().detach().t().unflatten(0, (-1, 2))
        made = (torch.stack([a_r, a_i], dim=-1), enters.transpose(0, 1), read, self.D.detach())
        return tuple(v.float().contiguous().numpy() for v in made)

    def _read(self) -> Tensor:
        """The matrix (d, 2p) that gives 2 Re(C h) of h's real and imaginary parts in turn."""
        return torch.stack([2 * self.C[..., 0], -2 * self.C[..., 1]], dim=-1).flatten(1)

    def _discrete(self, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Real and imaginary part of Ā and of G, shaped as the step sizes ``dt`` (…, p); real arithmetic."""
        decay, frequency = -torch.exp(self.log_decay), self.frequency
        x, y = decay * dt, frequency * dt
        if self.discretisation == "bilinear":
            x, y = 1 - x / 2, y / 2
            size = x * x + y * y
            r_r, r_i = x / size, y / size
            return 2 * r_r - 1, 2 * r_i, dt * r_r, dt * r_i
        grown, half = torch.exp(x), torch.sin(y / 2)
        a_i = grown * torch.sin(y)
        less_one = torch.expm1(x) * torch.cos(y) - 2 * half * half  # Re Ā − 1, exact also for small steps
        size = decay * decay + frequency * frequency
        g_r, g_i = (less_one * decay + a_i * frequency) / size, (a_i * decay - less_one * frequency) / size
        return grown * torch.cos(y), a_i, g_r, g_i


def _hippo_blocks(d_state: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Λ (p,) and its eigenvectors (N, p), one of each conjugate pair, of ``blocks`` HiPPO-N matrices on a diagonal."""
    size = d_state // blocks
    spectrum, _, _, vectors = nplr(size)
    one = torch.as_tensor(vectors[:, size // 2 :])
    return torch.as_tensor(spectrum[size // 2 :]).repeat(blocks), torch.block_diag(*[one] * blocks)


@njit(nogil=True, error_model="numpy", cache=True, fastmath=True)
def _one_bar(
    x: np.ndarray,
    h: np.ndarray,
    turn: np.ndarray,
    enters: np.ndarray,
    read: np.ndarray,
    D: np.ndarray,
    y: np.ndarray,
    after: np.ndarray,
) -> None:
    """One bar: ``y`` (b, d) and ``after`` (b, p, 2) filled from x (b, d), h (b, p, 2) and the kept weights."""
    d, p = enters.shape[:2]
    for b in range(len(x)):
        for j in range(p):
            after[b, j, 0] = turn[j, 0] * h[b, j, 0] - turn[j, 1] * h[b, j, 1]
            after[b, j, 1] = turn[j, 0] * h[b, j, 1] + turn[j, 1] * h[b, j, 0]
        for c in range(d):
            for j in range(p):
                after[b, j, 0] += enters[c, j, 0] * x[b, c]
                after[b, j, 1] += enters[c, j, 1] * x[b, c]
        for c in range(d):
            y[b, c] = D[c] * x[b, c]
        for j in range(p):
            for c in range(d):
                y[b, c] += read[j, 0, c] * after[b, j, 0] + read[j, 1, c] * after[b, j, 1]
