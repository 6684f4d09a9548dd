"""The Triton kernel of the selective scan against the recurrence; without a GPU, Triton's slow interpreter runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch's CUDA builds")

COMPARISON = """
import sys, torch
from models.layers.kernels import scan_triton
from models.layers.scan import RULES, selective_scan_reference

device = sys.argv[1]
torch.manual_seed(0)
b, d, length, n = 2, 20, 70, 3
for rule in RULES:
    for with_optional in (True, False):
        u, delta, z = (torch.randn(b, length, d) for _ in range(3))
        B, C, D, bias, h = (torch.randn(*s) for s in ((b, length, n), (b, length, n), (d,), (d,), (b, d, n)))
        A = -torch.rand(d, n) * 0.3 - 0.1
        gaps = torch.rand(b, length)
        delta = delta if with_optional else torch.nn.functional.softplus(delta)
        optional = [D, z, bias, gaps] if with_optional else [None] * 4
        inputs = [None if v is None else v.to(device).requires_grad_() for v in (u, delta, A, B, C, *optional, h)]
        y, last = scan_triton.selective(inputs[:-1], inputs[-1], with_optional, RULES.index(rule))
        (y.cos().sum() + last.square().sum()).backward()
        actual = [y, last, *(v.grad for v in inputs if v is not None and v is not inputs[8])]
        copies = [None if v is None else v.detach().clone().requires_grad_() for v in inputs]
        u, delta, A, B, C, D, z, bias, gaps, h = copies
        u_, delta_, B_, C_, z_ = (None if v is None else v.transpose(1, 2) for v in (u, delta, B, C, z))
        gaps_ = None if gaps is None else gaps.detach()
        y, last = selective_scan_reference(u_, delta_, A, B_, C_, D, z_, bias, with_optional, h, True, gaps_, rule)
        y = y.transpose(1, 2)
        (y.cos().sum() + last.square().sum()).backward()
        expected = [y, last, *(v.grad for v in copies if v is not None and v is not gaps)]
        for a, e in zip(actual, expected, strict=True):
            assert (a - e).abs().max() <= 1e-5 * e.abs().max().clamp(min=1e-3), (rule, with_optional, a.shape)
print("equal")
"""


def run_comparison(device: str, **environment: str) -> str:
    """What the comparison prints in a process of its own: "equal", or the error."""
    completed = subprocess.run(
        [sys.executable, "-c", COMPARISON, device],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.stdout.strip() or completed.stderr


def test_interpreted_kernel_and_its_gradients_equal_the_recurrence() -> None:
    assert run_comparison("cpu", TRITON_INTERPRET="1") == "equal"


@pytest.mark.gpu
def test_kernel_on_a_gpu_and_its_gradients_equal_the_recurrence() -> None:
    assert run_comparison("cuda") == "equal"
