"""S4: a state-space layer whose state matrix is diagonal plus rank one, in the eigenbasis of HiPPO-LegS's normal part.

Paper: Gu, Goel, Ré 2022, 2111.00396 (section 3: theorem 1, algorithm 1; appendix C: generating function and Woodbury).

Glossary: b sequences · l bars · d channels (H) · m = N/2 conjugate pairs of the state · Λ (d, m), its real part is
−exp(log_decay) · P, B, C (d, m) complex · A = Λ − P P* over all N = 2m states (the paper's Λ − P Q*) · D (d,) skip · Δ
(d,) step size · h (b, d, m, 2) the state, real and imaginary part of one state of each pair · R = (I − Δ/2 A)⁻¹ · Ā and
B̄:

    bilinear  Ā = R (I + Δ/2 A) = 2R − I, B̄ = R Δ B        zoh  Ā = exp(Δ A), B̄ = A⁻¹ (Ā − I) B

    h_t = Ā h_{t−1} + B̄ x_t        y_t = 2 Re(C h_t) + D x_t

``kernel`` follows the paper: K_j = C Ā^j B̄ from the generating function truncated at a power of two, four Cauchy
products at the roots of unity and Woodbury's identity. ``forward`` computes the same convolution in blocks of bars:
within a block by a Toeplitz product with the first taps; the state passes from block to block. The matrices of
both come from the Krylov matrix of Ā (its columns are Ā^j B̄), which is built by doubling, at a cost that does not grow
with the sequence's length. ``step`` is the recurrence. Everything but ``kernel`` uses real arithmetic: an (N, N) matrix
multiplies the interleaved real and imaginary parts of h.

Departs from the paper: Q = P, so that A is stable for all learned values (Goel et al. 2022, 2202.09729). C itself is
learned, not C (I − Ā^L), which would tie the weights to one length L. Matrices are computed in float64 for any dtype of
the weights. Zero-order hold has no generating function of this form; its taps come from the matrix exponential and the
Krylov matrix.
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
from models.layers.convolution import causal_toeplitz, choose_block_bars, from_columns, to_columns
from models.layers.errors import SizeError
from models.layers.hippo import nplr, random_spectrum
from models.layers.initialisers import draw_log_steps
from models.layers.irregular import MAX_BLOCK_ELEMENTS, run_in_blocks
from models.layers.kernels import complex_pairs
from models.layers.weight_cache import CachingModule, WeightCache

State = tuple[Tensor, ...]
DISCRETISATIONS = ("bilinear", "zoh")
SPECTRA = ("legs", "random")
MAX_ZOH_GAPS = 64  # distinct gaps in one call under zero-order hold, which needs a matrix for each of them


class S4(CachingModule):
    """(b, l, d) → (b, l, d). The initial step sizes Δ, in bars, are drawn log-uniformly from [dt_min, dt_max].

    ``spectrum``: "legs", or "random" for the ablation. ``learn_dt=False`` fixes Δ at its initial values.
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
        self.d_model = d_model
        self.d_state = d_state
        self.discretisation = discretisation
        eigenvalues, P, B = _initial_values(spectrum, d_state)
        self.log_decay = nn.Parameter(torch.log(-eigenvalues.real).float().repeat(d_model, 1))
        self.frequency = nn.Parameter(eigenvalues.imag.float().repeat(d_model, 1))
        self.P = nn.Parameter(torch.view_as_real(P).float().repeat(d_model, 1, 1))
        self.B = nn.Parameter(torch.view_as_real(B).float().repeat(d_model, 1, 1))
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model))
        log_dt = draw_log_steps(d_model, dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt, requires_grad=learn_dt)
        self._matrices = WeightCache(self._empty_cache)

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay would pull towards a meaningless value."""
        return [self.log_decay, self.frequency, self.P, self.B, self.log_dt]

    def initial_state(self, batch: int) -> State:
        """The state before the first bar: zeros."""
        return (self.C.new_zeros(batch, *self.C.shape),)

    def forward(self, x: Tensor, state: State | None = None, gaps: Tensor | None = None) -> tuple[Tensor, State]:
        """y (b, l, d) and the state after the last bar. Raises ShapeError, DtypeError, StateError.

        ``gaps`` (b, l), the time since the previous bar in bars, scale Δ: Δ_t = Δ · gap_t; a gap of 0 marks a padded
        bar, which leaves the state unchanged. With gaps the recurrence runs bar by bar; without them all gaps are 1.
        Raises SizeError for more than MAX_ZOH_GAPS distinct gaps under zero-order hold.
        """
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
        """y (b, d) of one bar x (b, d), and the state after it; ``gap`` (b,). Raises as forward."""
        check_bar(x, self.d_model)
        check_state(state, [(x.shape[0], *self.C.shape)])
        if gap is not None:
            y, state = self.forward(x[:, None], state, gap[:, None])
            return y[:, 0], state
        (pairs,) = state
        matrix = self._cached(("step", x.dtype), lambda: self._step_matrix(x.dtype))
        is_same_dtype = x.dtype == matrix.dtype == pairs.dtype
        has_kernel = not torch.is_grad_enabled() and is_same_dtype and x.device.type == "cpu"
        if has_kernel and not torch.compiler.is_exporting():
            y = x.new_empty(x.shape)
            next_h = x.new_empty(pairs.shape)
            h = pairs.contiguous().numpy().reshape(len(x), -1, self.d_state)
            _step_kernel(x.contiguous().numpy(), h, matrix.numpy(), y.numpy(), next_h.numpy().reshape(h.shape))
            return y, (next_h,)
        row = torch.cat([x[..., None].to(matrix.dtype), pairs.flatten(2)], dim=-1)
        next_row = torch.bmm(row.transpose(0, 1), matrix).transpose(0, 1)
        return next_row[..., 0].to(x.dtype), (next_row[..., 1:].reshape(pairs.shape),)

    def kernel(self, length: int) -> Tensor:
        """The first taps K_j = 2 Re(C Ā^j B̄), (d, length), without the skip. Raises SizeError for a length below 1."""
        check_positive(length=length)
        n_taps = 1 << (length - 1).bit_length()
        A_bar, B_bar, C = self._discrete()
        if self.discretisation == "zoh":
            into, _, _ = _krylov(A_bar, B_bar, C, n_taps)
            taps = torch.einsum("dn,dnt->dt", C, into)
        else:
            power = A_bar
            for _ in range(n_taps.bit_length() - 1):
                power = power @ power
            truncated = (C - torch.einsum("dn,dnk->dk", C, power)).unflatten(1, (-1, 2))  # C (I − Ā^L)
            complex_row = torch.complex(truncated[..., 0], -truncated[..., 1]) / 2
            taps = self._taps_by_generating_function(complex_row, n_taps)
        return taps[:, :length].to(self.D.dtype)

    def _taps_by_generating_function(self, C: Tensor, n_taps: int) -> Tensor:
        """The taps K (d, n_taps) with Σ_j K_j z^j = C (I − Ā z)⁻¹ B̄ at the roots of unity z; ``C`` (d, m) complex.

        (I − Ā z)⁻¹ B̄ = ((1 − z) − Δ/2 (1 + z) A)⁻¹ Δ B, from which the paper divides out 1 + z; without that
        division z = −1 needs no special case. A = Λ − P P* is inverted by Woodbury from four Cauchy products.
        """
        decay, frequency, P, B, _, dt = (v.double() for v in self._values())
        eigenvalues = torch.complex(-decay, frequency)[..., None]
        P = torch.view_as_complex(P)
        B = torch.view_as_complex(B)
        z = torch.exp(-2j * torch.pi / n_taps * torch.arange(n_taps // 2 + 1, dtype=torch.double, device=dt.device))
        half_step = dt[:, None, None] / 2 * (1 + z)  # (d, 1, z)
        poles = 1 / (1 - z - half_step * eigenvalues)  # (d, m, z)
        conjugate_poles = 1 / (1 - z - half_step * eigenvalues.conj())

        def cauchy(row: Tensor, column: Tensor) -> Tensor:
            weight = (row * column)[..., None]
            return (weight * poles + weight.conj() * conjugate_poles).sum(1)

        half_step = half_step[:, 0]
        through_p = cauchy(C, P) * cauchy(P.conj(), B) * half_step / (1 + half_step * cauchy(P.conj(), P))
        return torch.fft.irfft(dt[:, None] * (cauchy(C, B) - through_p), n=n_taps)

    def _regular(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """y (b, l, d) and the last h (b, d, N), by Toeplitz products within blocks of bars."""
        batch, length, _ = x.shape
        block_bars = choose_block_bars(length, self.d_state)
        n_blocks = -(-length // block_bars)  # rounded up
        n_last_bars = (length - 1) % block_bars + 1
        from_x, from_h, into_h, powers = self._cached(
            (block_bars, x.dtype), lambda: self._block_matrices(block_bars, x.dtype)
        )
        columns = to_columns(x, block_bars)  # (d, block_bars, n_blocks · b)
        added = torch.bmm(into_h, columns).unflatten(
            2, (n_blocks, batch)
        )  # the contribution of every block to the state
        starts = [h.permute(1, 2, 0)]  # h (d, N, b) before every block
        for block in added.unbind(2)[:-1]:
            starts.append(torch.baddbmm(block, powers[-1], starts[-1]))
        y = torch.baddbmm(torch.bmm(from_x, columns), from_h, torch.cat(starts, dim=2))
        last_block = torch.bmm(
            into_h[..., block_bars - n_last_bars :], columns[:, :n_last_bars, (n_blocks - 1) * batch :]
        )
        return from_columns(y, batch, length), (last_block + _advance(powers, starts[-1], n_last_bars)).permute(2, 0, 1)

    def _block_matrices(self, block_bars: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The matrices of a block of q = block_bars bars, and the powers of Ā.

        x → y (d, q, q), h → y (d, q, N), x → h (d, N, q), and a list of Ā, Ā², Ā⁴ … Ā^q, each (d, N, N).
        """
        A_bar, B_bar, C = self._discrete()
        into, out, powers = _krylov(A_bar, B_bar, C, block_bars)
        taps = torch.einsum("dn,dnt->dt", C, into)
        taps = torch.cat([taps[:, :1] + self.D[:, None].double(), taps[:, 1:]], dim=1).to(dtype)
        return causal_toeplitz(taps), out.to(dtype), into.flip(2).to(dtype), [p.to(dtype) for p in powers]

    def _step_matrix(self, dtype: torch.dtype) -> Tensor:
        """The matrix (d, 1 + N, 1 + N) that maps the row (x_t, h_{t−1}) to the row (y_t, h_t)."""
        A_bar, B_bar, C = self._discrete()
        to_h = torch.cat([B_bar[..., None], A_bar], dim=2).transpose(1, 2)  # (d, 1 + N, N)
        to_y = torch.bmm(to_h, C[..., None])
        to_y = torch.cat([to_y[:, :1] + self.D[:, None, None].double(), to_y[:, 1:]], dim=1)
        return torch.cat([to_y, to_h], dim=2).contiguous().to(torch.promote_types(dtype, self.D.dtype))

    def _irregular(self, x: Tensor, h: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """y (b, l, d) and the last h (b, d, N), bar by bar.

        With the bilinear discretisation a bar costs O(N) by Woodbury; zero-order hold uses a matrix for every distinct
        gap.
        """
        x = x.masked_fill(gaps[..., None] == 0, 0.0)
        decay, frequency, P, B, C, dt = (v.to(x.dtype) for v in self._values())
        b = B.flatten(1)
        output_row = C.flatten(1)
        is_zoh = self.discretisation == "zoh"
        matrices, gaps_or_indices = self._gap_matrices(gaps) if is_zoh else (gaps, gaps)
        matrices = matrices.to(x.dtype)

        def advance(h: Tensor, x: Tensor, gap_or_index: Tensor) -> Tensor:
            if is_zoh:  # an index of a gap among matrices
                return torch.einsum("bdij,bdj->bdi", matrices[gap_or_index], torch.cat([h, x[..., None]], dim=-1))
            step = dt * gap_or_index[:, None]  # Ā h + B̄ x = R (2h + Δ B x) − h
            right = 2 * h + (step * x)[..., None] * b
            return _apply_resolvent(right.unflatten(2, (-1, 2)), step, decay, frequency, P).flatten(2) - h

        def run_block(h: Tensor, x: Tensor, gaps_or_indices: Tensor) -> tuple[Tensor, Tensor]:
            outputs = []
            for x_t, gap_or_index in zip(x.unbind(1), gaps_or_indices.unbind(1), strict=True):
                h = advance(h, x_t, gap_or_index)
                outputs.append((h * output_row).sum(-1) + self.D * x_t)
            return torch.stack(outputs, dim=1), h

        return run_in_blocks(
            run_block, h, x, gaps_or_indices, block_bars=max(1, min(64, 16 * MAX_BLOCK_ELEMENTS // max(1, h.numel())))
        )

    def _gap_matrices(self, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """[Ā B̄] of every distinct gap (g, d, N, N + 1), and the index among them of every bar's gap (b, l).

        The matrices are computed one by one, so that a later gap never changes the last digit of an earlier gap's
        matrix.
        """
        distinct, index = torch.unique(gaps, return_inverse=True)
        if len(distinct) > MAX_ZOH_GAPS:
            raise SizeError(
                f"{len(distinct)} distinct gaps; zoh keeps a matrix for each: {MAX_ZOH_GAPS} at most, or bilinear"
            )
        matrices = [torch.cat([A_bar, B_bar[..., None]], dim=2) for A_bar, B_bar, _ in map(self._discrete, distinct)]
        return torch.stack(matrices), index

    def _values(self) -> tuple[Tensor, ...]:
        """exp(log_decay), Im Λ (d, m); P, B (d, m, 2); C as the row that gives 2 Re(C h) (d, m, 2); Δ (d,)."""
        C = self.C * self.C.new_tensor([2.0, -2.0])
        return torch.exp(self.log_decay), self.frequency, self.P, self.B, C, torch.exp(self.log_dt)

    def _discrete(self, gap: float | Tensor = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Ā (d, N, N), B̄ (d, N) and C (d, N) in float64, over real and imaginary parts, for one ``gap``."""
        decay, frequency, P, B, C, dt = (v.double() for v in self._values())
        dt = dt * gap
        b = B.flatten(1)
        if self.discretisation == "bilinear":
            R = _resolvent(dt, decay, frequency, P)
            eye = torch.eye(self.d_state, dtype=R.dtype, device=R.device)
            return 2 * R - eye, dt[:, None] * torch.einsum("dij,dj->di", R, b), C.flatten(1)
        p = P.flatten(1)
        A = _multiplication_matrix(torch.stack([-decay, frequency], dim=-1)) - 2 * p[:, :, None] * p[:, None]
        system = nn.functional.pad(torch.cat([A, b[..., None]], dim=2), (0, 0, 0, 1))
        discrete = torch.matrix_exp(dt[:, None, None] * system)
        return discrete[:, :-1, :-1], discrete[:, :-1, -1], C.flatten(1)

    def _empty_cache(self) -> dict[Any, Any]:
        """An empty cache of matrices; WeightCache calls it again after every change of the weights."""
        return {}

    def _cached(self, key: tuple[Any, torch.dtype], compute: Callable[[], Any]) -> Any:
        """The result of ``compute``; without gradients it is cached under ``key`` until a weight changes."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        matrices = self._matrices()
        if key not in matrices:
            matrices[key] = compute()
        return matrices[key]


@njit(nogil=True, error_model="numpy", cache=True)
def _step_kernel(x: Any, h: Any, matrix: Any, y: Any, next_h: Any) -> None:
    """Writes ``y`` (b, d) and ``next_h`` (b, d, N) for one bar x (b, d), the state h (b, d, N) and ``_step_matrix``."""
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            output = x[b, c] * matrix[c, 0, 0]
            for j in range(h.shape[2]):
                next_h[b, c, j] = x[b, c] * matrix[c, 0, 1 + j]
            for i in range(h.shape[2]):
                value = h[b, c, i]
                output += value * matrix[c, 1 + i, 0]
                for j in range(h.shape[2]):
                    next_h[b, c, j] += value * matrix[c, 1 + i, 1 + j]
            y[b, c] = output


def _initial_values(spectrum: str, n: int) -> list[Tensor]:
    """Λ, P and B (m,) complex, equal for all channels: the values of LegS, or random values for the ablation."""
    if spectrum == "legs":
        return [torch.as_tensor(v[n // 2 :]) for v in nplr(n)[:3]]
    eigenvalues = torch.as_tensor(random_spectrum(n))
    return [eigenvalues, torch.randn_like(eigenvalues), torch.randn_like(eigenvalues)]


def _krylov(A_bar: Tensor, B_bar: Tensor, C: Tensor, n_powers: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Ā^j B̄ (d, N, n) for j < n, C Ā^j (d, n, N) for 1 ≤ j ≤ n, and a list of Ā, Ā², Ā⁴ … Ā^n; n = n_powers = 2^k."""
    into = B_bar[..., None]
    out = torch.einsum("dn,dnk->dk", C, A_bar)[:, None]
    powers = [A_bar]
    while into.shape[2] < n_powers:
        into = torch.cat([into, torch.bmm(powers[-1], into)], dim=2)
        out = torch.cat([out, torch.bmm(out, powers[-1])], dim=1)
        powers.append(torch.bmm(powers[-1], powers[-1]))
    return into, out, powers


def _advance(powers: list[Tensor], h: Tensor, n_bars: int) -> Tensor:
    """Ā^n_bars h (d, N, b); ``powers``: Ā, Ā², Ā⁴ …, each (d, N, N)."""
    for bit, power in enumerate(powers):
        if n_bars >> bit & 1:
            h = torch.bmm(power, h)
    return h


def _multiplication_matrix(value: Tensor) -> Tensor:
    """The matrix (d, 2m, 2m) that multiplies by ``value`` (d, m, 2) complex, over real and imaginary parts."""
    real, imag = value.unbind(-1)
    rotation = torch.stack([torch.stack([real, -imag], dim=-1), torch.stack([imag, real], dim=-1)], dim=-2)
    eye = torch.eye(value.shape[1], dtype=value.dtype, device=value.device)
    return (rotation[:, :, :, None] * eye[:, None, :, None]).flatten(3, 4).flatten(1, 2)


def _woodbury_terms(dt: Tensor, decay: Tensor, frequency: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E = (1 − Δ/2 Λ)⁻¹ and E P (…, d, m, 2), and Δ / (1 + Δ/2 P* E P) (…, d), for ``dt`` (…, d)."""
    half_step = dt[..., None] / 2
    real = 1 + half_step * decay
    imag = half_step * frequency
    E = torch.stack([real, imag], dim=-1) / (real.square() + imag.square())[..., None]
    through_p = (P.square().sum(-1) * E[..., 0]).sum(-1)  # half of P* E P, since m has one state of each pair
    return E, complex_pairs.multiply(E, P), dt / (1 + dt * through_p)


def _apply_resolvent(h: Tensor, dt: Tensor, decay: Tensor, frequency: Tensor, P: Tensor) -> Tensor:
    """R h for h (…, d, m, 2), by Woodbury: E h − E P · Δ Re(P* E h) / (1 + Δ/2 P* E P)."""
    E, into, weight = _woodbury_terms(dt, decay, frequency, P)
    h = complex_pairs.multiply(E, h)
    return h - into * ((P * h).sum((-1, -2)) * weight)[..., None, None]


def _resolvent(dt: Tensor, decay: Tensor, frequency: Tensor, P: Tensor) -> Tensor:
    """The matrix R (d, N, N) for ``dt`` (d,), by Woodbury."""
    E, into, weight = _woodbury_terms(dt, decay, frequency, P)
    conjugate_row = complex_pairs.multiply(E * E.new_tensor([1.0, -1.0]), P)
    column = (into * weight[:, None, None]).flatten(1)
    return _multiplication_matrix(E) - column[:, :, None] * conjugate_row.flatten(1)[:, None]
