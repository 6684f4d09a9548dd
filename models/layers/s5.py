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

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.layers.checks import check_bar, check_choice, check_even, check_positive, check_sequence, check_state
from models.layers.constants import Constants
from models.layers.errors import SizeError
from models.layers.hippo import nplr
from models.layers.scan import diagonal_scan
from models.layers.scan_exported import over_bars

State = tuple[Tensor, ...]
RULES = ("zoh", "bilinear")


class S5(nn.Module):
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
        log_dt = torch.rand(d_state // 2) * math.log(dt_max / dt_min) + math.log(dt_min)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self.B = nn.Parameter(torch.view_as_real(B).float())  # (p, d, 2)
        self.C = nn.Parameter(torch.view_as_real(C).float())  # (d, p, 2)
        self.D = nn.Parameter(torch.randn(d_model))
        self._constants = Constants(self._ready_to_step)

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
        check_bar(x, len(self.D))
        check_state(state, [(len(x), len(self.B), 2)])
        if gap is None and not torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return self._step_at_once(x, state[0])
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

    def _step_at_once(self, x: Tensor, h: Tensor) -> tuple[Tensor, State]:
        """The same in two products with matrices that are kept between bars while the weights are."""
        turn, read, D = self._constants()
        signal = x.to(D.dtype)
        after = torch.cat([h.to(D.dtype).flatten(1), signal], dim=1).mm(turn)
        return torch.addmm(D * signal, after, read).to(x.dtype), (after.view(h.shape),)

    def _ready_to_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """(2p + d, 2p): what h and x add to the next h, real and imaginary parts in turn; (2p, d); D."""
        with torch.no_grad():
            a_r, a_i, g_r, g_i = self._discrete(torch.exp(self.log_dt))
            p, B = len(a_r), self.B
            own = torch.stack([torch.stack([a_r, a_i], -1), torch.stack([-a_i, a_r], -1)], dim=1)  # (p, from, to)
            from_h = own.new_zeros(p, 2, p, 2)
            from_h[torch.arange(p), :, torch.arange(p)] = own
            g_r, g_i = g_r[:, None], g_i[:, None]
            from_x = torch.stack([g_r * B[..., 0] - g_i * B[..., 1], g_r * B[..., 1] + g_i * B[..., 0]], dim=-1)
            turn = torch.cat([from_h.reshape(2 * p, 2 * p), from_x.transpose(0, 1).flatten(1)])
            return turn, self._read().t().contiguous(), self.D.detach()

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
