"""Causal convolutions against their defining sums."""

import pytest
import torch

from models.layers.convolution import (
    block_bars,
    causal_convolution,
    causal_product,
    causal_toeplitz,
    from_columns,
    to_columns,
)
from models.layers.errors import ShapeError


def test_the_toeplitz_matrix_holds_the_kernel_on_its_diagonals() -> None:
    matrix = causal_toeplitz(torch.tensor([[1.0, 2.0, 3.0]]))
    assert matrix.tolist() == [[[1, 0, 0], [2, 1, 0], [3, 2, 1]]]


def test_the_product_is_the_convolution_sum() -> None:
    kernel = torch.randn(2, 7, dtype=torch.double)
    x = torch.randn(2, 7, dtype=torch.double)
    y = torch.bmm(causal_toeplitz(kernel), x[..., None])[..., 0]
    for t in range(7):
        torch.testing.assert_close(y[:, t], sum(kernel[:, j] * x[:, t - j] for j in range(t + 1)))


def convolution_sum(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """y_t = Σ_j kernel_j x_{t−j}, term by term."""
    outputs = [sum(kernel[:, j] * x[:, t - j] for j in range(t + 1)) for t in range(x.shape[1])]
    return torch.stack(outputs, dim=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("bars", [1, 3, 8, 37, 64])
def test_products_of_blocks_are_the_convolution_sum(bars: int, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 37, 3, dtype=dtype)
    kernel = torch.randn(3, 40, dtype=dtype)
    expected = convolution_sum(x.double(), kernel.double())
    assert (causal_product(x, kernel, bars) - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130, 700])
@pytest.mark.parametrize("exact", [True, False])
def test_every_form_that_the_tables_choose_is_the_convolution_sum(length: int, exact: bool) -> None:
    x = torch.randn(2, length, 2, dtype=torch.double)
    kernel = torch.randn(2, length, dtype=torch.double)
    expected = torch.bmm(causal_toeplitz(kernel), x.permute(2, 1, 0)).permute(2, 1, 0)
    torch.testing.assert_close(causal_convolution(x, kernel, exact), expected)


def test_gradients_of_block_products_equal_finite_differences() -> None:
    x = torch.randn(2, 7, 2, dtype=torch.double, requires_grad=True)
    kernel = torch.randn(2, 9, dtype=torch.double, requires_grad=True)
    for bars in (2, 3, 7):
        assert torch.autograd.gradcheck(lambda x, kernel, bars=bars: causal_product(x, kernel, bars), (x, kernel))


def test_later_bars_do_not_change_earlier_outputs_by_a_bit() -> None:
    x = torch.randn(3, 700, 4)
    kernel = torch.randn(4, 700)
    changed = x.clone()
    changed[:, 300:] = 1e3
    y = causal_convolution(x, kernel)
    y_changed = causal_convolution(changed, kernel)
    assert torch.equal(y[:, :300], y_changed[:, :300]) and not torch.equal(y[:, 300:], y_changed[:, 300:])
    by_transform = [causal_convolution(v, kernel, exact_causality=False)[:, :300] for v in (x, changed)]
    assert not torch.equal(*by_transform)  # therefore a network that forecasts must not use the transform


def test_from_columns_inverts_to_columns() -> None:
    x = torch.randn(3, 10, 2)
    columns = to_columns(x, 4)
    assert columns.shape == (2, 4, 9) and torch.equal(columns[1, 2, 3:6], x[:, 6, 1])
    assert torch.equal(from_columns(columns, 3, 10), x) and not columns[:, 2:, 6:].any()


def test_a_block_is_a_power_of_two_no_longer_than_needed() -> None:
    for d_state in (2, 16, 64, 256):
        for length in (1, 2, 5, 100, 3000, 100_000):
            bars = block_bars(length, d_state)
            assert bars & (bars - 1) == 0 and bars < 2 * length


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    for kernel in (torch.randn(3, 9), torch.randn(2, 8), torch.randn(2, 9, 1)):
        with pytest.raises(ShapeError, match=r"needs \(2, 9\)"):
            causal_convolution(torch.randn(1, 9, 2), kernel)
