"""S4D: convolution against recurrence against the dense state-space model (S4-11, S4-12, S4-13, S4-21, HYB-01).

Ids such as S4-11: .github/sources.md.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch

from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.hippo import SPECTRA
from models.layers.s4d import DISCRETISATIONS, S4D, State


def run_by_steps(layer: S4D, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
    """The outputs and the last state, computed by ``step``."""
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("discretisation", DISCRETISATIONS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_convolution_equals_one_step_per_bar(spectrum: str, discretisation: str, dtype: torch.dtype) -> None:
    """SSF-01, SSF-03, TRAP-08: x is (batch, bars, channels), and ``forward`` returns y and the state."""
    torch.manual_seed(0)
    layer = S4D(3, 8, spectrum, discretisation=discretisation).to(dtype)
    x = torch.randn(2, 81, 3, dtype=dtype)
    for state in (layer.initial_state(2), (torch.randn(2, 3, 4, 2, dtype=dtype),)):
        fast, (fast_state,) = layer(x, state)
        slow, (slow_state,) = run_by_steps(layer, x, state)
        with torch.no_grad():
            compiled, (compiled_state,) = run_by_steps(layer, x, state)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-10
        pairs = ((fast, slow), (fast_state, slow_state), (compiled, slow), (compiled_state, slow_state))
        for actual, expected in pairs:
            largest = float(expected.detach().abs().max())
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest)


def test_without_a_state_the_layer_starts_from_the_initial_state() -> None:
    layer = S4D(3, 8)
    x = torch.randn(2, 9, 3)
    torch.testing.assert_close(layer(x)[0], layer(x, layer.initial_state(2))[0])


def test_recurrence_is_the_zero_order_hold_of_the_continuous_system() -> None:
    """S4-07, MAM-06: with the input held over a bar, Ā and B̄ solve h' = A h + x; here Euler's method solves it."""
    torch.manual_seed(0)
    layer = S4D(1, 4, dt_min=0.3, dt_max=0.3)
    with torch.no_grad():
        A = (-torch.exp(layer.log_decay) + 1j * layer.frequency).numpy().astype(complex)[0]
        dt = float(layer.log_dt.exp())
        C = torch.view_as_complex(layer.C).numpy()[0]
        D = float(layer.D)
        x = torch.randn(1, 5, 1)
        h = np.zeros(2, dtype=complex)
        y = layer(x)[0][0, :, 0].numpy()
    n_substeps = 20_000  # a bar; Euler's error stays below 1e-3
    for t, x_t in enumerate(x[0, :, 0].tolist()):
        for _ in range(n_substeps):
            h = h + dt / n_substeps * (A * h + x_t)
        assert y[t] == pytest.approx(2 * (C * h).sum().real + D * x_t, abs=1e-3)


def test_the_bilinear_discretisation_is_the_trapezoidal_rule_of_the_continuous_system() -> None:
    """h_t − h_{t−1} = Δ (A (h_t + h_{t−1}) / 2 + x_t), solved for h_t."""
    layer = S4D(1, 2, discretisation="bilinear", dt_min=0.4, dt_max=0.4)
    a_bar, b_bar, _ = (v.detach() for v in layer._discrete())
    A = complex(-0.5, layer.frequency.item())  # the real part of every eigenvalue of HiPPO-N is −1/2
    dt = 0.4
    previous_h = 0.7 - 0.2j
    x = 1.3
    h = complex(a_bar) * previous_h + complex(b_bar) * x
    assert h - previous_h == pytest.approx(dt * (A * (h + previous_h) / 2 + x), abs=1e-6)


def test_later_bars_leave_earlier_outputs_bit_identical() -> None:
    layer = S4D(4, 8)
    x = torch.randn(3, 140, 4)
    changed = x.clone()
    changed[:, 85:] = 1e3
    assert torch.equal(layer(x)[0][:, :85], layer(changed)[0][:, :85])
    assert torch.equal(layer(x)[0][:, :85], layer(x[:, :85])[0])
    assert not torch.equal(layer(x)[0][:, 85:], layer(changed)[0][:, 85:])


@pytest.mark.parametrize("discretisation", DISCRETISATIONS)
def test_every_parameter_learns_and_gradients_equal_finite_differences(discretisation: str) -> None:
    torch.manual_seed(1)
    layer = S4D(2, 4, discretisation=discretisation).double()
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))
    layer(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in values)


def test_a_fixed_step_size_is_not_trained() -> None:
    layer = S4D(2, 4, learn_dt=False)
    layer(torch.randn(1, 5, 2))[0].sum().backward()
    assert layer.log_dt.grad is None and layer.C.grad is not None


def test_gaps_scale_the_step_and_a_padded_bar_does_not_change_the_state() -> None:
    torch.manual_seed(0)
    layer = S4D(3, 8)
    x = torch.randn(2, 40, 3)
    ones = torch.ones(2, 40)
    y, state = layer(x)
    y_of_ones, state_of_ones = layer(x, gaps=ones)
    for actual, expected in zip((y_of_ones, *state_of_ones), (y, *state), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    halved = deepcopy(layer)
    with torch.no_grad():
        halved.log_dt -= float(np.log(2.0))
    repeated = x.repeat_interleave(2, dim=1)  # two half steps with the same input
    torch.testing.assert_close(halved(repeated)[0][:, 1::2], y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(halved(x, gaps=2 * ones)[0], y, rtol=1e-4, atol=1e-4)
    padded = ones.clone()
    padded[:, 30:] = 0
    torch.testing.assert_close(layer(x, gaps=padded)[1], layer(x[:, :30])[1], rtol=1e-4, atol=1e-4)


def test_a_changed_weight_changes_the_next_step() -> None:
    layer = S4D(3, 4)
    x = torch.randn(1, 3)
    with torch.no_grad():
        before = layer.step(x, layer.initial_state(1))[0]
        layer.D += 1.0
        torch.testing.assert_close(layer.step(x, layer.initial_state(1))[0], before + x)
        copy = deepcopy(layer)
        copy.D -= 1.0
        torch.testing.assert_close(copy.step(x, copy.initial_state(1))[0], before)


@pytest.mark.parametrize("change", ["fused optimiser", "data"])
def test_a_weight_change_without_a_new_version_is_noticed_after_training(change: str) -> None:
    layer = S4D(3, 4).eval()
    x = torch.randn(1, 3)
    with torch.no_grad():
        layer.step(x, layer.initial_state(1))
    layer.train()
    if change == "data":
        layer.C.data.mul_(3.0)
    else:
        optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        layer(x[None])[0].sum().backward()
        optimiser.step()
    layer.eval()
    expected = layer.step(x, layer.initial_state(1))[0]
    with torch.no_grad():
        torch.testing.assert_close(layer.step(x, layer.initial_state(1))[0], expected)


def test_steps_with_small_gaps_equal_the_whole_sequence() -> None:
    torch.manual_seed(0)
    layer = S4D(3, 8)
    x = torch.randn(2, 30, 3)
    gaps = torch.full((2, 30), 1e-4)
    gaps[:, 15:18] = 7.0
    gaps[:, 20] = 0
    x[:, 20] = torch.nan
    whole, (last,) = layer(x, gaps=gaps)
    for has_gradients in (True, False):
        state = layer.initial_state(2)
        with torch.set_grad_enabled(has_gradients):
            for t in range(30):
                y, state = layer.step(x[:, t], state, gaps[:, t])
        torch.testing.assert_close(y, whole[:, -1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state[0], last, rtol=1e-5, atol=1e-5 * float(last.detach().abs().max()))
    with torch.no_grad(), pytest.raises(ShapeError, match="one per sequence"):
        layer.step(x[:, 0], layer.initial_state(2), torch.ones(3))


def test_step_sizes_start_within_their_bounds() -> None:
    dt = S4D(64, dt_min=0.01, dt_max=0.5).log_dt.exp()
    assert dt.min() >= 0.01 and dt.max() <= 0.5
    assert dt.std() > 0.05  # log-uniform values have a standard deviation of 0.13


def test_invalid_input_is_refused_and_the_error_says_what_to_do() -> None:
    layer = S4D(3, 4)
    x = torch.randn(2, 5, 3)
    for misshapen in (x[:, :0], x[0], x[..., :2]):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(ShapeError, match=r"gaps are \(2, 4\)"):
        layer(x, gaps=torch.ones(2, 4))
    with pytest.raises(DtypeError, match="int64"):
        layer(torch.zeros(2, 5, 3, dtype=torch.int64))
    with pytest.raises(StateError, match="initial_state"):
        layer(x, layer.initial_state(3))
    with torch.no_grad(), pytest.raises(StateError, match="initial_state"):
        layer.step(x[:, 0], layer.initial_state(3))
    with torch.no_grad(), pytest.raises(ShapeError, match="call forward"):
        layer.step(x, layer.initial_state(2))
    for options in ({"d_state": 3}, {"spectrum": "legt"}, {"discretisation": "euler"}):
        with pytest.raises(SizeError, match=r"even number|choose one of"):
            S4D(3, **options)
    with pytest.raises(SizeError, match="zoh"):
        S4D(3, 4, discretisation="bilinear")(x, gaps=torch.ones(2, 5))
