"""S4: blocks against recurrence, generating function, and the dense HiPPO system (S4-09 to S4-14)."""

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

FORMS = ("bilinear", "zoh")


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def run_by_steps(layer: S4, x: Tensor, state: s4.State) -> tuple[Tensor, s4.State]:
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def dense_system(layer: S4, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ā, B̄ and C of one channel over all N complex states, computed by matrix inverse or matrix exponential."""
    pairs = lambda v: np.concatenate([v, v.conj()])  # noqa: E731
    as_complex = lambda v: torch.view_as_complex(v.detach().double())[channel].numpy()  # noqa: E731
    half = (-torch.exp(layer.log_decay) + 1j * layer.frequency)[channel].detach().numpy()
    P = pairs(as_complex(layer.P))
    B = pairs(as_complex(layer.B))
    C = pairs(as_complex(layer.C))
    A = np.diag(pairs(half)) - np.outer(P, P.conj())
    dt = float(layer.log_dt[channel].detach().exp())
    eye = np.eye(layer.d_state)
    if layer.discretisation == "bilinear":
        inverse = np.linalg.inv(eye - dt / 2 * A)
        return inverse @ (eye + dt / 2 * A), inverse @ (dt * B), C
    A_bar = expm(dt * A)
    return A_bar, np.linalg.solve(A, (A_bar - eye) @ B), C


def is_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bars", [1, 8, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_blocks_equal_the_recurrence(
    monkeypatch: pytest.MonkeyPatch, bars: int, form: str, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(s4, "block_bars", lambda length, d_state: bars)
    layer = S4(3, 16, discretisation=form).to(dtype)
    x = torch.randn(2, 37, 3, dtype=dtype)
    for state in (layer.initial_state(2), (torch.randn(2, 3, 8, 2, dtype=dtype),)):
        fast, (fast_state,) = layer(x, state)
        slow, (slow_state,) = run_by_steps(layer, x, state)
        assert is_close(fast, slow, tolerance) and is_close(fast_state, slow_state, tolerance)
        assert fast.dtype == fast_state.dtype == dtype and not fast_state.is_complex()
    assert torch.equal(layer(x)[0], layer(x, layer.initial_state(2))[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 50, 64])
def test_kernel_tap_j_equals_c_a_to_the_j_b(form: str, length: int) -> None:
    """Definition 1 of the paper's convolution: by the generating function (bilinear) or Krylov (zoh)."""
    layer = S4(3, 16, discretisation=form).double()
    taps = layer.kernel(length).detach().numpy()
    for channel in range(3):
        h, C = dense_system(layer, channel)[1:]
        A_bar = dense_system(layer, channel)[0]
        for j in range(length):
            assert taps[channel, j] == pytest.approx((C @ h).real, rel=1e-10, abs=1e-10)
            h = A_bar @ h


@pytest.mark.parametrize("form", FORMS)
def test_the_response_to_a_pulse_is_the_kernel(form: str) -> None:
    """The convolution of ``forward`` has the taps of the generating function's kernel."""
    layer = S4(3, 64, discretisation=form).double()
    pulse = torch.zeros(1, 300, 3, dtype=torch.double)
    pulse[:, 0] = 1
    taps = layer(pulse)[0][0].T.clone()
    taps[:, 0] -= layer.D
    assert is_close(layer.kernel(300), taps, 1e-10)


def test_the_first_taps_do_not_depend_on_the_length() -> None:
    layer = S4(3, 16).double()
    assert torch.equal(layer.kernel(200)[:, :130], layer.kernel(130))
    torch.testing.assert_close(layer.kernel(600)[:, :130], layer.kernel(130), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_new_layer_equals_the_dense_hippo_system(form: str) -> None:
    """With HiPPO's own A and B, real and in its own basis, each channel gives the same y (S4-09, S4-10, S4-15)."""
    n = 16
    layer = S4(2, n, discretisation=form).double()
    x = torch.randn(1, 40, 2, dtype=torch.double)
    A = legs(n)
    B = legs_input(n)
    eye = np.eye(n)
    half = nplr(n)[3][:, n // 2 :]
    y = layer(x)[0][0].detach().numpy()
    for channel in range(2):
        dt = float(layer.log_dt[channel].detach().exp())
        C = 2 * (torch.view_as_complex(layer.C.detach())[channel].numpy() @ half.conj().T).real
        if form == "bilinear":
            inverse = np.linalg.inv(eye - dt / 2 * A)
            A_bar = inverse @ (eye + dt / 2 * A)
            B_bar = inverse @ (dt * B)
        else:
            A_bar = expm(dt * A)
            B_bar = np.linalg.solve(A, (A_bar - eye) @ B)
        h = np.zeros(n)
        for t in range(40):
            h = A_bar @ h + B_bar * float(x[0, t, channel])
            expected = C @ h + float(layer.D[channel].detach()) * float(x[0, t, channel])
            assert y[t, channel] == pytest.approx(expected, rel=1e-5, abs=1e-5)  # the weights were float32


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_finite_differences(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(s4, "block_bars", lambda length, d_state: 4)
    layer = S4(2, 4, discretisation=form).double()
    x = torch.randn(2, 7, 2, dtype=torch.double, requires_grad=True)
    state = torch.randn(2, 2, 2, 2, dtype=torch.double, requires_grad=True)
    gaps = torch.tensor([[1.0, 2, 0, 1, 1, 2, 1], [1, 1, 1, 1, 0, 0, 2]], dtype=torch.double)
    weights = tuple(layer.parameters())

    def run(x: Tensor, state: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        y, (last,) = layer(x, (state,))
        z, (after,) = layer(x, (state,), gaps)
        return y, last, z, after, layer.kernel(5)

    assert torch.autograd.gradcheck(run, (x, state, *weights))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gapped", [False, True])
def test_the_future_never_changes_the_past_by_a_bit(form: str, gapped: bool) -> None:
    layer = S4(4, 8, discretisation=form)
    x = torch.randn(3, 100, 4)
    gaps = torch.randint(1, 4, (3, 100)).float()
    changed = x.clone()
    other = gaps.clone()
    changed[:, 45:] = 1e3
    other[:, 45:] = 7
    before, after = (layer(v, None, g if gapped else None)[0] for v, g in ((x, gaps), (changed, other)))
    assert torch.equal(before[:, :45], after[:, :45])
    assert not torch.equal(before[:, 45:], after[:, 45:])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gapped", [False, True])
def test_two_parts_joined_by_the_state_equal_the_whole_sequence(form: str, gapped: bool) -> None:
    layer = S4(3, 8, discretisation=form).double()
    x = torch.randn(2, 70, 3, dtype=torch.double)
    gaps = torch.randint(0, 3, (2, 70)).double() if gapped else None
    cut = lambda part: None if gaps is None else gaps[:, part]  # noqa: E731
    whole, (last,) = layer(x, None, gaps)
    for cut_bar in (1, 33, 69):
        first, state = layer(x[:, :cut_bar], None, cut(slice(cut_bar)))
        second, (after,) = layer(x[:, cut_bar:], state, cut(slice(cut_bar, None)))
        assert is_close(torch.cat([first, second], dim=1), whole, 1e-10) and is_close(after, last, 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_gap_of_one_is_a_regular_bar_and_a_gap_of_two_doubles_the_step(form: str) -> None:
    layer = S4(3, 8, discretisation=form).double()
    x = torch.randn(2, 20, 3, dtype=torch.double)
    assert is_close(layer(x, None, torch.ones(2, 20))[0], layer(x)[0], 1e-10)
    twice = S4(3, 8, discretisation=form).double()
    twice.load_state_dict(layer.state_dict())
    with torch.no_grad():
        twice.log_dt += np.log(2)
    y, (state,) = layer(x, None, 2 * torch.ones(2, 20))
    expected, (after,) = twice(x)
    assert is_close(y, expected, 1e-10) and is_close(state, after, 1e-10)


def test_under_zoh_a_gap_of_two_equals_two_bars_of_the_same_input() -> None:
    layer = S4(3, 8, discretisation="zoh").double()
    x = torch.randn(2, 6, 3, dtype=torch.double)
    once, (state,) = layer(x, None, 2 * torch.ones(2, 6))
    twice, (after,) = layer(x.repeat_interleave(2, dim=1))
    assert is_close(once, twice[:, 1::2], 1e-10) and is_close(state, after, 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_padded_bars_have_the_effect_of_removed_bars(form: str) -> None:
    layer = S4(3, 8, discretisation=form)
    x = torch.randn(2, 9, 3)
    present = torch.tensor([0, 2, 3, 5, 8])
    gaps = torch.zeros(2, 9)
    gaps[:, present] = torch.rand(5).round(decimals=1) + 0.5
    x[:, [1, 4]] = torch.nan
    y, (state,) = layer(x, None, gaps)
    short, (after,) = layer(x[:, present], None, gaps[:, present])
    assert torch.equal(y[:, present], short) and torch.equal(state, after)


@pytest.mark.parametrize("form", FORMS)
def test_steps_with_a_gap_equal_the_whole_sequence(form: str) -> None:
    layer = S4(3, 8, discretisation=form)
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
    y, (after,) = layer.step(x, state)
    with torch.no_grad():
        compiled, (compiled_after,) = layer.step(x, state)
    torch.testing.assert_close(compiled, y.detach())
    torch.testing.assert_close(compiled_after, after.detach())


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
    for form in FORMS:
        layers[0].discretisation = form
        for channel in range(3):
            assert abs(np.linalg.eigvals(dense_system(layers[0], channel)[0])).max() < 1


def test_step_sizes_start_within_their_bounds() -> None:
    dt = S4(64, dt_min=0.01, dt_max=0.5).log_dt.exp()
    assert dt.min() >= 0.0099 and dt.max() <= 0.51 and dt.std() > 0.05


def test_half_precision_is_computed_in_float32() -> None:
    layer = S4(3, 8)
    x = torch.randn(2, 9, 3).bfloat16()
    y, (state,) = layer(x)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.float())[0].bfloat16())


def test_bad_input_is_refused_with_what_to_do() -> None:
    layer = S4(3, 8)
    x = torch.randn(2, 9, 3)
    for bad in (x[..., :2], x[:, :0], x[0]):
        with pytest.raises(ShapeError, match="give"):
            layer(bad)
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
    with pytest.raises(SizeError, match="bilinear"):
        S4(3, 4, discretisation="zoh")(torch.randn(1, 65, 3), None, torch.rand(1, 65))
    with pytest.raises(SizeError, match="length"):
        layer.kernel(0)
