"""Mamba-2: chunked matrix form against the recurrence, and the block around it (the family of MAM-06 to MAM-13).

Ids such as MAM-06: .github/sources.md.
"""

import copy

import pytest
import torch
from torch.nn.functional import softplus

from models.layers import mamba2
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.mamba2 import Mamba2, State, ssd, ssd_reference

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest expected value
# Sizes of the inputs of ``ssd``, named as in mamba2.py
B = 2  # sequences
L = 41  # bars
H = 4  # heads
P = 3  # channels a head
G = 2  # groups
N = 5  # states
PER_BAR = ("x", "dt", "B", "C")


def make_inputs(dtype: torch.dtype = torch.float32, groups: int = G, n_bars: int = L) -> dict[str, torch.Tensor]:
    """Random arguments of ``ssd`` by name, in the order in which the tests list gradients."""
    torch.manual_seed(0)
    shapes = {"x": (B, n_bars, H, P), "B": (B, n_bars, groups, N), "C": (B, n_bars, groups, N), "D": (H,)}
    inputs = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    inputs |= {"dt": torch.rand(B, n_bars, H, dtype=dtype), "A": -torch.rand(H, dtype=dtype) * 4}
    return inputs | {"state": torch.randn(B, H, P, N, dtype=dtype)}


def make_layer(dtype: torch.dtype = torch.float32, **options: int) -> Mamba2:
    """A layer of 6 channels with a random norm weight."""
    torch.manual_seed(0)
    layer = Mamba2(6, **({"d_state": 5, "head_dim": 3, "n_groups": 2, "chunk_bars": 8} | options)).to(dtype)
    torch.nn.init.normal_(layer.norm_weight)
    return layer


def run_by_steps(
    layer: Mamba2, x: torch.Tensor, state: State, gaps: torch.Tensor | None = None
) -> tuple[torch.Tensor, State]:
    """The outputs and the last state, computed by ``step``."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state, None if gaps is None else gaps[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype] * max([0.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk_bars", [1, 8, 64])
@pytest.mark.parametrize("max_span_bars", [1, 1 << 20])
def test_chunks_equal_the_recurrence_in_values_and_all_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, groups: int, chunk_bars: int, max_span_bars: int
) -> None:
    monkeypatch.setattr(mamba2, "MAX_SPAN_BARS", max_span_bars)
    inputs = {name: value.requires_grad_() for name, value in make_inputs(dtype, groups).items()}
    weight_y = torch.randn(B, L, H, P, dtype=dtype)
    weight_S = torch.randn(B, H, P, N, dtype=dtype)
    results = []
    for function in (lambda **values: ssd(**values, chunk_bars=chunk_bars), ssd_reference):
        y, S = function(**inputs)
        loss = (y * weight_y).sum() + (S * weight_S).sum()
        results.append([y, S, *torch.autograd.grad(loss, list(inputs.values()))])
    for fast, slow in zip(*results, strict=True):
        assert_near(fast, slow)


def test_gradients_equal_finite_differences() -> None:
    inputs = {name: value.requires_grad_() for name, value in make_inputs(torch.float64, n_bars=5).items()}

    def output(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ssd(**dict(zip(inputs, values, strict=True)), chunk_bars=2)

    assert torch.autograd.gradcheck(output, tuple(inputs.values()))


def test_one_bar_gives_hand_computed_numbers() -> None:
    """S = exp(Δ A) S + Δ x Bᵀ; y = S C + D x."""
    values = {"x": [[[[2.0]]]], "dt": [[[0.5]]], "A": [-1.0], "B": [[[[3.0, 1.0]]]], "C": [[[[4.0, 5.0]]]], "D": [10.0]}
    inputs = {name: torch.tensor(value) for name, value in values.items()}
    y, S = ssd(**inputs, state=torch.tensor([[[[7.0, 0.0]]]]))
    expected_S = torch.stack([7 * torch.exp(torch.tensor(-0.5)) + 3, torch.tensor(1.0)])  # Δ x B = 1 · (3, 1)
    torch.testing.assert_close(S.flatten(), expected_S)
    torch.testing.assert_close(y.flatten(), (4 * expected_S[0] + 5 * expected_S[1] + 10 * 2)[None])


def test_a_long_gap_neither_overflows_nor_loses_its_gradient() -> None:
    """The decay over a chunk is far below the smallest float; above the diagonal its inverse would be infinite."""
    inputs = make_inputs(n_bars=64)
    inputs["dt"] = 100 * inputs["dt"]
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    results = []
    for function in (ssd, ssd_reference):
        y, S = function(**inputs)
        results.append([y, S, *torch.autograd.grad(y.square().sum() + S.sum(), list(inputs.values()))])
    for fast, slow in zip(*results, strict=True):
        assert torch.isfinite(fast).all()
        assert_near(fast, slow)


def test_saved_tensors_do_not_grow_with_the_square_of_the_number_of_bars() -> None:
    """4096 by 4096 numbers for each head and sequence would be over 400 times the numbers in the inputs."""
    saved_sizes = []  # numbers in each tensor saved for the backward pass
    inputs = {name: value.requires_grad_() for name, value in make_inputs(n_bars=4096).items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved_sizes.append(t.numel()) or t, lambda t: t):
        ssd(**inputs)
    assert 0 < sum(saved_sizes) < 6 * sum(v.numel() for v in inputs.values())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_irregular", [False, True])
def test_one_call_of_forward_equals_one_step_per_bar(dtype: torch.dtype, is_irregular: bool) -> None:
    layer = make_layer(dtype)
    x = torch.randn(2, 29, 6, dtype=dtype)
    gaps = None
    if is_irregular:
        gaps = torch.rand(2, 29).to(dtype) * 3 + 0.1
        gaps[1, 23:] = 0.0  # a gap of 0 marks a padded bar
    for state in (layer.initial_state(2), tuple(torch.randn_like(part) for part in layer.initial_state(2))):
        whole, last = layer(x, state, gaps)
        slow, slow_last = run_by_steps(layer, x, state, gaps)
        with torch.no_grad():
            compiled, compiled_last = run_by_steps(layer, x, state, gaps)
        n_real = 23 if is_irregular else 29  # outputs of padded bars have no meaning
        assert_near(whole[:, :n_real], slow[:, :n_real])
        assert_near(compiled[:, :n_real], slow[:, :n_real])
        for from_whole, from_steps, from_kernel in zip(last, slow_last, compiled_last, strict=True):
            assert_near(from_whole, from_steps)
            assert_near(from_kernel, from_steps)


@pytest.mark.parametrize("d_conv", [1, 2, 4])
def test_the_compiled_step_equals_the_step_in_torchs_operations(d_conv: int) -> None:
    """The two are compared before and after a change of the weights, and under autocast to bfloat16, to two digits."""
    layer = make_layer(d_conv=d_conv, n_groups=1)
    x = torch.randn(3, 6)
    state = tuple(torch.randn_like(part) for part in layer.initial_state(3))
    for _ in range(2):
        expected, expected_state = layer.step(x, state)
        with torch.no_grad():
            y, next_state = layer.step(x, state)
            for actual, in_torch in zip((y, *next_state), (expected, *expected_state), strict=True):
                assert_near(actual, in_torch)
            layer.A_log.add_(1.0)
            layer.in_proj.weight.mul_(2.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.step(x, state)[1], layer(x[:, None], state)[1], rtol=0.02, atol=0.02)


def test_two_calls_joined_by_the_state_equal_one_call() -> None:
    layer = make_layer()
    x = torch.randn(2, 29, 6)
    gaps = torch.rand(2, 29) + 0.5
    whole, last = layer(x, gaps=gaps)
    for n_first_bars in (1, 2, 8, 28):
        first, state = layer(x[:, :n_first_bars], gaps=gaps[:, :n_first_bars])
        second, state = layer(x[:, n_first_bars:], state, gaps[:, n_first_bars:])
        for joined, expected in zip((torch.cat([first, second], dim=1), *state), (whole, *last), strict=True):
            assert_near(joined, expected)


def test_gaps_scale_the_step_size_after_the_softplus() -> None:
    layer = make_layer()
    x = torch.randn(2, 29, 6)
    assert torch.equal(layer(x, gaps=torch.ones(2, 29))[0], layer(x)[0])
    doubled = copy.deepcopy(layer)
    with torch.no_grad():  # with these weights of dt set to 0, Δ = softplus(dt_bias) at every bar
        for changed_layer in (layer, doubled):
            changed_layer.in_proj.weight[-len(layer.D) :] = 0.0
        doubled.dt_bias.copy_(torch.log(torch.expm1(2 * softplus(layer.dt_bias))))  # inverse of softplus
    assert_near(layer(x, gaps=torch.full((2, 29), 2.0))[0], doubled(x)[0])


def test_padded_bars_at_the_end_do_not_change_the_state() -> None:
    layer = make_layer()
    x = torch.randn(3, 20, 6)
    gaps = torch.ones(3, 20)
    lengths = (20, 9, 1)
    for i, length in enumerate(lengths):
        gaps[i, length:] = 0.0
        x[i, length:] = torch.nan
    y, last = layer(x, gaps=gaps)
    for i, length in enumerate(lengths):
        alone, state_alone = layer(x[i : i + 1, :length])
        assert_near(y[i : i + 1, :length], alone)
        for part, expected in zip(last, state_alone, strict=True):
            assert_near(part[i : i + 1], expected)
    _, after_step = layer.step(x[:, -1], last, torch.zeros(3))
    _, after_sequence = layer(x, last, torch.zeros(3, 20))
    for state in (after_step, after_sequence):
        assert all(torch.equal(part, expected) for part, expected in zip(state, last, strict=True))


def test_later_bars_leave_earlier_outputs_bit_identical() -> None:
    layer = make_layer()
    x = torch.randn(2, 70, 6)
    gaps = torch.rand(2, 70) + 0.5
    changed_x = x.clone()
    changed_gaps = gaps.clone()
    changed_x[:, 43:] = 50.0
    changed_gaps[:, 43:] = 0.1
    y = layer(x, gaps=gaps)[0]
    changed_y = layer(changed_x, gaps=changed_gaps)[0]
    assert torch.equal(y[:, :43], changed_y[:, :43])
    assert not torch.equal(y[:, 43:], changed_y[:, 43:])


def test_outputs_do_not_depend_on_the_number_of_later_bars() -> None:
    inputs = make_inputs()
    whole = ssd(**inputs, chunk_bars=8)[0]
    for n_first_bars in (1, 7, 8, 9, 30):
        first_bars = {name: v[:, :n_first_bars] if name in PER_BAR else v for name, v in inputs.items()}
        assert torch.equal(ssd(**first_bars, chunk_bars=8)[0], whole[:, :n_first_bars])


def test_every_parameter_learns_and_gradients_equal_finite_differences() -> None:
    layer = make_layer(torch.float64, d_state=2, chunk_bars=2)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))
    layer(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in values)


def test_sizes_and_initial_values_follow_the_paper() -> None:
    layer = Mamba2(128, d_state=16, n_groups=2)
    assert layer.head_dim == 64 and len(layer.A_log) == 4
    assert layer.in_proj.weight.shape == (2 * 256 + 2 * 2 * 16 + 4, 128)
    delta = softplus(layer.dt_bias)
    decay_rate = layer.A_log.exp()
    # dt_min and dt_max, with a tolerance of 0.1 % for the rounding of softplus and its inverse
    assert delta.min() >= 0.001 * 0.999 and delta.max() <= 0.1 * 1.001
    assert decay_rate.min() >= 1 and decay_rate.max() <= 16


def test_the_default_head_dim_divides_the_inner_width() -> None:
    assert [Mamba2(d, d_state=4).head_dim for d in (1, 2, 3, 8, 12, 24, 256)] == [1, 1, 1, 4, 2, 4, 64]


def test_the_decay_of_an_impulse_depends_on_later_inputs() -> None:
    """The same impulse changes the last state differently when the bars after it differ."""
    layer = make_layer()
    quiet = torch.zeros(1, 3, 6)
    loud = quiet.clone()
    loud[:, 1] = 3.0
    changes = []
    for x in (quiet, loud):
        impulse = x.clone()
        impulse[:, 0] = 1.0
        _, (_, S_with_impulse) = layer(impulse)
        _, (_, S) = layer(x)
        changes.append(S_with_impulse - S)
    assert not torch.allclose(*changes, rtol=1e-2)


def test_invalid_input_is_refused() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, 6)
    for misshapen in (x[:, :0], x[..., :4], x[:, 0]):
        with pytest.raises(ShapeError):
            layer(misshapen)
    with pytest.raises(ShapeError, match="gaps"):
        layer(x, gaps=torch.ones(2, 4))
    with pytest.raises(DtypeError):
        layer(x.int())
    for call in (lambda: layer(x, layer.initial_state(3)), lambda: layer.step(x[:, 0], layer.initial_state(2)[:1])):
        with pytest.raises(StateError):
            call()
    for options in (
        {"head_dim": 5},
        {"head_dim": 3, "n_groups": 3},
        {"d_state": 0},
        {"chunk_bars": 0},
        {"head_dim": 0},
    ):
        with pytest.raises(SizeError):
            Mamba2(6, **options)
