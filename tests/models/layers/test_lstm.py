"""The LSTM layer equals torch.nn.LSTM (S4-48; ids: .github/sources.md)."""

import torch

from models.layers.lstm import LSTM


def test_the_layer_equals_torchs_lstm() -> None:
    torch.manual_seed(0)
    layer = LSTM(5)
    x = torch.randn(3, 9, 5)
    h = torch.randn(3, 5)
    c = torch.randn(3, 5)
    expected, (h_n, c_n) = layer.cell(x, (h[None], c[None]))
    y, (last_h, last_c) = layer(x, (h, c))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close((last_h, last_c), (h_n[0], c_n[0]))


def test_one_step_per_bar_equals_one_call_of_forward() -> None:
    layer = LSTM(5)
    x = torch.randn(3, 9, 5)
    whole, _ = layer(x)
    state = layer.initial_state(3)
    for t in range(9):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=1e-4, atol=1e-5)
