"""Causal convolutions against their defining sums."""

import torch

from models.layers.convolution import (
    block_bars,
    causal_toeplitz,
    from_columns,
    to_columns,
)


def test_the_toeplitz_matrix_holds_the_kernel_on_its_diagonals() -> None:
    matrix = causal_toeplitz(torch.tensor([[1.0, 2.0, 3.0]]))
    assert matrix.tolist() == [[[1, 0, 0], [2, 1, 0], [3, 2, 1]]]


def test_the_product_is_the_convolution_sum() -> None:
    kernel = torch.randn(2, 7, dtype=torch.double)
    x = torch.randn(2, 7, dtype=torch.double)
    y = torch.bmm(causal_toeplitz(kernel), x[..., None])[..., 0]
    for t in range(7):
        torch.testing.assert_close(y[:, t], sum(kernel[:, j] * x[:, t - j] for j in range(t + 1)))


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
