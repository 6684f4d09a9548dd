"""The temporal convolutional network, a baseline as in S4-48, against torch's dilated convolutions.

Ids such as S4-48: .github/sources.md.
"""

import pytest
import torch
from torch.nn.functional import conv1d, relu

from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.tcn import TCN, State

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest expected value, at least to 1


def make_layer(dtype: torch.dtype = torch.float32, **sizes: int) -> TCN:
    torch.manual_seed(0)
    return TCN(4, **sizes).to(dtype)


def run_by_steps(layer: TCN, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """The outputs and the last state, computed by ``step``."""
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype] * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("taps", [1, 2, 3])
def test_equals_torchs_dilated_convolution_with_normalised_weights(dtype: torch.dtype, taps: int) -> None:
    layer = make_layer(dtype, levels=3, taps=taps)
    x = torch.randn(2, 40, 4, dtype=dtype)
    expected = x.transpose(1, 2)
    for level in range(3):
        inner = expected
        for convolution in layer.convolutions[2 * level : 2 * level + 2]:
            with torch.no_grad():
                convolution.gain.mul_(1.7)  # so that it differs from the norm of the direction
            direction = convolution.direction.unflatten(1, (taps, 4)).transpose(1, 2)
            weight = torch._weight_norm(direction, convolution.gain[:, None, None], 0)
            reach = (taps - 1) * 2**level
            inner = relu(conv1d(inner, weight, convolution.bias, padding=reach, dilation=2**level)[..., :40])
        expected = relu(expected + inner)
    assert_near(layer(x)[0], expected.transpose(1, 2))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_one_step_per_bar_equals_one_call_of_forward(dtype: torch.dtype) -> None:
    layer = make_layer(dtype)
    x = torch.randn(2, 50, 4, dtype=dtype)
    for state in (layer.initial_state(2), tuple(torch.randn_like(part) for part in layer.initial_state(2))):
        whole, last = layer(x, state)
        by_steps, last_of_steps = run_by_steps(layer, x, state)
        for actual, expected in zip((by_steps, *last_of_steps), (whole, *last), strict=True):
            assert_near(actual, expected)


def test_two_calls_joined_by_the_state_equal_one_call() -> None:
    layer = make_layer()
    x = torch.randn(2, 50, 4)
    whole, last = layer(x)
    for n_first_bars in (1, 3, 20, 49):
        first, state = layer(x[:, :n_first_bars])
        second, state = layer(x[:, n_first_bars:], state)
        for joined, expected in zip((torch.cat([first, second], dim=1), *state), (whole, *last), strict=True):
            assert_near(joined, expected)


def test_an_output_reads_exactly_the_bars_within_its_reach() -> None:
    levels = 3
    taps = 3
    layer = make_layer(levels=levels, taps=taps)
    reach = 2 * (taps - 1) * (2**levels - 1)
    x = torch.randn(1, 60, 4)
    x.requires_grad_()
    is_read = torch.autograd.grad(layer(x)[0][:, -1].sum(), x)[0].abs().sum((0, 2)) > 0
    assert is_read[59 - reach :].any() and not is_read[: 59 - reach].any()
    assert sum(c.reach for c in layer.convolutions) == reach


def test_later_bars_leave_earlier_outputs_bit_identical() -> None:
    layer = make_layer()
    x = torch.randn(3, 70, 4)
    changed = x.clone()
    changed[:, 40:] = 50.0
    assert torch.equal(layer(x)[0][:, :40], layer(changed)[0][:, :40])
    assert not torch.equal(layer(x)[0][:, 40:], layer(changed)[0][:, 40:])
    torch.testing.assert_close(layer(x[:, :40])[0], layer(x)[0][:, :40])


def test_every_parameter_learns_and_gradients_equal_finite_differences() -> None:
    layer = make_layer(torch.float64, levels=2, taps=2)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))
    layer(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in values)


def test_invalid_input_is_refused() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, 4)
    for misshapen in (x[:, :0], x[..., :3], x[:, 0]):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(DtypeError):
        layer(x.int())
    for call in (lambda: layer(x, layer.initial_state(3)), lambda: layer.step(x[:, 0], layer.initial_state(2)[:2])):
        with pytest.raises(StateError):
            call()
    for sizes in ({"levels": 0}, {"taps": 0}):
        with pytest.raises(SizeError):
            TCN(4, **sizes)
