"""Recurrences over irregularly spaced bars against their definition (S4-03; ids: .github/sources.md)."""

import pytest
import torch
from torch import Tensor

from models.layers import irregular
from models.layers.irregular import diagonal_ssm_irregular, run_in_blocks
from models.layers.scan import diagonal_ssm_reference


def make_system(d: int = 3, m: int = 4, dtype: torch.dtype = torch.double) -> tuple[Tensor, ...]:
    """A (d, m), Δ (d,), C (d, m) and D (d,) of a stable diagonal system."""
    torch.manual_seed(0)
    A = torch.complex(-torch.rand(d, m, dtype=dtype) - 0.1, 3 * torch.randn(d, m, dtype=dtype))
    C = torch.complex(torch.randn(d, m, dtype=dtype), torch.randn(d, m, dtype=dtype))
    dt = 0.1 + torch.rand(d, dtype=dtype)
    return A, dt, C, torch.randn(d, dtype=dtype)


def run_definition(
    x: Tensor, gaps: Tensor, A: Tensor, dt: Tensor, C: Tensor, D: Tensor, h: Tensor
) -> tuple[Tensor, ...]:
    """y and the last state, bar by bar from the definition; ``h`` is the state before the first bar."""
    outputs = []
    for t in range(x.shape[1]):
        a = torch.exp(A * dt[:, None] * gaps[:, t, None, None])
        h = a * h + (a - 1) / A * x[:, t, :, None]
        outputs.append(2 * (C * h).sum(-1).real + D * x[:, t])
    return torch.stack(outputs, dim=1), h


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("max_block_elements", [1, 100, 1 << 18])
def test_blocks_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch, max_block_elements: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(irregular, "MAX_BLOCK_ELEMENTS", max_block_elements)
    A, dt, C, D = make_system(dtype=dtype)
    x = torch.randn(2, 19, 3, dtype=dtype)
    gaps = 3 * torch.rand(2, 19, dtype=dtype)
    h = torch.randn_like(A.repeat(2, 1, 1))
    y, last = diagonal_ssm_irregular(x, A, dt, gaps, C, D, h)
    expected, after = run_definition(x, gaps, A, dt, C, D, h)
    assert (y - expected).norm() < tolerance * expected.norm() and (last - after).norm() < tolerance * after.norm()


def test_gaps_of_one_equal_the_time_invariant_system() -> None:
    A, dt, C, D = make_system()
    x = torch.randn(2, 19, 3, dtype=torch.double)
    a = torch.exp(A * dt[:, None])
    hold = (a - 1) / A
    expected, after = diagonal_ssm_reference(x, a, 2 * C * hold, D)
    y, last = diagonal_ssm_irregular(x, A, dt, torch.ones(2, 19), C * hold, D, B=1 / hold)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, after)


def test_a_gap_of_two_equals_two_bars_of_the_same_input() -> None:
    A, dt, C, D = make_system()
    x = torch.randn(2, 6, 3, dtype=torch.double)
    doubled, state = diagonal_ssm_irregular(x, A, dt, 2 * torch.ones(2, 6), C, D)
    repeated, after = diagonal_ssm_irregular(x.repeat_interleave(2, dim=1), A, dt, torch.ones(2, 12), C, D)
    torch.testing.assert_close(doubled, repeated[:, 1::2])
    torch.testing.assert_close(state, after)


def test_a_gap_of_zero_leaves_the_state_bit_identical_even_for_nan() -> None:
    A, dt, C, D = make_system(dtype=torch.float32)
    x = torch.randn(2, 8, 3)
    gaps = torch.rand(2, 8) + 0.5
    real_bars = torch.tensor([0, 1, 4, 7])  # positions of the bars that are not padding
    gaps[:, [2, 3, 5, 6]] = 0.0
    x[:, [2, 5]] = torch.nan
    y, last = diagonal_ssm_irregular(x, A, dt, gaps, C, D)
    short, after = diagonal_ssm_irregular(x[:, real_bars], A, dt, gaps[:, real_bars], C, D)
    assert torch.equal(y[:, real_bars], short) and torch.equal(last, after)


def test_gradients_across_blocks_equal_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(irregular, "MAX_BLOCK_ELEMENTS", 24)
    A, dt, C, D = make_system(2, 2)
    inputs = [torch.randn(2, 5, 2, dtype=torch.double), A, dt, C, D, torch.randn_like(A.repeat(2, 1, 1)), C + 1]
    gaps = torch.tensor([[1.0, 2, 0, 1, 3], [0.5, 1, 1, 1, 1]], dtype=torch.double)

    def run(x: Tensor, A: Tensor, dt: Tensor, C: Tensor, D: Tensor, h: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        y, last = diagonal_ssm_irregular(x, A, dt, gaps, C, D, h, B)
        return y, torch.view_as_real(last)

    assert torch.autograd.gradcheck(run, [v.detach().requires_grad_() for v in inputs])


def test_the_decays_of_all_bars_are_not_stored_for_the_backward_pass() -> None:
    """Autograd may store the inputs and one state per block, but not the b · l · d · m decays."""
    A, dt, C, D = make_system(8, 64, torch.float32)
    x = torch.randn(2, 512, 8, requires_grad=True)
    n_stored = 0  # numbers that autograd stores for the backward pass

    def count(value: Tensor) -> Tensor:
        nonlocal n_stored
        n_stored += value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        y, _ = diagonal_ssm_irregular(x, A, dt, torch.ones(2, 512), C, D)
    n_decays = x.numel() * A.shape[1]
    assert n_stored < n_decays / 8
    y.sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


def test_blocks_run_once_without_gradients_and_twice_with_gradients() -> None:
    block_lengths = []

    def run(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        block_lengths.append(x.shape[1])
        y = state[:, None] + x.square().cumsum(1)
        return y, y[:, -1]

    x = torch.randn(2, 10, requires_grad=True)
    y, last = run_in_blocks(run, torch.zeros(2), x, block_bars=4)
    y.sum().backward()
    assert block_lengths == [4, 4, 2, 2, 4, 4]  # forward, then again in reverse order for the backward pass
    torch.testing.assert_close(y, x.square().cumsum(1))
    torch.testing.assert_close(x.grad, 2 * x * torch.arange(10.0, 0, -1))
    assert torch.equal(last, y[:, -1])
    block_lengths.clear()
    with torch.no_grad():
        run_in_blocks(run, torch.zeros(2), x, block_bars=4)
    assert block_lengths == [4, 4, 2]
