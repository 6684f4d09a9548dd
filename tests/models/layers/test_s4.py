"""S4: blocks against recurrence, generating function, and the dense HiPPO system (S4-09 to S4-14).

Ids such as S4-09: .github/sources.md.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from models.layers import s4
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.hippo import legs, legs_input, nplr
from models.layers.s4 import S4

every_discretisation = pytest.mark.parametrize("discretisation", s4.DISCRETISATIONS)


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def run_by_steps(layer: S4, x: Tensor, state: s4.State) -> tuple[Tensor, s4.State]:
    """The outputs and the last state, computed by ``step``."""
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def dense_system(layer: S4, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ā, B̄ and C of one channel over all N complex states, computed by matrix inverse or matrix exponential."""

    def with_conjugates(v: np.ndarray) -> np.ndarray:
        return np.concatenate([v, v.conj()])

    def all_states(weight: Tensor) -> np.ndarray:
        return with_conjugates(torch.view_as_complex(weight.detach().double())[channel].numpy())

    eigenvalues = (-torch.exp(layer.log_decay) + 1j * layer.frequency)[channel].detach().numpy()
    P = all_states(layer.P)
    B = all_states(layer.B)
    C = all_states(layer.C)
    A = np.diag(with_conjugates(eigenvalues)) - np.outer(P, P.conj())
    dt = float(layer.log_dt[channel].detach().exp())
    eye = np.eye(layer.d_state)
    if layer.discretisation == "bilinear":
        inverse = np.linalg.inv(eye - dt / 2 * A)
        return inverse @ (eye + dt / 2 * A), inverse @ (dt * B), C
    A_bar = expm(dt * A)
    return A_bar, np.linalg.solve(A, (A_bar - eye) @ B), C


def is_close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """True if the norm of the error is at most ``tolerance`` times the norm of the expected values."""
    return bool((actual - expected).norm() <= tolerance * expected.norm())


@every_discretisation
@pytest.mark.parametrize("block_bars", [1, 8, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_blocks_equal_the_recurrence(
    monkeypatch: pytest.MonkeyPatch, block_bars: int, discretisation: str, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(s4, "choose_block_bars", lambda length, d_state: block_bars)
    layer = S4(3, 16, discretisation=discretisation).to(dtype)
    x = torch.randn(2, 37, 3, dtype=dtype)
    for state in (layer.initial_state(2), (torch.randn(2, 3, 8, 2, dtype=dtype),)):
        fast, (fast_state,) = layer(x, state)
        slow, (slow_state,) = run_by_steps(layer, x, state)
        assert is_close(fast, slow, tolerance) and is_close(fast_state, slow_state, tolerance)
        assert fast.dtype == fast_state.dtype == dtype and not fast_state.is_complex()
    assert torch.equal(layer(x)[0], layer(x, layer.initial_state(2))[0])


@every_discretisation
@pytest.mark.parametrize("length", [1, 2, 50, 64])
def test_kernel_tap_j_equals_c_a_to_the_j_b(discretisation: str, length: int) -> None:
    """The definition of the taps, against the generating function (bilinear) or the Krylov matrix (zoh)."""
    layer = S4(3, 16, discretisation=discretisation).double()
    taps = layer.kernel(length).detach().numpy()
    for channel in range(3):
        A_bar, h, C = dense_system(layer, channel)  # h starts as B̄, the state after a pulse
        for j in range(length):
            assert taps[channel, j] == pytest.approx((C @ h).real, rel=1e-10, abs=1e-10)
            h = A_bar @ h


@every_discretisation
def test_the_response_to_a_pulse_is_the_kernel(discretisation: str) -> None:
    """The convolution of ``forward`` has the taps of the generating function's kernel."""
    layer = S4(3, 64, discretisation=discretisation).double()
    pulse = torch.zeros(1, 300, 3, dtype=torch.double)
    pulse[:, 0] = 1
    y, _ = layer(pulse)
    response = y[0].T.clone()
    response[:, 0] -= layer.D
    assert is_close(layer.kernel(300), response, 1e-10)


def test_the_first_taps_do_not_depend_on_the_length() -> None:
    layer = S4(3, 16).double()
    assert torch.equal(layer.kernel(200)[:, :130], layer.kernel(130))
    torch.testing.assert_close(layer.kernel(600)[:, :130], layer.kernel(130), rtol=0, atol=1e-12)


@every_discretisation
def test_a_new_layer_equals_the_dense_hippo_system(discretisation: str) -> None:
    """With HiPPO's own A and B, real and in its own basis, each channel gives the same y (S4-09, S4-10, S4-15)."""
    n = 16
    layer = S4(2, n, discretisation=discretisation).double()
    x = torch.randn(1, 40, 2, dtype=torch.double)
    A = legs(n)
    B = legs_input(n)
    eye = np.eye(n)
    _, _, _, eigenvectors = nplr(n)
    V = eigenvectors[:, n // 2 :]  # one of each conjugate pair
    y = layer(x)[0][0].detach().numpy()
    for channel in range(2):
        dt = float(layer.log_dt[channel].detach().exp())
        C = 2 * (torch.view_as_complex(layer.C.detach())[channel].numpy() @ V.conj().T).real
        if discretisation == "bilinear":
            inverse = np.linalg.inv(eye - dt / 2 * A)
            A_bar = inverse @ (eye + dt / 2 * A)
            B_bar = inverse @ (dt * B)
        else:
            A_bar = expm(dt * A)
            B_bar = np.linalg.solve(A, (A_bar - eye) @ B)
        D = float(layer.D[channel].detach())
        h = np.zeros(n)
        for t, x_t in enumerate(x[0, :, channel].tolist()):
            h = A_bar @ h + B_bar * x_t
            # the initial weights have the precision of float32
            assert y[t, channel] == pytest.approx(C @ h + D * x_t, rel=1e-5, abs=1e-5)


@every_discretisation
def test_gradients_equal_finite_differences(monkeypatch: pytest.MonkeyPatch, discretisation: str) -> None:
    monkeypatch.setattr(s4, "choose_block_bars", lambda length, d_state: 4)
    layer = S4(2, 4, discretisation=discretisation).double()
    x = torch.randn(2, 7, 2, dtype=torch.double, requires_grad=True)
    state = torch.randn(2, 2, 2, 2, dtype=torch.double, requires_grad=True)
    gaps = torch.tensor([[1.0, 2, 0, 1, 1, 2, 1], [1, 1, 1, 1, 0, 0, 2]], dtype=torch.double)
    weights = tuple(layer.parameters())

    def run(x: Tensor, state: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        y, (last,) = layer(x, (state,))
        y_with_gaps, (last_with_gaps,) = layer(x, (state,), gaps)
        return y, last, y_with_gaps, last_with_gaps, layer.kernel(5)

    assert torch.autograd.gradcheck(run, (x, state, *weights))


@every_discretisation
@pytest.mark.parametrize("is_irregular", [False, True])
def test_later_bars_leave_earlier_outputs_bit_identical(discretisation: str, is_irregular: bool) -> None:
    layer = S4(4, 8, discretisation=discretisation)
    x = torch.randn(3, 100, 4)
    gaps = torch.randint(1, 4, (3, 100)).float()
    changed_x = x.clone()
    changed_gaps = gaps.clone()
    changed_x[:, 45:] = 1e3
    changed_gaps[:, 45:] = 7
    y, _ = layer(x, None, gaps if is_irregular else None)
    changed_y, _ = layer(changed_x, None, changed_gaps if is_irregular else None)
    assert torch.equal(y[:, :45], changed_y[:, :45])
    assert not torch.equal(y[:, 45:], changed_y[:, 45:])


@every_discretisation
@pytest.mark.parametrize("is_irregular", [False, True])
def test_two_calls_joined_by_the_state_equal_one_call(discretisation: str, is_irregular: bool) -> None:
    layer = S4(3, 8, discretisation=discretisation).double()
    x = torch.randn(2, 70, 3, dtype=torch.double)
    gaps = torch.randint(0, 3, (2, 70)).double() if is_irregular else None
    whole, (last,) = layer(x, None, gaps)
    for n_first_bars in (1, 33, 69):
        first, state = layer(x[:, :n_first_bars], None, None if gaps is None else gaps[:, :n_first_bars])
        second, (joined_last,) = layer(x[:, n_first_bars:], state, None if gaps is None else gaps[:, n_first_bars:])
        assert is_close(torch.cat([first, second], dim=1), whole, 1e-10) and is_close(joined_last, last, 1e-10)


@every_discretisation
def test_gaps_of_one_are_regular_bars_and_gaps_of_two_double_the_step_size(discretisation: str) -> None:
    layer = S4(3, 8, discretisation=discretisation).double()
    x = torch.randn(2, 20, 3, dtype=torch.double)
    assert is_close(layer(x, None, torch.ones(2, 20))[0], layer(x)[0], 1e-10)
    doubled = S4(3, 8, discretisation=discretisation).double()
    doubled.load_state_dict(layer.state_dict())
    with torch.no_grad():
        doubled.log_dt += np.log(2)
    y, (h,) = layer(x, None, 2 * torch.ones(2, 20))
    expected_y, (expected_h,) = doubled(x)
    assert is_close(y, expected_y, 1e-10) and is_close(h, expected_h, 1e-10)


def test_under_zoh_a_gap_of_two_equals_two_bars_of_the_same_input() -> None:
    layer = S4(3, 8, discretisation="zoh").double()
    x = torch.randn(2, 6, 3, dtype=torch.double)
    y, (h,) = layer(x, None, 2 * torch.ones(2, 6))
    y_of_repeated, (h_of_repeated,) = layer(x.repeat_interleave(2, dim=1))
    assert is_close(y, y_of_repeated[:, 1::2], 1e-10) and is_close(h, h_of_repeated, 1e-10)


@every_discretisation
def test_padded_bars_have_the_effect_of_removed_bars(discretisation: str) -> None:
    layer = S4(3, 8, discretisation=discretisation)
    x = torch.randn(2, 9, 3)
    present = torch.tensor([0, 2, 3, 5, 8])  # positions of the bars that are not padded
    gaps = torch.zeros(2, 9)
    gaps[:, present] = torch.rand(5).round(decimals=1) + 0.5
    x[:, [1, 4]] = torch.nan  # two of the padded bars
    y, (h,) = layer(x, None, gaps)
    y_without, (h_without,) = layer(x[:, present], None, gaps[:, present])
    assert torch.equal(y[:, present], y_without) and torch.equal(h, h_without)


@every_discretisation
def test_steps_with_a_gap_equal_the_whole_sequence(discretisation: str) -> None:
    layer = S4(3, 8, discretisation=discretisation)
    x = torch.randn(2, 9, 3)
    gaps = torch.tensor([[1.0, 2, 0] * 3, [3.0, 1, 1] * 3])
    y, (last,) = layer(x, None, gaps)
    state = layer.initial_state(2)
    for t in range(9):
        y_t, state = layer.step(x[:, t], state, gaps[:, t])
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(state[0], last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_compiled_step_equals_the_step_with_gradients(dtype: torch.dtype) -> None:
    layer = S4(3, 8)
    x = torch.randn(2, 3).to(dtype)
    state = (torch.randn(2, 4, 3, 2).transpose(1, 2),)
    if dtype == torch.float64:
        layer = layer.double()
        state = (state[0].double(),)
    y, (h,) = layer.step(x, state)
    with torch.no_grad():
        compiled_y, (compiled_h,) = layer.step(x, state)
    torch.testing.assert_close(compiled_y, y.detach())
    torch.testing.assert_close(compiled_h, h.detach())


def test_cached_matrices_are_recomputed_when_weights_change() -> None:
    layer = S4(3, 8)
    x = torch.randn(2, 9, 3)
    with torch.no_grad():
        before, _ = layer(x)
        cached, _ = layer(x)
        layer.C *= 2
        after, _ = layer(x)
        step, _ = layer.step(x[:, 0], layer.initial_state(2))
    assert torch.equal(before, cached) and not torch.equal(before, after)
    assert torch.equal(after, layer(x)[0].detach())
    torch.testing.assert_close(step, after[:, 0])


def test_every_parameter_learns_unless_the_step_size_is_fixed() -> None:
    layer = S4(2, 8, learn_dt=False)
    layer(torch.randn(2, 12, 2))[0].square().sum().backward()
    learned = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learned == {"log_decay", "frequency", "P", "B", "C", "D"}
    assert S4(2, 8).log_dt.requires_grad
    assert {id(p) for p in layer.undecayed()} < {id(p) for p in layer.parameters()}


def test_random_initial_values_are_stable_and_reproducible() -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(4)
        layers.append(S4(3, 16, spectrum="random"))
    assert all(torch.equal(a, b) for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True))
    assert not torch.equal(layers[0].frequency, S4(3, 16).frequency)
    for discretisation in s4.DISCRETISATIONS:
        layers[0].discretisation = discretisation
        for channel in range(3):
            assert abs(np.linalg.eigvals(dense_system(layers[0], channel)[0])).max() < 1


def test_step_sizes_start_within_their_bounds() -> None:
    dt = S4(64, dt_min=0.01, dt_max=0.5).log_dt.exp()
    # a tolerance for the rounding of exp(log); log-uniform values have a standard deviation of 0.13
    assert dt.min() >= 0.0099 and dt.max() <= 0.51 and dt.std() > 0.05


def test_bfloat16_input_is_computed_in_float32() -> None:
    layer = S4(3, 8)
    x = torch.randn(2, 9, 3).bfloat16()
    y, (state,) = layer(x)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.float())[0].bfloat16())


def test_invalid_input_is_refused_and_the_error_says_what_to_do() -> None:
    layer = S4(3, 8)
    x = torch.randn(2, 9, 3)
    for misshapen in (x[..., :2], x[:, :0], x[0]):
        with pytest.raises(ShapeError, match="give"):
            layer(misshapen)
    with pytest.raises(DtypeError, match="float32"):
        layer(x.long())
    with pytest.raises(ShapeError, match="gaps"):
        layer(x, None, torch.ones(2, 8))
    for call in (lambda: layer(x, layer.initial_state(3)), lambda: layer.step(x[:, 0], (torch.zeros(2, 3, 8),))):
        with pytest.raises(StateError, match="initial_state"):
            call()
    for options in ({"d_state": 7}, {"spectrum": "fourier"}, {"discretisation": "euler"}):
        with pytest.raises(SizeError):
            S4(3, **options)
    too_many = s4.MAX_ZOH_GAPS + 1
    with pytest.raises(SizeError, match="bilinear"):
        S4(3, 4, discretisation="zoh")(torch.randn(1, too_many, 3), None, torch.rand(1, too_many))
    with pytest.raises(SizeError, match="length"):
        layer.kernel(0)
