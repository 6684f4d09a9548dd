"""The selective scan of Mamba: a diagonal recurrence whose step size, input and output maps change with every bar.

Paper: Gu & Dao 2023, 2312.00752 (section 3.2, algorithm 2). Shapes and argument names are mamba-ssm's.

Glossary: b sequences · d channels · l bars · n states per channel · u (b, d, l) input · delta (b, d, l) step size Δ ·
A (d, n) negative · B, C (b, n, l) · D (d,) skip · z (b, d, l) gate · h (b, d, n) state.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        y_t = C_t h_t + D u_t, then y · SiLU(z)

A is held zero-order, B by the Euler rule, as in the paper's own code. ``selective_scan_reference`` is the definition.
``selective_scan`` keeps the state only at the start of each block of bars and runs every block again in the backward
pass, so its memory beyond inputs and outputs does not grow with n·l.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu, softplus

BLOCK_ELEMENTS = 1 << 20  # of (bars, b, n, d) worked on at once: about what the last-level cache holds


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
) -> Any:
    """y (b, d, l), and with ``return_last_state`` also h (b, d, n): the recurrence, bar by bar."""
    delta = _step_size(delta, delta_bias, delta_softplus)
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(2), delta.unbind(2), B.unbind(2), C.unbind(2), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(-1))
    y = _skip_and_gate(torch.stack(outputs, dim=2), u, D, z)
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
) -> Any:
    """y (b, d, l), and with ``return_last_state`` also h (b, d, n); in float32 whatever the inputs are."""
    with torch.autocast(u.device.type, enabled=False):
        u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
        delta = _step_size(delta, delta_bias, delta_softplus)
        h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.float()
        by_bar = [v.permute(2, 0, 1).contiguous() for v in (u, delta, B, C)]
        y, last = _BlockScan.apply(by_bar[0], by_bar[1], A.float().t(), *by_bar[2:], h.transpose(1, 2))
        y = _skip_and_gate(y.permute(1, 2, 0), u, D, z)
    return (y, last.transpose(1, 2)) if return_last_state else y


def _step_size(delta: Tensor, bias: Tensor | None, positive: bool) -> Tensor:
    delta = delta if bias is None else delta + bias[:, None].to(delta.dtype)
    return softplus(delta) if positive else delta


def _skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D is None else torch.addcmul(y, u, D[:, None])
    return y if z is None else y * silu(z)


def _block(delta: Tensor, u: Tensor, A: Tensor, B: Tensor, decay: Tensor, states: Tensor) -> Tensor:
    """``states`` (k + 1, b, n, d), row 0 given, filled for the k bars; ``decay`` (k, b, n, d) filled with exp(Δ A)."""
    torch.mul(delta[:, :, None], A, out=decay).exp_()
    torch.mul((delta * u)[:, :, None], B[..., None], out=states[1:])
    for t in range(len(delta)):
        states[t + 1].addcmul_(decay[t], states[t])
    return states[1:]


class _BlockScan(torch.autograd.Function):
    """Bars first and channels last: u, delta (l, b, d); A (n, d); B, C (l, b, n); h (b, n, d) → y (l, b, d), last h."""

    @staticmethod
    def forward(ctx, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        length, shape = len(u), (u.shape[1], *A.shape)
        bars = max(1, min(length, BLOCK_ELEMENTS // h.numel()))
        decay, states = u.new_empty(bars, *shape), u.new_empty(bars + 1, *shape)
        y, starts = torch.empty_like(u), []
        for start in range(0, length, bars):
            block = slice(start, min(length, start + bars))
            k = block.stop - start
            starts.append(h)
            states[0] = h
            after = _block(delta[block], u[block], A, B[block], decay[:k], states[: k + 1])
            torch.matmul(C[block, :, None], after, out=y[block, :, None])
            h = after[-1].clone()
        ctx.save_for_backward(u, delta, A, B, C, *starts)
        ctx.bars = bars
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, *starts = ctx.saved_tensors
        length, bars, shape = len(u), ctx.bars, (u.shape[1], *A.shape)
        grad_y, g = grad_y.contiguous(), grad_h.contiguous().clone()
        grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(v) for v in (u, delta, B, C))
        grad_A = torch.zeros_like(g)  # per sequence, summed at the end
        decay, states, G, product = (u.new_empty(bars + 1, *shape) for _ in range(4))
        for start in range((length - 1) // bars * bars, -1, -bars):
            block = slice(start, min(length, start + bars))
            k = block.stop - start
            dt, x, gy = delta[block], delta[block] * u[block], grad_y[block]
            a, h, p, gk = decay[:k], states[: k + 1], product[:k], G[:k]
            h[0] = starts[start // bars]
            after = _block(dt, u[block], A, B[block], a, h)
            torch.sum(torch.mul(after, gy[:, :, None], out=p), -1, out=grad_C[block])
            torch.mul(gy[:, :, None], C[block, ..., None], out=gk)  # becomes the gradient of every h_t
            for t in range(k - 1, -1, -1):
                gk[t].add_(g)
                torch.mul(gk[t], a[t], out=g)
            torch.sum(torch.mul(gk, x[:, :, None], out=p), -1, out=grad_B[block])
            grad_x = torch.matmul(B[block, :, None], gk)[:, :, 0]
            gk.mul_(a).mul_(h[:-1])  # becomes the gradient of every Δ_t A
            grad_delta[block] = torch.mul(gk, A, out=p).sum(2).addcmul_(grad_x, u[block])
            torch.mul(grad_x, dt, out=grad_u[block])
            for t in range(k):
                grad_A.addcmul_(gk[t], dt[t, :, None])
        return grad_u, grad_delta, grad_A.sum(0), grad_B, grad_C, g
