"""The Mamba block (MAM-07, MAM-10 to MAM-13, MAM-35, TRAP-05)."""

import pytest
import torch

from models.layers.depthwise import causal_depthwise_silu
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.mamba import Mamba
from models.layers.scan import RULES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_whole_sequence_equals_step_by_step(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = Mamba(6, d_state=5, discretisation=rule).to(dtype), torch.randn(2, 83, 6, dtype=dtype)
    whole, last = layer(x)
    state, outputs = layer.initial_state(2), []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for a, b in ((torch.stack(outputs, dim=1), whole), *zip(state, last, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.detach().abs().max()))


@pytest.mark.parametrize("layer", [Mamba(2, 2, dt_rank=1), Mamba.simplified(2, 2, d_conv=2)], ids=["paper", "sources"])
def test_gradients_are_those_of_finite_differences(layer: Mamba) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))


def test_padded_bars_at_the_end_leave_the_state_as_it_was() -> None:
    torch.manual_seed(0)
    layer, x = Mamba(6), torch.randn(3, 12, 6)
    gaps = torch.ones(3, 12)
    for i, length in enumerate((12, 7, 2)):
        gaps[i, length:] = 0
        x[i, length:] = torch.nan
    y, state = layer(x, gaps=gaps)
    for i, length in enumerate((12, 7, 2)):
        alone, last = layer(x[i : i + 1, :length])
        torch.testing.assert_close(y[i : i + 1, :length], alone)
        for a, b in zip(state, last, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


def test_step_sizes_are_those_of_the_scan() -> None:
    """MAM-35. With B and C held at one state, Δ decides how fast an impulse fades."""
    torch.manual_seed(0)
    layer, x = Mamba(4, d_state=1), torch.randn(1, 9, 4)
    dt = layer.step_sizes(x)
    assert dt.shape == (1, 9, 8) and (dt > 0).all()
    _, early = layer(x[:, :6])
    kick = (early[0], early[1] + 1.0)
    faded = layer(x[:, 6:], kick)[1][1] - layer(x[:, 6:], early)[1][1]
    expected = torch.exp(-(dt[0, 6:, :, None] * torch.exp(layer.A_log)).sum(0))
    torch.testing.assert_close(faded[0], expected)


def test_the_short_convolution_is_its_definition_and_carries_its_tail() -> None:
    torch.manual_seed(0)
    x, weight, bias, tail = torch.randn(2, 9, 5), torch.randn(5, 4), torch.randn(5), torch.randn(2, 3, 5)
    y, after = causal_depthwise_silu(x, weight, bias, tail)
    padded = torch.cat([tail, x], dim=1)
    for t in range(9):
        p = bias + sum(weight[:, j] * padded[:, t + j] for j in range(4))
        torch.testing.assert_close(y[:, t], p * torch.sigmoid(p))
    assert torch.equal(after, x[:, -3:])


def test_gradients_of_the_short_convolution() -> None:
    given = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 7, 3), (3, 4), (3,), (2, 3, 3))]
    assert torch.autograd.gradcheck(causal_depthwise_silu, given)


def test_bad_input_is_refused_with_what_to_do() -> None:
    layer, x = Mamba(6), torch.randn(2, 5, 6)
    for wrong in (x[:, :0], x[0], x[..., :2]):
        with pytest.raises(ShapeError):
            layer(wrong)
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


def test_halves_joined_by_the_state_are_the_whole() -> None:
    layer, x = Mamba(6), torch.randn(2, 13, 6)
    for cut in (1, 2, 7):
        first, state = layer(x[:, :cut])
        second, _ = layer(x[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), layer(x)[0], rtol=1e-4, atol=1e-5)


def test_shapes_follow_the_paper_and_not_the_sources_shared_vector() -> None:
    """TRAP-05: A has a row for every channel, dt a rank of d_model / 16."""
    layer = Mamba(64, d_state=16, expand=2)
    assert layer.A_log.shape == (128, 16)
    assert layer.dt_rank == 4 and layer.dt_proj.weight.shape == (128, 4)
    assert layer.in_proj.bias is None and layer.out_proj.bias is None
    torch.testing.assert_close(layer.A_log.exp()[0], torch.arange(1.0, 17))
    simplified = Mamba.simplified(64)
    assert simplified.dt_proj.weight.shape == (128, 1) and simplified.A_log.shape == (1, 16)


def test_step_sizes_start_within_their_bounds() -> None:
    dt = torch.nn.functional.softplus(Mamba(32).dt_proj.bias)
    assert dt.min() >= 0.001 * 0.999 and dt.max() <= 0.1 * 1.001


def test_the_future_never_changes_the_past_by_a_bit() -> None:
    layer, x = Mamba(6), torch.randn(2, 30, 6)
    changed = x.clone()
    changed[:, 20:] = 50.0
    assert torch.equal(layer(x)[0][:, :20], layer(changed)[0][:, :20])


def test_selection_depends_on_the_input() -> None:
    """MAM-05: the same impulse is remembered differently when the bars after it differ."""
    torch.manual_seed(0)
    layer = Mamba(4)
    quiet, loud = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    loud[:, 1] = 3.0
    decay = []
    for rest in (quiet, loud):
        impulse, none = rest.clone(), rest.clone()
        impulse[:, 0] = 1.0
        decay.append(layer(impulse)[1][1] - layer(none)[1][1])
    assert not torch.allclose(*decay, rtol=1e-2)
