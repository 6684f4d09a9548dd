"""Mamba-2: chunked matrix form against the recurrence, and the block around it (the family of MAM-06 to MAM-13)."""

import copy

import pytest
import torch
from torch.nn.functional import softplus

from models.layers import mamba2
from models.layers.errors import DtypeError, ShapeError, SizeError, StateError
from models.layers.mamba2 import Mamba2, State, ssd, ssd_reference

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
B, L, H, P, G, N = 2, 41, 4, 3, 2, 5
PER_BAR = ("x", "dt", "B", "C")


def make_inputs(dtype: torch.dtype = torch.float32, groups: int = G, bars: int = L) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"x": (B, bars, H, P), "B": (B, bars, groups, N), "C": (B, bars, groups, N), "D": (H,)}
    inputs = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    inputs |= {"dt": torch.rand(B, bars, H, dtype=dtype), "A": -torch.rand(H, dtype=dtype) * 4}
    return inputs | {"state": torch.randn(B, H, P, N, dtype=dtype)}


def make_layer(dtype: torch.dtype = torch.float32, **options: int) -> Mamba2:
    torch.manual_seed(0)
    layer = Mamba2(6, **({"d_state": 5, "head_dim": 3, "n_groups": 2, "chunk_bars": 8} | options)).to(dtype)
    torch.nn.init.normal_(layer.norm_weight)
    return layer


def run_by_steps(
    layer: Mamba2, x: torch.Tensor, state: State, gaps: torch.Tensor | None = None
) -> tuple[torch.Tensor, State]:
    outputs = []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state, None if gaps is None else gaps[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_near(one: torch.Tensor, other: torch.Tensor) -> None:
    tolerance = TOLERANCE[one.dtype] * max([0.0, *other.detach().abs().flatten().tolist()])
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 8, 64])
@pytest.mark.parametrize("span", [1, 1 << 20])
def test_chunks_equal_the_recurrence_in_values_and_all_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, groups: int, chunk: int, span: int
) -> None:
    monkeypatch.setattr(mamba2, "SPAN_BARS", span)
    inputs = {name: value.requires_grad_() for name, value in make_inputs(dtype, groups).items()}
    weight = torch.randn(B, L, H, P, dtype=dtype)
    weight_h = torch.randn(B, H, P, N, dtype=dtype)
    results = []
    for function in (lambda **values: ssd(**values, chunk_bars=chunk), ssd_reference):
        y, h = function(**inputs)
        loss = (y * weight).sum() + (h * weight_h).sum()
        results.append([y, h, *torch.autograd.grad(loss, list(inputs.values()))])
    for fast, slow in zip(*results, strict=True):
        assert_near(fast, slow)


def test_gradients_equal_finite_differences() -> None:
    inputs = {name: value.requires_grad_() for name, value in make_inputs(torch.float64, bars=5).items()}

    def output(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ssd(**dict(zip(inputs, values, strict=True)), chunk_bars=2)

    assert torch.autograd.gradcheck(output, tuple(inputs.values()))


def test_one_bar_gives_hand_computed_numbers() -> None:
    """S = exp(Δ A) S + Δ x Bᵀ; y = S C + D x."""
    values = {"x": [[[[2.0]]]], "dt": [[[0.5]]], "A": [-1.0], "B": [[[[3.0, 1.0]]]], "C": [[[[4.0, 5.0]]]], "D": [10.0]}
    inputs = {name: torch.tensor(value) for name, value in values.items()}
    y, S = ssd(**inputs, state=torch.tensor([[[[7.0, 0.0]]]]))
    first = 7 * torch.exp(torch.tensor(-0.5)) + 3
    torch.testing.assert_close(S.flatten(), torch.stack([first, torch.tensor(1.0)]))
    torch.testing.assert_close(y.flatten(), (4 * first + 5 * 1 + 20)[None])


def test_a_long_gap_neither_overflows_nor_loses_its_gradient() -> None:
    """The decay over a chunk is far below the smallest float; above the diagonal its inverse would be infinite."""
    inputs = make_inputs(bars=64)
    inputs["dt"] = 100 * inputs["dt"]
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}
    results = []
    for function in (ssd, ssd_reference):
        y, h = function(**inputs)
        results.append([y, h, *torch.autograd.grad(y.square().sum() + h.sum(), list(inputs.values()))])
    for fast, slow in zip(*results, strict=True):
        assert torch.isfinite(fast).all()
        assert_near(fast, slow)


def test_memory_of_a_pass_does_not_grow_with_the_square_of_the_bars() -> None:
    saved = []
    inputs = {name: value.requires_grad_() for name, value in make_inputs(bars=4096).items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        ssd(**inputs)
    assert 0 < sum(saved) < 6 * sum(v.numel() for v in inputs.values())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("irregular", [False, True])
def test_whole_sequence_equals_step_by_step(dtype: torch.dtype, irregular: bool) -> None:
    layer = make_layer(dtype)
    x = torch.randn(2, 29, 6, dtype=dtype)
    gaps = None
    if irregular:
        gaps = torch.rand(2, 29).to(dtype) * 3 + 0.1
        gaps[1, 23:] = 0.0
    for state in (layer.initial_state(2), tuple(torch.randn_like(part) for part in layer.initial_state(2))):
        whole, last = layer(x, state, gaps)
        slow, after = run_by_steps(layer, x, state, gaps)
        with torch.no_grad():
            compiled, compiled_after = run_by_steps(layer, x, state, gaps)
        present = slice(None, 23) if irregular else slice(None)
        for a, b, c in zip((whole, *last), (slow, *after), (compiled, *compiled_after), strict=True):
            part = present if a.dim() == 3 and a.shape[1] == 29 else slice(None)
            assert_near(a[:, part], b[:, part])
            assert_near(c[:, part], b[:, part])


@pytest.mark.parametrize("d_conv", [1, 2, 4])
def test_the_compiled_step_equals_the_step_of_torch(d_conv: int) -> None:
    """Also after the weights have changed, and under autocast."""
    layer = make_layer(d_conv=d_conv, n_groups=1)
    x = torch.randn(3, 6)
    state = tuple(torch.randn_like(part) for part in layer.initial_state(3))
    for _ in range(2):
        expected, after = layer.step(x, state)
        with torch.no_grad():
            y, compiled_after = layer.step(x, state)
            for a, b in zip((y, *compiled_after), (expected, *after), strict=True):
                assert_near(a, b)
            layer.A_log.add_(1.0)
            layer.in_proj.weight.mul_(2.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.step(x, state)[1], layer(x[:, None], state)[1], rtol=0.02, atol=0.02)


def test_two_parts_joined_by_the_state_equal_the_whole_sequence() -> None:
    layer = make_layer()
    x = torch.randn(2, 29, 6)
    gaps = torch.rand(2, 29) + 0.5
    whole, last = layer(x, gaps=gaps)
    for cut in (1, 2, 8, 28):
        first, state = layer(x[:, :cut], gaps=gaps[:, :cut])
        second, after = layer(x[:, cut:], state, gaps[:, cut:])
        for a, b in zip((torch.cat([first, second], dim=1), *after), (whole, *last), strict=True):
            assert_near(a, b)


def test_gaps_scale_the_step_after_the_softplus() -> None:
    layer = make_layer()
    x = torch.randn(2, 29, 6)
    assert torch.equal(layer(x, gaps=torch.ones(2, 29))[0], layer(x)[0])
    twice = copy.deepcopy(layer)
    with torch.no_grad():  # no bar changes its step size: Δ = softplus(dt_bias), doubled in the weights
        for network in (layer, twice):
            network.in_proj.weight[-len(layer.D) :] = 0.0
        twice.dt_bias.copy_(torch.log(torch.expm1(2 * softplus(layer.dt_bias))))
    assert_near(layer(x, gaps=torch.full((2, 29), 2.0))[0], twice(x)[0])


def test_padded_bars_at_the_end_do_not_change_the_state() -> None:
    layer = make_layer()
    x = torch.randn(3, 20, 6)
    gaps = torch.ones(3, 20)
    lengths = (20, 9, 1)
    for row, length in enumerate(lengths):
        gaps[row, length:] = 0.0
        x[row, length:] = torch.nan
    y, last = layer(x, gaps=gaps)
    for row, length in enumerate(lengths):
        alone, state = layer(x[row : row + 1, :length])
        assert_near(y[row : row + 1, :length], alone)
        for a, b in zip(last, state, strict=True):
            assert_near(a[row : row + 1], b)
    for state in (layer.step(x[:, -1], last, torch.zeros(3))[1], layer(x, last, torch.zeros(3, 20))[1]):
        assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))


def test_the_future_never_changes_the_past_by_a_bit() -> None:
    layer = make_layer()
    x = torch.randn(2, 70, 6)
    gaps = torch.rand(2, 70) + 0.5
    changed = x.clone()
    other = gaps.clone()
    changed[:, 43:] = 50.0
    other[:, 43:] = 0.1
    one = layer(x, gaps=gaps)[0]
    two = layer(changed, gaps=other)[0]
    assert torch.equal(one[:, :43], two[:, :43])
    assert not torch.equal(one[:, 43:], two[:, 43:])


def test_later_bars_never_change_a_chunk_whatever_their_number() -> None:
    inputs = make_inputs()
    whole = ssd(**inputs, chunk_bars=8)[0]
    for bars in (1, 7, 8, 9, 30):
        cut = {name: v[:, :bars] if name in PER_BAR else v for name, v in inputs.items()}
        assert torch.equal(ssd(**cut, chunk_bars=8)[0], whole[:, :bars])


def test_every_parameter_learns_and_gradients_equal_finite_differences() -> None:
    layer = make_layer(torch.float64, d_state=2, chunk_bars=2)
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(output, (x, *values))
    layer(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in values)


def test_sizes_and_first_values_follow_the_paper() -> None:
    layer = Mamba2(128, d_state=16, n_groups=2)
    assert layer.head_dim == 64 and len(layer.A_log) == 4
    assert layer.in_proj.weight.shape == (2 * 256 + 2 * 2 * 16 + 4, 128)
    dt = softplus(layer.dt_bias)
    A = layer.A_log.exp()
    assert dt.min() >= 0.001 * 0.999 and dt.max() <= 0.1 * 1.001
    assert A.min() >= 1 and A.max() <= 16


def test_the_default_head_width_divides_any_model_width() -> None:
    assert [Mamba2(d, d_state=4).head_dim for d in (1, 2, 3, 8, 12, 24, 256)] == [1, 1, 1, 4, 2, 4, 64]


def test_how_long_an_impulse_is_remembered_depends_on_later_inputs() -> None:
    """The same impulse changes the last state differently when the bars after it differ."""
    layer = make_layer()
    quiet = torch.zeros(1, 3, 6)
    loud = quiet.clone()
    loud[:, 1] = 3.0
    changes = []
    for rest in (quiet, loud):
        impulse = rest.clone()
        impulse[:, 0] = 1.0
        changes.append(layer(impulse)[1][1] - layer(rest)[1][1])
    assert not torch.allclose(*changes, rtol=1e-2)


def test_bad_input_is_refused() -> None:
    layer = make_layer()
    x = torch.randn(2, 5, 6)
    for wrong in (x[:, :0], x[..., :4], x[:, 0]):
        with pytest.raises(ShapeError):
            layer(wrong)
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
