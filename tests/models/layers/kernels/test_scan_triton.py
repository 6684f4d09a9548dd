"""The GPU kernel, run by Triton's interpreter where there is no GPU: the same arithmetic, slowly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch's CUDA builds")

CHECK = """
import sys, torch
from models.layers.kernels import scan_triton
from models.layers.scan import RULES, selective_scan_reference

device = sys.argv[1]
torch.manual_seed(0)
b, d, length, n = 2, 20, 70, 3
for rule in RULES:
    for full in (True, False):
        u, delta, z = (torch.randn(b, length, d) for _ in range(3))
        B, C, D, bias, h = (torch.randn(*s) for s in ((b, length, n), (b, length, n), (d,), (d,), (b, d, n)))
        A, gaps = -torch.rand(d, n) * 0.3 - 0.1, torch.rand(b, length)
        delta = delta if full else torch.nn.functional.softplus(delta)
        rest = [D, z, bias, gaps] if full else [None] * 4
        given = [None if v is None else v.to(device).requires_grad_() for v in (u, delta, A, B, C, *rest, h)]
        y, last = scan_triton.selective(given[:-1], given[-1], full, RULES.index(rule))
        (y.cos().sum() + last.square().sum()).backward()
        ours = [y, last, *(v.grad for v in given if v is not None and v is not given[8])]
        slow = [None if v is None else v.detach().clone().requires_grad_() for v in given]
        u, delta, A, B, C, D, z, bias, gaps, h = slow
        u_, delta_, B_, C_, z_ = (None if v is None else v.transpose(1, 2) for v in (u, delta, B, C, z))
        gaps_ = None if gaps is None else gaps.detach()
        y, last = selective_scan_reference(u_, delta_, A, B_, C_, D, z_, bias, full, h, True, gaps_, rule)
        y = y.transpose(1, 2)
        (y.cos().sum() + last.square().sum()).backward()
        expected = [y, last, *(v.grad for v in slow if v is not None and v is not gaps)]
        for a, e in zip(ours, expected, strict=True):
            assert (a - e).abs().max() <= 1e-5 * e.abs().max().clamp(min=1e-3), (rule, full, a.shape)
print("equal")
"""


def run(device: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, device],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr


def test_interpreted_it_equals_the_recurrence_and_so_do_its_gradients() -> None:
    assert run("cpu", TRITON_INTERPRET="1") == "equal"


@pytest.mark.gpu
def test_on_a_gpu_it_equals_the_recurrence_and_so_do_its_gradients() -> None:
    assert run("cuda") == "equal"
