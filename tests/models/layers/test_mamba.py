"""The Mamba block (S4-23, MAM-07, MAM-10 to MAM-13, MAM-35, TRAP-05; ids: .github/sources.md)."""

from __future__ import annotations

import pytest
import torch

from models.layers.depthwise import causal_depthwise_silu
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.mamba import Mamba
from models.layers.scan import DISCRETISATIONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("discretisation", DISCRETISATIONS)
def test_one_call_of_forward_equals_one_step_per_bar(discretisation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Mamba(6, d_state=5, discretisation=discretisation).to(dtype)
    x = torch.randn(2, 83, 6, dtype=dtype)
    whole, last = layer(x)
    state = layer.initial_state(2)
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for a, b in ((torch.stack(outputs, dim=1), whole), *zip(state, last, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize(
    "layer", [Mamba(2, 2, dt_rank=1), Mamba.simplified(2, 2, d_conv=2)], ids=["paper", "simplified"]
)
def test_gradients_equal_finite_differences(layer: Mamba) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))


def test_padded_bars_at_the_end_do_not_change_the_state() -> None:
    torch.manual_seed(0)
    layer = Mamba(6)
    x = torch.randn(3, 12, 6)
    gaps = torch.ones(3, 12)
    lengths = (12, 7, 2)  # bars of each sequence that are not padded
    for i, length in enumerate(lengths):
        gaps[i, length:] = 0
        x[i, length:] = torch.nan
    y, state = layer(x, gaps=gaps)
    for i, length in enumerate(lengths):
        alone, last = layer(x[i : i + 1, :length])
        torch.testing.assert_close(y[i : i + 1, :length], alone)
        for a, b in zip(state, last, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


def test_step_sizes_equal_those_that_the_scan_uses() -> None:
    """MAM-35. With one state, Δ determines how fast an added impulse decays."""
    torch.manual_seed(0)
    layer = Mamba(4, d_state=1)
    x = torch.randn(1, 9, 4)
    delta = layer.step_sizes(x)
    assert delta.shape == (1, 9, 8) and (delta > 0).all()  # expand = 2: 8 inner channels
    _, (tail, h) = layer(x[:, :6])
    _, (_, with_impulse) = layer(x[:, 6:], (tail, h + 1.0))
    _, (_, without_impulse) = layer(x[:, 6:], (tail, h))
    expected = torch.exp(-(delta[0, 6:, :, None] * torch.exp(layer.A_log)).sum(0))
    torch.testing.assert_close((with_impulse - without_impulse)[0], expected)


def test_the_short_convolution_equals_its_definition_and_returns_its_tail() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 5)
    weight = torch.randn(5, 4)
    bias = torch.randn(5)
    tail = torch.randn(2, 3, 5)
    y, next_tail = causal_depthwise_silu(x, weight, bias, tail)
    padded = torch.cat([tail, x], dim=1)
    for t in range(9):
        convolved = bias + sum(weight[:, j] * padded[:, t + j] for j in range(4))
        torch.testing.assert_close(y[:, t], convolved * torch.sigmoid(convolved))
    assert torch.equal(next_tail, x[:, -3:])


def test_gradients_of_the_short_convolution_equal_finite_differences() -> None:
    shapes = ((2, 7, 3), (3, 4), (3,), (2, 3, 3))  # x, weight, bias, tail
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(causal_depthwise_silu, inputs)


def test_invalid_input_is_refused_and_the_error_says_what_to_do() -> None:
    layer = Mamba(6)
    x = torch.randn(2, 5, 6)
    for misshapen in (x[:, :0], x[0], x[..., :2]):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(DtypeError, match="int64"):
        layer(torch.zeros(2, 5, 6, dtype=torch.int64))
    with pytest.raises(StateError, match="initial_state"):
        layer(x, layer.initial_state(3))
    with pytest.raises(StateError, match="initial_state"):
        layer.step(x[:, 0], Mamba(6, d_conv=3).initial_state(2))
    with pytest.raises(SizeError, match="d_state is 0"):
        Mamba(6, d_state=0)
    with pytest.raises(SizeError, match="choose one of"):
        Mamba(6, discretisation="bilinear")


def test_two_calls_joined_by_the_state_equal_one_call() -> None:
    layer = Mamba(6)
    x = torch.randn(2, 13, 6)
    for n_first_bars in (1, 2, 7):  # shorter and longer than the tail of three bars
        first, state = layer(x[:, :n_first_bars])
        second, _ = layer(x[:, n_first_bars:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), layer(x)[0], rtol=1e-4, atol=1e-5)


def test_A_log_starts_as_the_logarithms_of_one_to_d_state_and_D_as_ones() -> None:
    """MAM-13, for the paper's block and for the simplified one."""
    d_state = 5
    expected = torch.log(torch.arange(1.0, d_state + 1))
    for layer in (Mamba(6, d_state=d_state, expand=2), Mamba.simplified(6, d_state=d_state, expand=2)):
        torch.testing.assert_close(layer.A_log, expected.expand_as(layer.A_log), check_stride=False)
        assert torch.equal(layer.D, torch.ones(2 * 6))


def test_shapes_follow_the_paper_and_not_the_source_articles() -> None:
    """TRAP-05: A has a row for every inner channel and dt has rank d_model / 16; ``simplified`` has one row of A."""
    layer = Mamba(64, d_state=16, expand=2)
    assert layer.A_log.shape == (128, 16)
    assert layer.dt_rank == 4 and layer.dt_proj.weight.shape == (128, 4)
    assert layer.in_proj.bias is None and layer.out_proj.bias is None
    torch.testing.assert_close(layer.A_log.exp()[0], torch.arange(1.0, 17))
    simplified = Mamba.simplified(64)
    assert simplified.dt_proj.weight.shape == (128, 1) and simplified.A_log.shape == (1, 16)


def test_step_sizes_start_within_their_bounds() -> None:
    delta = torch.nn.functional.softplus(Mamba(32, dt_min=0.001, dt_max=0.1).dt_proj.bias)
    # a tolerance of 0.1 % for the rounding of softplus and its inverse
    assert delta.min() >= 0.001 * 0.999 and delta.max() <= 0.1 * 1.001


def test_later_bars_leave_earlier_outputs_bit_identical() -> None:
    layer = Mamba(6)
    x = torch.randn(2, 30, 6)
    changed = x.clone()
    changed[:, 20:] = 50.0
    assert torch.equal(layer(x)[0][:, :20], layer(changed)[0][:, :20])


def test_the_decay_of_an_impulse_depends_on_later_inputs() -> None:
    """MAM-05: the same impulse changes the last state differently when the bars after it differ."""
    torch.manual_seed(0)
    layer = Mamba(4)
    quiet = torch.zeros(1, 3, 4)
    loud = torch.zeros(1, 3, 4)
    loud[:, 1] = 3.0
    changes = []
    for x in (quiet, loud):
        impulse = x.clone()
        impulse[:, 0] = 1.0
        _, (_, h_with_impulse) = layer(impulse)
        _, (_, h) = layer(x)
        changes.append(h_with_impulse - h)
    assert not torch.allclose(*changes, rtol=1e-2)
