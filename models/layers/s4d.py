"""S4D: a state-space layer with one diagonal complex state matrix per channel.

Paper: Gu, Gupta, Goel, Ré 2022, 2206.11893 (section 3; initial values section 4).

Glossary: b sequences · l bars · d channels (H) · m = N/2 conjugate pairs of the state · a = Δ·A (d, m) · Ā = exp(Δ A)
and B̄ = (Ā − 1) / A, zero-order hold (equation 3) · C (d, m) · D (d,) skip · h (b, d, m, 2) the state, real and
imaginary part.

    h_t = Ā h_{t−1} + B̄ x_t        y_t = 2 Re(C h_t) + D x_t

``step`` is that recurrence in real arithmetic. ``forward`` is the convolution y = K * x with K_j = 2 Re(C Ā^j B̄),
written as one Toeplitz matrix product per channel and block of CHUNK_BARS, plus what the state carried in still says.
Departs from the paper: B is held at 1 (only the product C·B is seen), and there is no transform (see convolution.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.layers.convolution import causal_toeplitz
from models.layers.hippo import legs_spectrum, linear_spectrum

CHUNK_BARS = 128
SPECTRA = {"legs": legs_spectrum, "linear": linear_spectrum}
State = tuple[Tensor, ...]


class S4D(nn.Module):
    """(b, l, d) → (b, l, d). ``dt_min`` and ``dt_max`` bound the first step sizes Δ, per bar, log-uniform."""

    def __init__(
        self, d_model: int, d_state: int = 16, spectrum: str = "legs", dt_min: float = 0.01, dt_max: float = 0.5
    ) -> None:
        super().__init__()
        pairs = d_state // 2
        a = torch.as_tensor(SPECTRA[spectrum](d_state)).repeat(d_model, 1)
        self.log_decay = nn.Parameter(torch.log(-a.real).float())
        self.frequency = nn.Parameter(a.imag.float())
        self.log_dt = nn.Parameter(torch.rand(d_model) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.C = nn.Parameter(torch.randn(d_model, pairs, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.log_dt]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.C.new_zeros(batch, *self.C.shape),)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar."""
        with torch.autocast(x.device.type, enabled=False):
            blocks = x.float().split(CHUNK_BARS, dim=1)
            a, b_bar, c = self._discrete()
            powers = torch.exp(a[..., None] * torch.arange(blocks[0].shape[1] + 1, device=x.device))  # Ā^t (d, m, t)
            response = 2 * c[..., None] * powers
            kernel = (response[..., :-1] * b_bar[..., None]).sum(1).real
            from_x = causal_toeplitz(torch.cat([kernel[:, :1] + self.D[:, None], kernel[:, 1:]], dim=1))
            from_h = torch.view_as_real(response[..., 1:].conj().resolve_conj()).movedim(2, 1).flatten(2)  # (d, l, 2m)
            into_h = torch.view_as_real(b_bar[..., None] * powers[..., :-1]).movedim(3, 2).flatten(1, 2)  # (d, 2m, l)
            h = None if state is None else state[0].flatten(2).permute(1, 2, 0)  # (d, 2m, b)
            outputs = []
            for block in blocks:
                bars, signal = block.shape[1], block.permute(2, 1, 0)  # (d, bars, b)
                y = torch.bmm(from_x[:, :bars, :bars], signal)
                after = torch.bmm(into_h[..., :bars].flip(2), signal)
                if h is not None:
                    y = torch.baddbmm(y, from_h[:, :bars], h)
                    after = after + _times(powers[..., bars], h)
                h = after
                outputs.append(y.permute(2, 1, 0))
        return torch.cat(outputs, dim=1).to(x.dtype), (after.permute(2, 0, 1).unflatten(2, (-1, 2)),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it."""
        a, b_bar, c = self._discrete()
        a_bar, (h,) = torch.exp(a), state
        real = a_bar.real * h[..., 0] - a_bar.imag * h[..., 1] + b_bar.real * x[..., None]
        imag = a_bar.real * h[..., 1] + a_bar.imag * h[..., 0] + b_bar.imag * x[..., None]
        y = 2 * (c.real * real - c.imag * imag).sum(-1) + self.D * x
        return y, (torch.stack([real, imag], dim=-1),)

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """a = Δ A, B̄ and C, each (d, m) complex."""
        A = torch.complex(-torch.exp(self.log_decay), self.frequency)
        a = A * torch.exp(self.log_dt)[:, None]
        return a, (torch.exp(a) - 1) / A, torch.view_as_complex(self.C)


def _times(factor: Tensor, h: Tensor) -> Tensor:
    """``factor`` (d, m) complex times ``h`` (d, 2m, b), whose rows are real and imaginary parts in turn."""
    real, imag = h[:, 0::2], h[:, 1::2]
    f_real, f_imag = factor.real[..., None], factor.imag[..., None]
    return torch.stack([f_real * real - f_imag * imag, f_real * imag + f_imag * real], dim=2).flatten(1, 2)
