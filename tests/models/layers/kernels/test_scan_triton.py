"""The Triton kernel of the selective scan against the recurrence in torch operations.

One test runs the kernel in Triton's slow interpreter, which needs no GPU; the other runs it on a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch's CUDA builds")

COMPARISON = """
import sys, torch
from models.layers.kernels import scan_triton
from models.layers.scan import DISCRETISATIONS, selective_scan_reference

device = sys.argv[1]
torch.manual_seed(0)
b, d, length, n = 2, 20, 70, 3
for rule in DISCRETISATIONS:
    for with_optional in (True, False):
        u, delta, z = (torch.randn(b, length, d) for _ in range(3))
        B, C, D, bias, h = (torch.randn(*s) for s in ((b, length, n), (b, length, n), (d,), (d,), (b, d, n)))
        A = -torch.rand(d, n) * 0.3 - 0.1
        gaps = torch.rand(b, length)
        delta = delta if with_optional else torch.nn.functional.softplus(delta)
        optional = [D, z, bias, gaps] if with_optional else [None] * 4
        # gaps, the input before h, have no gradient in the kernel
        inputs = [None if v is None else v.to(device).requires_grad_() for v in (u, delta, A, B, C, *optional, h)]
        kernel_gaps = inputs[-2]
        y, last = scan_triton.selective(inputs[:-1], inputs[-1], with_optional, DISCRETISATIONS.index(rule))
        (y.cos().sum() + last.square().sum()).backward()
        actual = [y, last, *(v.grad for v in inputs if v is not None and v is not kernel_gaps)]
        copies = [None if v is None else v.detach().clone().requires_grad_() for v in inputs]
        u, delta, A, B, C, D, z, bias, gaps, h = copies
        by_channel = [None if v is None else v.transpose(1, 2) for v in (u, delta, B, C, z)]  # the reference's layout
        u_t, delta_t, B_t, C_t, z_t = by_channel
        constant_gaps = None if gaps is None else gaps.detach()
        y, last = selective_scan_reference(
            u_t, delta_t, A, B_t, C_t, D, z_t, bias, delta_softplus=with_optional, initial_state=h,
            return_last_state=True, gaps=constant_gaps, discretisation=rule,
        )
        y = y.transpose(1, 2)
        (y.cos().sum() + last.square().sum()).backward()
        expected = [y, last, *(v.grad for v in copies if v is not None and v is not gaps)]
        for value, reference in zip(actual, expected, strict=True):
            tolerance = 1e-5 * reference.abs().max().clamp(min=1e-3)
            assert (value - reference).abs().max() <= tolerance, (rule, with_optional, value.shape)
print("equal")
"""


def run_comparison(device: str, **environment: str) -> str:
    """The output of COMPARISON in a new process: "equal", or the error."""
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
