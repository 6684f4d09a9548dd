"""Causal convolutions equal their defining sums; layers compute them in blocks of bars."""

import torch

from models.layers.convolution import causal_toeplitz, choose_block_bars, from_columns, to_columns


def test_the_toeplitz_matrix_contains_the_kernel_on_its_diagonals() -> None:
    matrix = causal_toeplitz(torch.tensor([[1.0, 2.0, 3.0]]))
    assert matrix.tolist() == [[[1, 0, 0], [2, 1, 0], [3, 2, 1]]]


def test_the_toeplitz_product_equals_the_convolution_sum() -> None:
    kernel = torch.randn(2, 7, dtype=torch.double)
    x = torch.randn(2, 7, dtype=torch.double)
    y = torch.bmm(causal_toeplitz(kernel), x[..., None])[..., 0]
    for t in range(7):
        torch.testing.assert_close(y[:, t], sum(kernel[:, j] * x[:, t - j] for j in range(t + 1)))


def test_from_columns_inverts_to_columns() -> None:
    x = torch.randn(3, 10, 2)
    columns = to_columns(x, 4)  # three blocks: bars 0 … 3, 4 … 7, and 8, 9 with two bars of padding
    assert columns.shape == (2, 4, 9)
    second_block = columns[:, :, 3:6]
    assert torch.equal(second_block[1, 2], x[:, 4 + 2, 1])
    padding = columns[:, 2:, 6:]
    assert not padding.any()
    assert torch.equal(from_columns(columns, 3, 10), x)


def test_the_number_of_bars_per_block_is_a_power_of_two_below_twice_the_length() -> None:
    for d_state in (2, 16, 64, 256):
        for length in (1, 2, 5, 100, 3000, 100_000):
            block_bars = choose_block_bars(length, d_state)
            is_power_of_two = block_bars & (block_bars - 1) == 0
            assert is_power_of_two and block_bars < 2 * length
