"""The recurrences of the state-space layers: a slow definition of each, and fast forms for CPU, GPU and ONNX.

Selective scan: Gu & Dao 2023, 2312.00752 (section 3.2, algorithm 2). Shapes and argument names are mamba-ssm's.

Glossary: b sequences · d channels · l bars · n states per channel · u (b, d, l) input · delta (b, d, l) step size Δ ·
A (d, n) decay rates, negative · B, C (b, n, l) input and output maps · Ā, B̄ discretised A and B · D (d,) skip · z
(b, d, l) gate · h (b, d, n) state; an argument named h is the state before the first bar · y (b, d, l) output · gaps
(b, l) time since the previous bar, in bars; 0 marks a padded bar.

    h_t = Ā_t h_{t−1} + B̄_t u_t        y_t = C_t h_t + D u_t, then y · SiLU(z)

    discretisation
    "zoh_euler"  Ā = exp(ΔA), B̄ = Δ B           the paper's own code
    "zoh"        Ā = exp(ΔA), B̄ = (Ā − 1) / A · B  zero-order hold, the paper's equation 4
    "euler"      Ā = 1 + ΔA, B̄ = Δ B

Diagonal recurrences (S4D, DSS, S5) have complex states that do not mix. ``diagonal_scan``: p states in all · x (b, l,
p) input · a decay factors · h (b, p). ``diagonal_ssm``: m states per channel · x (b, l, d) input · a (d, m) decay
factors · w (d, m) output weights · h (b, d, m).

``*_reference`` is the definition, bar by bar. The fast forms save the state only at block boundaries. Their backward
pass recomputes the states between the boundaries, so the memory beyond inputs and outputs does not grow with n · l.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from models.layers import scan_chunked
from models.layers.errors import DtypeError, ShapeError, SizeError
from models.layers.kernels import diagonal_cpu, scan_cpu, scan_onnx

DISCRETISATIONS = ("zoh_euler", "zoh", "euler")


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    gaps: Tensor | None = None,
    discretisation: str = "zoh_euler",
) -> Any:
    """y (b, d, l), and with ``return_last_state`` also the last h (b, d, n): the recurrence, bar by bar.

    Δ is softplus(delta + delta_bias) · gap. The softplus, the bias, the gap, D and z are left out where the argument is
    not given. ``initial_state`` is h
    before the first bar, zeros by default; ``discretisation`` is one of DISCRETISATIONS.
    """
    delta = delta if delta_bias is None else delta + delta_bias[:, None].to(delta.dtype)
    delta = softplus(delta) if delta_softplus else delta
    delta = delta if gaps is None else delta * gaps[:, None]
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(2), delta.unbind(2), B.unbind(2), C.unbind(2), strict=True):
        decay, input_factor = discretise(delta_t[..., None], A, discretisation)
        h = decay * h + input_factor * u_t[..., None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(-1))
    y = torch.stack(outputs, dim=2)
    y = y if D is None else y + u * D[:, None]
    y = y if z is None else y * silu(z)
    return (y, h) if return_last_state else y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    gaps: Tensor | None = None,
    discretisation: str = "zoh_euler",
) -> Any:
    """As ``selective_scan_reference``: y (b, d, l) in the dtype of u; with ``return_last_state`` also the last h.

    Computed in float32, or in float64 if u is float64. ``gaps`` scale Δ bar by bar and have no gradient. A gap of 0
    marks a padded bar, which leaves the state unchanged for any inputs, also NaN. Raises ShapeError, DtypeError;
    SizeError for an unknown discretisation.
    """
    arguments = (u, delta, A, B, C, D, z, delta_bias)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "gaps")
    _check_scan(dict(zip(names, (*arguments, initial_state, gaps), strict=True)), discretisation)
    if torch.compiler.is_exporting():
        discretise_step = partial(discretise, discretisation=discretisation)
        return scan_onnx.selective(*arguments, delta_softplus, initial_state, return_last_state, gaps, discretise_step)
    if u.device.type not in ("cpu", "cuda") or (u.device.type == "cuda" and u.dtype == torch.float64):
        return selective_scan_reference(
            *arguments, delta_softplus, initial_state, return_last_state, gaps, discretisation
        )
    if gaps is not None:
        is_padded = (gaps == 0)[:, None]
        u, delta, B, C = (v.masked_fill(is_padded, 0.0) for v in (u, delta, B, C))
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        channels_last = [v.to(dtype).transpose(1, 2) for v in (u, delta, B, C)]
        decay, skip, gate, bias, h, scale = (
            None if v is None else v.to(dtype) for v in (A, D, z, delta_bias, initial_state, gaps)
        )
        gate = None if gate is None else gate.transpose(1, 2)
        h = channels_last[0].new_zeros(u.shape[0], *A.shape) if h is None else h
        inputs = [*channels_last[:2], decay, *channels_last[2:], skip, gate, bias, scale]
        kernel = scan_cpu.selective if u.device.type == "cpu" else _cuda_kernel()
        y, last = kernel(inputs, h, delta_softplus, DISCRETISATIONS.index(discretisation))
        y = y.transpose(1, 2).to(u.dtype)
    return (y, last) if return_last_state else y


def discretise(delta: Tensor, A: Tensor, discretisation: str) -> tuple[Tensor, Tensor]:
    """Ā and B̄ / B for step sizes Δ and A, whose shapes broadcast; ``discretisation`` is one of DISCRETISATIONS."""
    if discretisation == "euler":
        return 1 + delta * A, delta
    decay = torch.exp(delta * A)
    if discretisation != "zoh":
        return decay, delta
    is_zero = A == 0  # the limit of (Ā − 1) / A is Δ
    return decay, torch.where(is_zero, delta, torch.expm1(delta * A) / torch.where(is_zero, 1.0, A))


def diagonal_scan_reference(a: Tensor, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t−1} + x_t of every bar (b, l, p), and the last h (b, p).

    ``a`` (b or 1, l or 1, p), ``x`` (b, l, p) and ``h`` (b, p), the state before the first bar, are complex; ``h`` is
    zeros by default.
    """
    b, length, _ = x.shape
    a = a.expand(b, length, -1)
    h = torch.zeros_like(x[:, 0]) if h is None else h
    states = []
    for a_t, x_t in zip(a.unbind(1), x.unbind(1), strict=True):
        h = a_t * h + x_t
        states.append(h)
    return torch.stack(states, dim=1), h


def diagonal_scan(a: Tensor, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As ``diagonal_scan_reference``, by a kernel on a CPU and by doubling elsewhere. Raises ShapeError."""
    if torch.compiler.is_exporting():
        return diagonal_scan_reference(a, x, h)
    b, length, p = x.shape
    a_shape = (a.shape[0] if a.shape[0] == 1 else b, a.shape[1] if a.shape[1] == 1 else length, p)
    _check_diagonal({"a": (a, a_shape), "h": (h, (b, p))})
    h = torch.zeros_like(x[:, 0]) if h is None else h
    return (diagonal_cpu if x.device.type == "cpu" else scan_chunked).diagonal_scan(a, x, h)


def diagonal_ssm_reference(
    x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y (b, l, d) and the last h (b, d, m): h_t = a h_{t−1} + x_t and y_t = Re Σ_m w h_t + D x_t, bar by bar.

    ``x`` (b, l, d) real; ``a``, ``w`` (d, m) complex; ``D`` (d,); ``h`` (b, d, m) complex, zeros by default.
    """
    h = a.new_zeros(x.shape[0], *a.shape) if h is None else h
    outputs = []
    for x_t in x.unbind(1):
        h = a * h + x_t[..., None]
        outputs.append((w * h).real.sum(-1) + D * x_t)
    return torch.stack(outputs, dim=1), h


def diagonal_ssm(x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As ``diagonal_ssm_reference``, by a kernel on a CPU and in blocks of bars elsewhere. Raises ShapeError."""
    b, _, d = x.shape
    m = a.shape[-1]
    _check_diagonal({"a": (a, (d, m)), "w": (w, (d, m)), "D": (D, (d,)), "h": (h, (b, d, m))})
    if torch.compiler.is_exporting():  # ONNX has no complex numbers: x and h stay real
        pairs = x.new_zeros(x.shape[0], *a.shape, 2) if h is None else torch.view_as_real(h)
        y, last_pairs = scan_chunked.diagonal_ssm_pairs(x, torch.view_as_real(a), torch.view_as_real(w), D, pairs)
        return y, torch.view_as_complex(last_pairs.contiguous())
    h = a.new_zeros(x.shape[0], *a.shape) if h is None else h
    return (diagonal_cpu if x.device.type == "cpu" else scan_chunked).diagonal_ssm(x, a, w, D, h)


def _cuda_kernel() -> Any:
    from models.layers.kernels import scan_triton  # Triton is installed only with CUDA

    return scan_triton.selective


def _check_scan(arguments: Mapping[str, Tensor | None], discretisation: str) -> None:
    """Raises ShapeError, DtypeError or SizeError for arguments that the kernels cannot compute.

    The kernels themselves check nothing. All arguments must have the shapes of the glossary, be real floating tensors
    and be on one device.
    """
    if discretisation not in DISCRETISATIONS:
        raise SizeError(f"no discretisation {discretisation!r}; choose one of {', '.join(DISCRETISATIONS)}")
    u = arguments["u"]
    A = arguments["A"]
    assert u is not None and A is not None
    if u.dim() != 3 or not u.numel() or A.dim() != 2:
        raise ShapeError(
            f"u is {tuple(u.shape)} and A {tuple(A.shape)}; give u (b, d, l) of one bar or more and A (d, n)"
        )
    b, d, length = u.shape
    n = A.shape[1]
    by_channel = (b, d, length)
    by_state = (b, n, length)
    expected = {"u": by_channel, "delta": by_channel, "z": by_channel, "A": (d, n), "B": by_state, "C": by_state}
    expected |= {"D": (d,), "delta_bias": (d,), "gaps": (b, length), "initial_state": (b, d, n)}
    for name, value in arguments.items():
        if value is None:
            continue
        if tuple(value.shape) != expected[name]:
            raise ShapeError(f"{name} is {tuple(value.shape)}; u {tuple(u.shape)} and n = {n} require {expected[name]}")
        if not torch.is_floating_point(value) or value.device != u.device:
            raise DtypeError(f"{name} is {value.dtype} on {value.device}; give real floating tensors on one device")


def _check_diagonal(expected: Mapping[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Raises ShapeError unless every tensor has its shape; ``expected``: name → (tensor, shape)."""
    for name, (value, shape) in expected.items():
        if value is not None and tuple(value.shape) != shape:
            raise ShapeError(f"{name} is {tuple(value.shape)}; the other arguments require {shape}")
