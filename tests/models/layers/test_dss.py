"""DSS: both forms of the kernel ("exp" and "softmax") equal the paper, and steps equal whole sequences (S4-24).

Ids such as S4-24: .github/sources.md.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.layers import dss
from models.layers.dss import DSS, FORMS
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.hippo import legs_spectrum


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def run_by_step(layer: DSS, x: Tensor, state: dss.State, gaps: Tensor | None = None) -> tuple[Tensor, dss.State]:
    """y (b, l, d) and the last state, from one call of ``step`` per bar."""
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        y, state = layer.step(x_t, state, None if gaps is None else gaps[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def paper_kernel(layer: DSS, length: int) -> np.ndarray:
    """The kernel (d, length) of proposition 1, with P_{mj} = λ_m Δ j.

    Form exp: w Λ⁻¹ (e^{ΛΔ} − I) · exp(P). Form softmax: w Λ⁻¹ · softmax of every row of P over ``kernel_bars`` bars.
    """
    eigenvalues = (-torch.exp(layer.log_decay) + 1j * layer.frequency).detach().numpy()
    w = torch.view_as_complex(layer.w.detach()).numpy()
    kernels = []
    for w_c, dt in zip(w, layer.log_dt.detach().exp().numpy(), strict=True):
        n_bars = length if layer.form == "exp" else layer.kernel_bars
        exp_P = np.exp(np.outer(eigenvalues * dt, np.arange(n_bars)))
        if layer.form == "exp":
            kernel = (w_c / eigenvalues * (np.exp(eigenvalues * dt) - 1)) @ exp_P
        else:
            kernel = (w_c / eigenvalues) @ (exp_P / exp_P.sum(1, keepdims=True))
        kernels.append(2 * kernel[:length].real)
    return np.stack(kernels)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_output_is_the_convolution_with_the_papers_kernel(form: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = DSS(3, 8, form, kernel_bars=40).to(dtype)
    x = torch.randn(2, 33, 3, dtype=dtype)
    taps = paper_kernel(layer.double(), 33)
    y = layer.to(dtype)(x)[0].detach().double().numpy()
    signal = x.double().numpy()
    D = layer.D.detach().double().numpy()
    sums = [sum(taps[:, j] * signal[:, t - j] for j in range(t + 1)) for t in range(33)]
    expected = np.stack(sums, axis=1) + D * signal
    assert np.linalg.norm(y - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_one_step_per_bar_equals_one_call_of_forward(
    form: str, dtype: torch.dtype, tolerance: float, has_gradients: bool
) -> None:
    layer = DSS(3, 8, form).to(dtype)
    x = torch.randn(2, 33, 3, dtype=dtype)
    with torch.set_grad_enabled(has_gradients):
        for state in (layer.initial_state(2), (torch.randn(2, 3, 4, 2, dtype=dtype),)):
            whole, (last,) = layer(x, state)
            stepwise, (after,) = run_by_step(layer, x, state)
            assert (whole - stepwise).norm() < tolerance * stepwise.norm()
            assert (last - after).norm() < tolerance * after.norm()
            assert whole.dtype == last.dtype == dtype and not last.is_complex()


@pytest.mark.parametrize("form", FORMS)
def test_gaps_of_one_equal_regular_bars(form: str) -> None:
    layer = DSS(3, 8, form).double()
    x = torch.randn(2, 12, 3, dtype=torch.double)
    regular, (last,) = layer(x)
    with_gaps, (after,) = layer(x, None, torch.ones(2, 12))
    torch.testing.assert_close(with_gaps, regular)
    torch.testing.assert_close(after, last)


@pytest.mark.parametrize("form", FORMS)
def test_a_gap_of_two_equals_two_bars_of_the_same_input(form: str) -> None:
    layer = DSS(3, 8, form).double()
    x = torch.randn(2, 12, 3, dtype=torch.double)
    doubled, (state,) = layer(x, None, 2 * torch.ones(2, 12))
    repeated, (expected,) = layer(x.repeat_interleave(2, dim=1))  # an input held over two bars
    torch.testing.assert_close(doubled, repeated[:, 1::2])
    torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("form", FORMS)
def test_step_by_step_with_gaps_equals_the_whole_sequence(form: str) -> None:
    layer = DSS(3, 8, form).double()
    x = torch.randn(2, 12, 3, dtype=torch.double)
    gaps = torch.tensor([[1.0, 2, 0] * 4, [0.5, 1, 1] * 4], dtype=torch.double)
    whole, (last,) = layer(x, None, gaps)
    stepwise, (after,) = run_by_step(layer, x, layer.initial_state(2), gaps)
    torch.testing.assert_close(stepwise, whole)
    torch.testing.assert_close(after, last)


@pytest.mark.parametrize("form", FORMS)
def test_padded_bars_leave_the_outputs_of_real_bars_bit_identical(form: str) -> None:
    layer = DSS(3, 8, form)
    x = torch.randn(2, 9, 3)
    real_bars = torch.tensor([0, 2, 3, 5, 8])  # positions of the bars that are not padding, which have a gap above 0
    gaps = torch.zeros(2, 9)
    gaps[:, real_bars] = torch.rand(5) + 0.5
    y, (state,) = layer(x, None, gaps)
    short, (after,) = layer(x[:, real_bars], None, gaps[:, real_bars])
    assert torch.equal(y[:, real_bars], short) and torch.equal(state, after)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_finite_differences(form: str) -> None:
    layer = DSS(2, 4, form, kernel_bars=9).double()
    x = torch.randn(2, 6, 2, dtype=torch.double, requires_grad=True)
    state = torch.randn(2, 2, 2, 2, dtype=torch.double, requires_grad=True)
    gaps = torch.tensor([[1.0, 2, 0, 1, 1, 2], [1, 1, 1, 1, 0, 2]], dtype=torch.double)

    def run(x: Tensor, state: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        y, (last,) = layer(x, (state,))
        y_gaps, (last_gaps,) = layer(x, (state,), gaps)
        return y, last, y_gaps, last_gaps, layer.step(x[:, 0], (state,))[0]

    assert torch.autograd.gradcheck(run, (x, state, *layer.parameters()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_irregular", [False, True])
def test_later_bars_leave_earlier_outputs_bit_identical(form: str, is_irregular: bool) -> None:
    layer = DSS(4, 8, form)
    x = torch.randn(3, 100, 4)
    gaps = torch.rand(3, 100) + 0.5
    changed_x = x.clone()
    changed_x[:, 45:] = 1e3
    changed_gaps = gaps.clone()
    changed_gaps[:, 45:] = 7
    y, _ = layer(x, None, gaps if is_irregular else None)
    y_changed, _ = layer(changed_x, None, changed_gaps if is_irregular else None)
    assert torch.equal(y[:, :45], y_changed[:, :45]) and not torch.equal(y[:, 45:], y_changed[:, 45:])


@pytest.mark.parametrize("form", FORMS)
def test_two_calls_joined_by_the_state_equal_one_call(form: str) -> None:
    layer = DSS(3, 8, form).double()
    x = torch.randn(2, 50, 3, dtype=torch.double)
    whole, (last,) = layer(x)
    for n_first_bars in (1, 20, 49):
        first, state = layer(x[:, :n_first_bars])
        second, (after,) = layer(x[:, n_first_bars:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(after, last)


def test_initial_weights_are_skew_hippo_with_step_sizes_in_bounds() -> None:
    layer = DSS(64, 16, dt_min=0.01, dt_max=0.5)
    expected = torch.as_tensor(legs_spectrum(16))
    torch.testing.assert_close(torch.complex(-layer.log_decay.exp(), layer.frequency), expected.cfloat())
    dt = layer.log_dt.exp()
    assert dt.min() >= 0.0099 and dt.max() <= 0.51  # the bounds dt_min and dt_max, with a margin for rounding
    assert dt.std() > 0.05


def test_every_parameter_learns_except_a_fixed_step_size() -> None:
    for form in FORMS:
        layer = DSS(2, 8, form, learn_dt=False)
        layer(torch.randn(2, 12, 2))[0].square().sum().backward()
        learned = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert learned == {"log_decay", "frequency", "w", "D"}


def test_a_step_after_a_weight_change_uses_the_new_weights() -> None:
    layer = DSS(3, 8)
    x = torch.randn(2, 3)
    with torch.no_grad():
        before, _ = layer.step(x, layer.initial_state(2))
        layer.w *= 2
        after, _ = layer.step(x, layer.initial_state(2))
    torch.testing.assert_close(after - layer.D * x, 2 * (before - layer.D * x))


def test_invalid_input_is_refused_and_the_error_says_what_to_do() -> None:
    layer = DSS(3, 8)
    x = torch.randn(2, 9, 3)
    for misshapen in (x[..., :2], x[:, :0], x[0]):
        with pytest.raises(ShapeError, match="give"):
            layer(misshapen)
    with pytest.raises(DtypeError, match="float32"):
        layer(x.long())
    with pytest.raises(ShapeError, match="gaps"):
        layer(x, None, torch.ones(2, 8))
    with pytest.raises(StateError, match="initial_state"):
        layer(x, layer.initial_state(3))
    for has_gradients in (True, False):
        with torch.set_grad_enabled(has_gradients), pytest.raises(StateError, match="initial_state"):
            layer.step(x[:, 0], (torch.zeros(2, 3, 8),))
    for options in ({"d_state": 7}, {"form": "linear"}, {"spectrum": "fourier"}, {"kernel_bars": 0}):
        with pytest.raises(SizeError):
            DSS(3, **options)
