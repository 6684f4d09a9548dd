"""The short causal convolution of Mamba against torch's convolution (MAM-11; ids: .github/sources.md)."""

import torch
from torch.nn.functional import conv1d, silu

from models.layers.depthwise import causal_depthwise_silu


def test_the_convolution_equals_torchs_with_padding_before_the_first_bar() -> None:
    """MAM-11: torch pads d_conv − 1 bars on both sides; the outputs after the last bar are dropped."""
    x = torch.randn(2, 9, 3)
    weight = torch.randn(3, 4)
    bias = torch.randn(3)
    y, tail = causal_depthwise_silu(x, weight, bias, torch.zeros(2, 3, 3))
    before_silu = conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=3)[..., :9].transpose(1, 2)
    torch.testing.assert_close(y, silu(before_silu))
    torch.testing.assert_close(tail, x[:, -3:])


def test_two_calls_joined_by_the_tail_equal_one_call() -> None:
    x = torch.randn(2, 9, 3)
    weight = torch.randn(3, 4)
    bias = torch.randn(3)
    initial_tail = torch.zeros(2, 3, 3)
    whole, last = causal_depthwise_silu(x, weight, bias, initial_tail)
    for n_first_bars in (1, 2, 5):
        first, tail = causal_depthwise_silu(x[:, :n_first_bars], weight, bias, initial_tail)
        second, after = causal_depthwise_silu(x[:, n_first_bars:], weight, bias, tail)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(after, last)
