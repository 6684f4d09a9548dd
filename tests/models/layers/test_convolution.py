"""Causal convolutions against their definitions."""

import torch
from torch.nn.functional import conv1d

from models.layers.convolution import causal_depthwise, causal_toeplitz


def test_the_toeplitz_matrix_holds_the_kernel_on_its_diagonals() -> None:
    matrix = causal_toeplitz(torch.tensor([[1.0, 2.0, 3.0]]))
    assert matrix.tolist() == [[[1, 0, 0], [2, 1, 0], [3, 2, 1]]]


def test_the_product_is_the_convolution_sum() -> None:
    kernel, x = torch.randn(2, 7, dtype=torch.double), torch.randn(2, 7, dtype=torch.double)
    y = torch.bmm(causal_toeplitz(kernel), x[..., None])[..., 0]
    for t in range(7):
        torch.testing.assert_close(y[:, t], sum(kernel[:, j] * x[:, t - j] for j in range(t + 1)))


def test_depthwise_is_torchs_padded_and_cut_convolution() -> None:
    """MAM-11: kernel d_conv, padding d_conv − 1, cut to the length."""
    x, weight, bias = torch.randn(2, 9, 3), torch.randn(3, 4), torch.randn(3)
    y, tail = causal_depthwise(x, weight, bias, torch.zeros(2, 3, 3))
    expected = conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=3)[..., :9].transpose(1, 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tail, x[:, -3:])


def test_the_tail_joins_two_halves() -> None:
    x, weight, bias, empty = torch.randn(2, 9, 3), torch.randn(3, 4), torch.randn(3), torch.zeros(2, 3, 3)
    whole, last = causal_depthwise(x, weight, bias, empty)
    for cut in (1, 2, 5):
        first, tail = causal_depthwise(x[:, :cut], weight, bias, empty)
        second, after = causal_depthwise(x[:, cut:], weight, bias, tail)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(after, last)
