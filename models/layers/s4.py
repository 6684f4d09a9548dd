"""S4: a state-space layer whose state matrix is diagonal plus rank one, in the eigenbasis of HiPPO-LegS's normal part.

Paper: Gu, Goel, Ré 2022, 2111.00396 (section 3: theorem 1, algorithm 1; appendix C: generating function and Woodbury).

Glossary: b sequences · l bars · d channels (H) · m = N/2 conjugate pairs of the state · Λ (d, m), its real part is
−exp(log_decay) · P, B, C (d, m) · A = Λ − P P* over all N = 2m states (the paper's Λ − P Q*) · D (d,) skip · Δ (d,)
step size · h (b, d, m, 2) the state, real and imaginary part of one of each pair · R = (I − Δ/2 A)⁻¹ · Ā and B̄:

    bilinear  Ā = R (I + Δ/2 A) = 2R − I, B̄ = R Δ B        zoh  Ā = exp(Δ A), B̄ = A⁻¹ (Ā − I) B

    h_t = Ā h_{t−1} + B̄ x_t        y_t = 2 Re(C h_t) + D x_t

``kernel`` is the paper's: K_j = C Ā^j B̄ from the generating function truncated at a power of two, four Cauchy products
at the roots of unity and Woodbury's identity. ``forward`` is the same convolution cut into blocks of bars: one Toeplitz
product with the first taps within a block, the state between blocks; both come from the Krylov matrix of Ā, by
doubling, at a cost that does not grow with the length. ``step`` is the recurrence. Everything but ``kernel`` is real
arithmetic: an (N, N) matrix acts on the real and imaginary parts of h, side by side.

Departs from the paper: Q = P, so that A is stable whatever is learned (Goel et al. 2022, 2202.09729); C itself is
learned, not C (I − Ā^L), which would tie the weights to one length; matrices are formed in float64, whatever the
weights are; zero-order hold, which has no generating function of this form, goes by the matrix exponential and Krylov.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from numba import njit
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
from models.layers.convolution import block_bars, causal_toeplitz, from_columns, to_columns
from models.layers.errors import SizeError
from models.layers.hippo import nplr, random_spectrum
from models.layers.initialisers import log_steps
from models.layers.irregular import BLOCK_ELEMENTS, in_blocks
from models.layers.kernels import complex_pairs
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
DISCRETISATIONS = ("bilinear", "zoh")
SPECTRA = ("legs", "random")
ZOH_GAPS = 64  # distinct gaps that a zero-order hold keeps a matrix for


class S4(CachingModule):
    """(b, l, d) → (b, l, d). ``dt_min`` and ``dt_max`` bound the first step sizes Δ, per bar, log-uniform.

    ``spectrum``: "legs", or "random" for the ablation. ``learn_dt=False`` keeps Δ as drawn.
    """

    P: Any
    B: Any

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        spectrum: str = "legs",
        discretisation: str = "bilinear",
        learn_dt: bool = True,
        dt_min: float = 0.01,
        dt_max: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model)
        check_even(d_state)
        check_choice("discretisation", discretisation, DISCRETISATIONS)
        check_choice("spectrum", spectrum, SPECTRA)
        self.d_model, self.d_state, self.discretisation = d_model, d_state, discretisation
        eigenvalues, P, B = _first_values(spectrum, d_state)
        self.log_decay = nn.Parameter(torch.log(-eigenvalues.real).float().repeat(d_model, 1))
        self.frequency = nn.Parameter(eigenvalues.imag.float().repeat(d_model, 1))
        self.P, self.B = (nn.Parameter(torch.view_as_real(v).float().repeat(d_model, 1, 1)) for v in (P, B))
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))
        log_dt = log_steps(d_model, dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self._kept = WeightCache(self._nothing_yet)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.P, self.B, self.log_dt]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.C.new_zeros(batch, *self.C.shape),)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar; with ``gaps`` (b, l) bar by bar, Δ_t = Δ · gap_t."""
        check_sequence(x, self.d_model, gaps)
        check_weights(self.D)
        batch, _, d = x.shape
        if state is not None:
            check_state(state, [(batch, *self.C.shape)])
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(torch.promote_types(x.dtype, self.D.dtype))
            h = u.new_zeros(batch, d, self.d_state) if state is None else state[0].to(u.dtype).flatten(2)
            y, h = self._regular(u, h) if gaps is None else self._irregular(u, h, gaps.to(u.dtype))
        return y.to(x.dtype), (h.unflatten(2, (-1, 2)),)

    def step(self, x: Tensor, state: State, gap: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,)."""
        check_bar(x, self.d_model)
        check_state(state, [(x.shape[0], *self.C.shape)])
        if gap is not None:
            y, state = self.forward(x[:, None], state, gap[:, None])
            return y[:, 0], state
        matrix = self._keep(("step", x.dtype), lambda: self._step_matrix(x.dtype))
        at_once = not torch.is_grad_enabled() and x.dtype == matrix.dtype == state[0].dtype and x.device.type == "cpu"
        if at_once and not torch.compiler.is_exporting():
            y, h = x.new_empty(x.shape), x.new_empty(state[0].shape)
            before = state[0].contiguous().numpy().reshape(len(x), -1, self.d_state)
            _step_at_once(x.contiguous().numpy(), before, matrix.numpy(), y.numpy(), h.numpy().reshape(before.shape))
            return y, (h,)
        both = torch.cat([x[..., None].to(matrix.dtype), state[0].flatten(2)], dim=-1)
        after = torch.bmm(both.transpose(0, 1), matrix).transpose(0, 1)
        return after[..., 0].to(x.dtype), (after[..., 1:].reshape(state[0].shape),)

    def kernel(self, length: int) -> Tensor:
        """The first ``length`` taps K_j = 2 Re(C Ā^j B̄), (d, length), without the skip."""
        check_positive(length=length)
        bars = 1 << (length - 1).bit_length()
        A_bar, B_bar, C = self._discrete()
        if self.discretisation == "zoh":
            into, _, _ = _krylov(A_bar, B_bar, C, bars)
            taps = torch.einsum("dn,dnt->dt", C, into)
        else:
            power = A_bar
            for _ in range(bars.bit_length() - 1):
                power = power @ power
            rest = (C - torch.einsum("dn,dnk->dk", C, power)).unflatten(1, (-1, 2))  # C (I − Ā^L)
            taps = self._generated(torch.complex(rest[..., 0], -rest[..., 1]) / 2, bars)
        return taps[:, :length].to(self.D.dtype)

    def _generated(self, C: Tensor, bars: int) -> Tensor:
        """K (d, bars) with Σ_j K_j z^j = C (I − Ā z)⁻¹ B̄ at the roots of unity z.

        (I − Ā z)⁻¹ B̄ = ((1 − z) − Δ/2 (1 + z) A)⁻¹ Δ B, of which the paper divides out 1 + z; left in, z = −1 is a root
        like any other. A = Λ − P P* is inverted by Woodbury from four Cauchy products.
        """
        decay, frequency, P, B, _, dt = (v.double() for v in self._values())
        spectrum = torch.complex(-decay, frequency)[..., None]
        P, B = torch.view_as_complex(P), torch.view_as_complex(B)
        z = torch.exp(-2j * torch.pi / bars * torch.arange(bars // 2 + 1, dtype=torch.double, device=dt.device))
        half = dt[:, None, None] / 2 * (1 + z)  # (d, 1, z)
        over, over_conjugate = (1 / (1 - z - half * s) for s in (spectrum, spectrum.conj()))  # (d, m, z)

        def cauchy(left: Tensor, right: Tensor) -> Tensor:
            weight = (left * right)[..., None]
            return (weight * over + weight.conj() * over_conjugate).sum(1)

        through_p = cauchy(C, P) * cauchy(P.conj(), B) * half[:, 0] / (1 + half[:, 0] * cauchy(P.conj(), P))
        return torch.fft.irfft(dt[:, None] * (cauchy(C, B) - through_p), n=bars)

    def _regular(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """y (b, l, d) and the last h (b, d, N): Toeplitz products within blocks of bars, the state between them."""
        batch, length, _ = x.shape
        bars = block_bars(length, self.d_state)
        blocks, rest = -(-length // bars), (length - 1) % bars + 1
        from_x, from_h, into_h, powers = self._keep((bars, x.dtype), lambda: self._block_matrices(bars, x.dtype))
        columns = to_columns(x, bars)  # (d, bars, blocks · b)
        entering = torch.bmm(into_h, columns).unflatten(2, (blocks, batch))  # what a block adds to the state
        starts = [h.permute(1, 2, 0)]
        for block in entering.unbind(2)[:-1]:
            starts.append(torch.baddbmm(block, powers[-1], starts[-1]))
        y = torch.baddbmm(torch.bmm(from_x, columns), from_h, torch.cat(starts, dim=2))
        last = torch.bmm(into_h[..., bars - rest :], columns[:, :rest, (blocks - 1) * batch :])
        return from_columns(y, batch, length), (last + _advance(powers, starts[-1], rest)).permute(2, 0, 1)

    def _block_matrices(self, bars: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """x → y (d, bars, bars), h → y (d, bars, N), x → h (d, N, bars), and Ā, Ā², Ā⁴ … Ā^bars (d, N, N)."""
        A_bar, B_bar, C = self._discrete()
        into, out, powers = _krylov(A_bar, B_bar, C, bars)
        taps = torch.einsum("dn,dnt->dt", C, into)
        taps = torch.cat([taps[:, :1] + self.D[:, None].double(), taps[:, 1:]], dim=1).to(dtype)
        return causal_toeplitz(taps), out.to(dtype), into.flip(2).to(dtype), [p.to(dtype) for p in powers]

    def _step_matrix(self, dtype: torch.dtype) -> Tensor:
        """(d, 1 + N, 1 + N) that takes the row (x_t, h_{t−1}) to the row (y_t, h_t)."""
        A_bar, B_bar, C = self._discrete()
        after = torch.cat([B_bar[..., None], A_bar], dim=2).transpose(1, 2)  # (d, 1 + N, N)
        y = torch.bmm(after, C[..., None])
        y = torch.cat([y[:, :1] + self.D[:, None, None].double(), y[:, 1:]], dim=1)
        return torch.cat([y, after], dim=2).contiguous().to(torch.promote_types(dtype, self.D.dtype))

    def _irregular(self, x: Tensor, h: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """y and the last h, bar by bar: O(N) a bar by Woodbury, or with a matrix for every distinct gap under zoh."""
        x = x.masked_fill(gaps[..., None] == 0, 0.0)
        decay, frequency, P, B, C, dt = (v.to(x.dtype) for v in self._values())
        b, read = B.flatten(1), C.flatten(1)
        zoh = self.discretisation == "zoh"
        held, place = self._held(gaps) if zoh else (gaps, gaps)
        held = held.to(x.dtype)

        def advance(h: Tensor, x: Tensor, place: Tensor) -> Tensor:
            if zoh:
                return torch.einsum("bdij,bdj->bdi", held[place], torch.cat([h, x[..., None]], dim=-1))
            step = dt * place[:, None]  # Ā h + B̄ x = R (2h + Δ B x) − h
            right = 2 * h + (step * x)[..., None] * b
            return _resolved(right.unflatten(2, (-1, 2)), step, decay, frequency, P).flatten(2) - h

        def run(h: Tensor, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
            outputs = []
            for x_t, place_t in zip(x.unbind(1), place.unbind(1), strict=True):
                h = advance(h, x_t, place_t)
                outputs.append((h * read).sum(-1) + self.D * x_t)
            return torch.stack(outputs, dim=1), h

        return in_blocks(run, h, x, place, bars=max(1, min(64, 16 * BLOCK_ELEMENTS // max(1, h.numel()))))

    def _held(self, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """[Ā B̄] of every distinct gap (g, d, N, N + 1) and which of them each bar takes (b, l).

        One at a time: a later gap must not change the last digit of an earlier one's.
        """
        distinct, place = torch.unique(gaps, return_inverse=True)
        if len(distinct) > ZOH_GAPS:
            raise SizeError(
                f"{len(distinct)} distinct gaps; zoh keeps a matrix for each: {ZOH_GAPS} at most, or bilinear"
            )
        held = [torch.cat([A_bar, B_bar[..., None]], dim=2) for A_bar, B_bar, _ in map(self._discrete, distinct)]
        return torch.stack(held), place

    def _values(self) -> tuple[Tensor, ...]:
        """exp(log_decay), Im Λ (d, m); P, B (d, m, 2); C as the row that gives 2 Re(C h) (d, m, 2); Δ (d,)."""
        C = self.C * self.C.new_tensor([2.0, -2.0])
        return torch.exp(self.log_decay), self.frequency, self.P, self.B, C, torch.exp(self.log_dt)

    def _discrete(self, gap: float | Tensor = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Ā (d, N, N), B̄ (d, N) and C (d, N) in float64, over real and imaginary parts."""
        decay, frequency, P, B, C, dt = (v.double() for v in self._values())
        dt, b = dt * gap, B.flatten(1)
        if self.discretisation == "bilinear":
            R = _resolvent(dt, decay, frequency, P)
            eye = torch.eye(self.d_state, dtype=R.dtype, device=R.device)
            return 2 * R - eye, dt[:, None] * torch.einsum("dij,dj->di", R, b), C.flatten(1)
        p = P.flatten(1)
        A = _blocks_of(torch.stack([-decay, frequency], dim=-1)) - 2 * p[:, :, None] * p[:, None]
        system = nn.functional.pad(torch.cat([A, b[..., None]], dim=2), (0, 0, 0, 1))
        both = torch.matrix_exp(dt[:, None, None] * system)
        return both[:, :-1, :-1], both[:, :-1, -1], C.flatten(1)

    def _nothing_yet(self) -> dict[Any, Any]:
        return {}

    def _keep(self, name: tuple[Any, torch.dtype], make: Callable[[], Any]) -> Any:
        """What ``make`` gives; without gradients it is kept until a weight changes."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        kept = self._kept()
        if name not in kept:
            kept[name] = make()
        return kept[name]


@njit(nogil=True, error_model="numpy", cache=True)
def _step_at_once(x: Any, h: Any, matrix: Any, y: Any, after: Any) -> None:
    """One bar: ``y`` (b, d) and ``after`` (b, d, N) from x (b, d), h (b, d, N) and ``_step_matrix``."""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            read = x[b, c] * matrix[c, 0, 0]
            for j in range(h.shape[2]):
                after[b, c, j] = x[b, c] * matrix[c, 0, 1 + j]
            for i in range(h.shape[2]):
                value = h[b, c, i]
                read += value * matrix[c, 1 + i, 0]
                for j in range(h.shape[2]):
                    after[b, c, j] += value * matrix[c, 1 + i, 1 + j]
            y[b, c] = read


def _first_values(spectrum: str, n: int) -> list[Tensor]:
    """Λ, P and B (m,) complex: LegS's, or drawn for the ablation, all channels alike as LegS's are."""
    if spectrum == "legs":
        return [torch.as_tensor(v[n // 2 :]) for v in nplr(n)[:3]]
    drawn = torch.as_tensor(random_spectrum(n))
    return [drawn, torch.randn_like(drawn), torch.randn_like(drawn)]


def _krylov(A_bar: Tensor, B_bar: Tensor, C: Tensor, bars: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Ā^j B̄ (d, N, bars) for j < bars, C Ā^j (d, bars, N) for 1 ≤ j ≤ bars, and Ā, Ā², Ā⁴ … Ā^bars; bars = 2^k."""
    into, out, powers = B_bar[..., None], torch.einsum("dn,dnk->dk", C, A_bar)[:, None], [A_bar]
    while into.shape[2] < bars:
        into = torch.cat([into, torch.bmm(powers[-1], into)], dim=2)
        out = torch.cat([out, torch.bmm(out, powers[-1])], dim=1)
        powers.append(torch.bmm(powers[-1], powers[-1]))
    return into, out, powers


def _advance(powers: list[Tensor], h: Tensor, bars: int) -> Tensor:
    """Ā^bars h (d, N, b), from the powers of two."""
    for place, power in enumerate(powers):
        if bars >> place & 1:
            h = torch.bmm(power, h)
    return h


def _blocks_of(value: Tensor) -> Tensor:
    """The matrix (d, 2m, 2m) that multiplies by ``value`` (d, m, 2) complex, over real and imaginary parts."""
    real, imag = value.unbind(-1)
    rotation = torch.stack([torch.stack([real, -imag], dim=-1), torch.stack([imag, real], dim=-1)], dim=-2)
    eye = torch.eye(value.shape[1], dtype=value.dtype, device=value.device)
    return (rotation[:, :, :, None] * eye[:, None, :, None]).flatten(3, 4).flatten(1, 2)


def _diagonal(dt: Tensor, decay: Tensor, frequency: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E = (1 − Δ/2 Λ)⁻¹ and E P (…, d, m, 2), and Δ / (1 + Δ/2 P* E P) (…, d), for ``dt`` (…, d)."""
    half = dt[..., None] / 2
    real, imag = 1 + half * decay, half * frequency
    E = torch.stack([real, imag], dim=-1) / (real.square() + imag.square())[..., None]
    through_p = (P.square().sum(-1) * E[..., 0]).sum(-1)  # half of P* E P: one of each pair
    return E, complex_pairs.times(E, P), dt / (1 + dt * through_p)


def _resolved(h: Tensor, dt: Tensor, decay: Tensor, frequency: Tensor, P: Tensor) -> Tensor:
    """R h for h (…, d, m, 2), by Woodbury: E h − E P · Δ Re(P* E h) / (1 + Δ/2 P* E P)."""
    E, into, weight = _diagonal(dt, decay, frequency, P)
    h = complex_pairs.times(E, h)
    return h - into * ((P * h).sum((-1, -2)) * weight)[..., None, None]


def _resolvent(dt: Tensor, decay: Tensor, frequency: Tensor, P: Tensor) -> Tensor:
    """R (d, N, N) itself, for ``dt`` (d,)."""
    E, into, weight = _diagonal(dt, decay, frequency, P)
    read = complex_pairs.times(E * E.new_tensor([1.0, -1.0]), P)
    return _blocks_of(E) - (into * weight[:, None, None]).flatten(1)[:, :, None] * read.flatten(1)[:, None]
