"""S5: the scan against the recurrence, and both against the dense real system of the initial values (S4-22).

Ids such as S4-22: .github/sources.md.
"""

import copy

import pytest
import torch

from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.hippo import legs
from models.layers.s5 import DISCRETISATIONS, S5, State

every_discretisation = pytest.mark.parametrize("discretisation", DISCRETISATIONS)


def make_layer(discretisation: str = "zoh", dtype: torch.dtype = torch.float32, **options: int) -> S5:
    """A layer of 3 channels and 8 states, which are 4 conjugate pairs."""
    torch.manual_seed(0)
    return S5(3, 8, discretisation=discretisation, **options).to(dtype)  # type: ignore[arg-type]


def run_by_steps(
    layer: S5, x: torch.Tensor, state: State, gaps: torch.Tensor | None = None
) -> tuple[torch.Tensor, State]:
    """The outputs and the last state, computed by ``step``."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state, None if gaps is None else gaps[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-5 (float64: 1e-10) of the largest expected value."""
    tolerance = 1e-5 if actual.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


@every_discretisation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_irregular", [False, True])
def test_the_scan_equals_one_step_per_bar(discretisation: str, dtype: torch.dtype, is_irregular: bool) -> None:
    layer = make_layer(discretisation, dtype, blocks=2)
    x = torch.randn(2, 81, 3, dtype=dtype)
    gaps = torch.randint(0, 4, (2, 81)).to(dtype) if is_irregular else None
    for state in (layer.initial_state(2), (torch.randn(2, 4, 2, dtype=dtype),)):
        slow, (slow_state,) = run_by_steps(layer, x, state, gaps)
        fast, (fast_state,) = layer(x, state, gaps)
        with torch.no_grad():
            compiled, (compiled_state,) = run_by_steps(layer, x, state, gaps)
        assert_near(fast, slow)
        assert_near(fast_state, slow_state)
        assert_near(compiled, slow)
        assert_near(compiled_state, slow_state)


def test_without_a_state_the_layer_starts_from_the_initial_state() -> None:
    layer = make_layer()
    x = torch.randn(2, 9, 3)
    assert torch.equal(layer(x)[0], layer(x, layer.initial_state(2))[0])


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_new_layer_is_hippo_n_with_real_maps_under_zero_order_hold(blocks: int) -> None:
    """Λ, B̃ = V* B and C̃ = C V describe the real system with A the normal part of LegS, ``blocks`` times."""
    size = 8 // blocks
    p = torch.sqrt(torch.arange(size) + 0.5).double()
    A = torch.block_diag(*[torch.as_tensor(legs(size)) + torch.outer(p, p)] * blocks)
    torch.manual_seed(0)
    layer = S5(3, 8, blocks=blocks, dt_min=0.3, dt_max=0.3).double()
    torch.manual_seed(0)
    B = torch.randn(8, 3).double() * 3**-0.5
    C = torch.randn(3, 8).double() * 8**-0.5
    A_bar = torch.linalg.matrix_exp(0.3 * A)
    B_bar = torch.linalg.solve(A, (A_bar - torch.eye(8)) @ B)
    x = torch.randn(1, 30, 3).double()
    h = torch.zeros(8).double()
    y = layer(x)[0][0]
    for t in range(30):
        h = A_bar @ h + B_bar @ x[0, t]
        expected = C @ h + layer.D * x[0, t]
        torch.testing.assert_close(y[t], expected, rtol=1e-5, atol=1e-5)  # weights are drawn as float32


def test_the_bilinear_discretisation_is_the_trapezoidal_rule_of_the_continuous_system() -> None:
    """h_t − h_{t−1} = Δ (Λ (h_t + h_{t−1}) / 2 + B x_t), solved for h_t; the step size is scaled by a gap of 3."""
    layer = make_layer("bilinear", torch.float64)
    x = torch.randn(1, 3).double()
    gap = 3.0
    previous_pairs = torch.randn(1, 4, 2).double()
    _, (pairs,) = layer.step(x, (previous_pairs,), torch.tensor([gap]))
    previous_h = torch.view_as_complex(previous_pairs)
    h = torch.view_as_complex(pairs.contiguous())
    eigenvalues = torch.complex(-torch.exp(layer.log_decay), layer.frequency)
    input_term = (torch.view_as_complex(layer.B) @ x[0].to(torch.cdouble))[None]
    dt = gap * torch.exp(layer.log_dt)
    torch.testing.assert_close(h - previous_h, dt * (eigenvalues * (h + previous_h) / 2 + input_term))


@every_discretisation
def test_later_bars_leave_earlier_outputs_bit_identical(discretisation: str) -> None:
    layer = make_layer(discretisation)
    x = torch.randn(3, 140, 3)
    gaps = torch.rand(3, 140) * 3
    changed_x = x.clone()
    changed_gaps = gaps.clone()
    changed_x[:, 85:] = 1e3
    changed_gaps[:, 85:] = 0.5
    for gaps_before, gaps_after in ((None, None), (gaps, changed_gaps)):
        y, _ = layer(x, gaps=gaps_before)
        changed_y, _ = layer(changed_x, gaps=gaps_after)
        assert torch.equal(y[:, :85], changed_y[:, :85])
        assert not torch.equal(y[:, 85:], changed_y[:, 85:])
    torch.testing.assert_close(layer(x[:, :85])[0], layer(x)[0][:, :85])


@every_discretisation
def test_two_calls_joined_by_the_state_equal_one_call(discretisation: str) -> None:
    layer = make_layer(discretisation)
    x = torch.randn(2, 33, 3)
    gaps = torch.rand(2, 33) * 3
    whole, (last,) = layer(x, gaps=gaps)
    for n_first_bars in (1, 16, 32):
        first, state = layer(x[:, :n_first_bars], gaps=gaps[:, :n_first_bars])
        second, (joined_last,) = layer(x[:, n_first_bars:], state, gaps[:, n_first_bars:])
        assert_near(torch.cat([first, second], dim=1), whole)
        assert_near(joined_last, last)


@every_discretisation
@pytest.mark.parametrize("is_irregular", [False, True])
def test_every_parameter_learns_and_gradients_equal_finite_differences(discretisation: str, is_irregular: bool) -> None:
    torch.manual_seed(1)
    layer = S5(2, 4, discretisation=discretisation).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    gaps = torch.tensor([[1.0, 2.0, 0.5, 3.0, 1.0], [1.0, 1.0, 4.0, 0.0, 0.0]]).double() if is_irregular else None
    inputs = [torch.randn(2, 5, 2).double(), torch.randn(2, 2, 2).double()]

    def output(x: torch.Tensor, h: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h,) = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, (h,), gaps))
        return y, h

    assert torch.autograd.gradcheck(output, (*(v.requires_grad_() for v in inputs), *values))
    layer(inputs[0])[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in values)


def test_gaps_scale_the_step_and_a_padded_bar_does_not_change_a_bit_of_the_state() -> None:
    layer = make_layer()
    x = torch.randn(2, 40, 3)
    ones = torch.ones(2, 40)
    y, (last,) = layer(x)
    assert_near(layer(x, gaps=ones)[0], y)
    halved = copy.deepcopy(layer)
    with torch.no_grad():
        halved.log_dt -= torch.log(torch.tensor(2.0))
    repeated = x.repeat_interleave(2, dim=1)  # two half steps with the same input
    assert_near(halved(repeated)[0][:, 1::2], y)
    assert_near(halved(x, gaps=2 * ones)[0], y)
    padded = torch.cat([x, torch.full((2, 5, 3), torch.nan)], dim=1)
    y_padded, (h_padded,) = layer(padded, gaps=torch.cat([ones, torch.zeros(2, 5)], dim=1))
    torch.testing.assert_close(y_padded[:, :40], y, rtol=1e-5, atol=1e-5)
    _, (h,) = layer(x, gaps=ones)
    torch.testing.assert_close(h_padded, h, rtol=1e-5, atol=1e-6)
    _, (unchanged,) = layer(padded, (h_padded,), torch.zeros(2, 45))
    assert torch.equal(unchanged, h_padded)
    _, (after_step,) = layer.step(padded[:, -1], (last,), torch.zeros(2))
    assert torch.equal(after_step, last)


def test_a_step_uses_changed_weights() -> None:
    """The matrices cached between bars are recomputed when the weights change."""
    layer = make_layer()
    x = torch.randn(2, 3)
    with torch.no_grad():
        before = layer.step(x, layer.initial_state(2))[0]
        layer.B.mul_(2.0)
        after = layer.step(x, layer.initial_state(2))[0]
    assert not torch.allclose(before, after)
    assert_near(after, layer(x[:, None])[0][:, 0].detach())


def test_bfloat16_input_gives_bfloat16_output_and_a_float32_state() -> None:
    layer = make_layer()
    x = torch.randn(2, 9, 3)
    y, (h,) = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16 and h.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x)[0], rtol=0.05, atol=0.05)


def test_invalid_input_is_refused() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, 3)
    for misshapen in (torch.randn(2, 5, 4), torch.randn(2, 0, 3), torch.randn(2, 3)):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(ShapeError, match="gaps"):
        layer(x, gaps=torch.ones(2, 4))
    with pytest.raises(DtypeError):
        layer(x.int())
    with pytest.raises(StateError):
        layer(x, layer.initial_state(3))
    with pytest.raises(StateError):
        layer.step(x[:, 0], (torch.zeros(2, 8),))
    for options in ({"d_state": 7}, {"d_state": 8, "blocks": 3}, {"d_state": 6, "blocks": 3, "discretisation": "rk4"}):
        with pytest.raises(SizeError):
            S5(3, **options)  # type: ignore[arg-type]
    with pytest.raises(SizeError, match="blocks of even size"):
        S5(3, 6, blocks=2)
