"""The GRU layer against its equations (S4-44, S4-48; ids: .github/sources.md)."""

import pytest
import torch

from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.gru import GRU


def test_the_layer_equals_torchs_gru() -> None:
    torch.manual_seed(0)
    layer = GRU(5)
    x = torch.randn(3, 9, 5)
    h = torch.randn(3, 5)
    expected, last_of_each_layer = layer.cell(x, h[None])
    y, (last,) = layer(x, (h,))
    assert torch.equal(y, expected) and torch.equal(last, last_of_each_layer[0])


def test_one_bar_equals_hand_computed_gates() -> None:
    """h' = (1 − z) n + z h, with weights 1 and biases 0, so that the reset and the update gate are equal."""
    x = 0.5
    h = 0.25
    layer = GRU(1)
    with torch.no_grad():
        for name, weight in layer.cell.named_parameters():
            weight.fill_(0.0 if "bias" in name else 1.0)
    gate = torch.sigmoid(torch.tensor(x + h))
    n = torch.tanh(x + gate * h)
    y, _ = layer.step(torch.tensor([[x]]), (torch.tensor([[h]]),))
    torch.testing.assert_close(y[0, 0], (1 - gate) * n + gate * h)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_one_step_per_bar_equals_one_call_of_forward(dtype: torch.dtype, tolerance: float) -> None:
    layer = GRU(5).to(dtype)
    x = torch.randn(3, 9, 5, dtype=dtype)
    whole, (last,) = layer(x)
    state = layer.initial_state(3)
    for t in range(9):
        y, state = layer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state[0], last, rtol=tolerance, atol=tolerance)


def test_two_calls_joined_by_the_state_equal_one_call() -> None:
    layer = GRU(5)
    x = torch.randn(3, 9, 5)
    whole, last = layer(x)
    for n_first_bars in (1, 4, 8):
        first, state = layer(x[:, :n_first_bars])
        second, after = layer(x[:, n_first_bars:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(after, last)


def test_gradients_of_a_step_equal_finite_differences() -> None:
    torch.manual_seed(0)
    layer = GRU(2).double()
    bar_and_state = [torch.randn(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda x, h: layer.step(x, (h,))[0], bar_and_state)


def test_later_bars_leave_earlier_outputs_bit_identical() -> None:
    layer = GRU(5)
    x = torch.randn(3, 70, 5)
    changed = x.clone()
    changed[:, 40:] = 50.0
    assert torch.equal(layer(x)[0][:, :40], layer(changed)[0][:, :40])
    assert not torch.equal(layer(x)[0][:, 40:], layer(changed)[0][:, 40:])


def test_invalid_input_is_refused() -> None:
    layer = GRU(5)
    x = torch.randn(2, 4, 5)
    for misshapen in (x[:, :0], x[..., :4], x[:, 0]):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(ShapeError):
        layer.step(x, layer.initial_state(2))
    with pytest.raises(DtypeError):
        layer(x.int())
    for call in (lambda: layer(x, layer.initial_state(3)), lambda: layer.step(x[:, 0], layer.initial_state(3))):
        with pytest.raises(StateError):
            call()
    with pytest.raises(SizeError):
        GRU(0)
