"""The recurrences of the state-space layers: every fast implementation equals the bar-by-bar definition.

MAM-08 and MAM-09 (ids: .github/sources.md).

Glossary: b sequences · d channels · l bars (``length``) · n states per channel · u (b, d, l) input · delta (b, d, l)
step size Δ · A (d, n) decay rates, negative · Ā, B̄ discretised A and B · B, C (b, n, l) input and output maps · D (d,)
skip · z (b, d, l) gate · h state · y output · gaps (b, l) time since the previous bar, in bars; a gap of 0 marks a
padded bar.

Diagonal recurrences: m complex states per channel · x (b, l, d) input · a (d, m) decay factors · w (d, m) output
weights · h (b, d, m) state before the first bar.
"""

import os
import signal

import pytest
import torch
from torch import Tensor

from models.layers import scan_chunked
from models.layers.errors import DtypeError, ShapeError, SizeError
from models.layers.scan import (
    DISCRETISATIONS,
    diagonal_scan,
    diagonal_scan_reference,
    diagonal_ssm,
    diagonal_ssm_reference,
    selective_scan,
    selective_scan_reference,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest expected value
PER_BAR = ("u", "delta", "B", "C", "z")  # arguments with the bars along the last axis
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
every_discretisation = pytest.mark.parametrize("discretisation", DISCRETISATIONS)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Asserts that the largest error is at most 1e-5 (float64: 1e-10) times the largest absolute expected value."""
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    is_single = actual.dtype in (torch.float32, torch.complex64)
    assert error <= TOLERANCE[torch.float32 if is_single else torch.float64]


def make_scan_inputs(
    b: int = 2, d: int = 20, length: int = 150, n: int = 3, dtype: torch.dtype = torch.float32
) -> dict:
    """Random arguments of ``selective_scan`` by name.

    ``delta`` has both signs, so callers must also pass ``delta_softplus=True``, which makes the step sizes positive.
    """
    torch.manual_seed(0)
    shapes = {"u": (b, d, length), "delta": (b, d, length), "B": (b, n, length), "C": (b, n, length), "D": (d,)}
    shapes |= {"z": (b, d, length), "delta_bias": (d,), "initial_state": (b, d, n)}
    inputs = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    inputs["A"] = -torch.rand(d, n, dtype=dtype) * 0.3 - 0.1  # keeps ΔA above −2, below which Euler's rule diverges
    return inputs


def select_required(inputs: dict) -> dict:
    """The arguments of ``selective_scan`` that have no default, with ``delta`` made positive by softplus."""
    return {k: inputs[k] for k in ("u", "A", "B", "C")} | {"delta": torch.nn.functional.softplus(inputs["delta"])}


@both_dtypes
@every_discretisation
@pytest.mark.parametrize("has_optional", [True, False], ids=["all arguments", "required arguments only"])
def test_outputs_states_and_gradients_of_the_fast_scan_equal_the_definition(
    dtype: torch.dtype, discretisation: str, has_optional: bool
) -> None:
    """MAM-08: y, the last state and the gradient of every tensor argument."""
    inputs = make_scan_inputs(dtype=dtype)
    inputs = inputs | {"delta_softplus": True} if has_optional else select_required(inputs)
    results = []
    for function in (selective_scan, selective_scan_reference):
        arguments = {k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        y, last_state = function(**arguments, return_last_state=True, discretisation=discretisation)
        (y.cos().sum() + last_state.square().sum()).backward()
        results.append([y, last_state, *(v.grad for v in arguments.values() if isinstance(v, Tensor))])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


@every_discretisation
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_of_the_selective_scan_equal_finite_differences(discretisation: str, n: int) -> None:
    inputs = make_scan_inputs(b=1, d=2, length=67, n=n, dtype=torch.float64)
    names = list(inputs)

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        arguments = dict(zip(names, values, strict=True))
        return selective_scan(**arguments, delta_softplus=True, return_last_state=True, discretisation=discretisation)

    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in inputs.values()], fast_mode=True)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_the_scan_equals_the_definition_for_lengths_around_a_block_boundary(length: int) -> None:
    inputs = make_scan_inputs(length=length)
    assert_near(selective_scan(**inputs, delta_softplus=True), selective_scan_reference(**inputs, delta_softplus=True))


def test_later_bars_change_no_earlier_output_of_the_selective_scan() -> None:
    inputs = make_scan_inputs()
    before = selective_scan(**inputs, delta_softplus=True)
    for name in PER_BAR:
        inputs[name][..., 100:] = 7.0
    after = selective_scan(**inputs, delta_softplus=True)
    assert torch.equal(before[..., :100], after[..., :100])
    assert not torch.equal(before[..., 100:], after[..., 100:])
    first_bars = {k: v[..., :100] if k in PER_BAR else v for k, v in inputs.items()}
    assert torch.equal(selective_scan(**first_bars, delta_softplus=True), before[..., :100])


@pytest.mark.parametrize("n_first_bars", [1, 64, 100])
def test_two_scans_joined_by_the_state_equal_one_scan(n_first_bars: int) -> None:
    inputs = make_scan_inputs()
    expected_y, expected_state = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    outputs = []
    state = inputs.pop("initial_state")
    for bars in (slice(0, n_first_bars), slice(n_first_bars, None)):
        arguments = {k: v[..., bars] if k in PER_BAR else v for k, v in inputs.items()}
        y, state = selective_scan(**arguments, delta_softplus=True, initial_state=state, return_last_state=True)
        outputs.append(y)
    assert_near(torch.cat(outputs, dim=2), expected_y)
    assert_near(state, expected_state)


@every_discretisation
def test_a_padded_bar_does_not_change_the_state(discretisation: str) -> None:
    """A gap of 0 marks a padded bar: the last state equals the state of the same bars without the padding."""
    inputs = make_scan_inputs(length=10) | {
        "delta_softplus": True,
        "return_last_state": True,
        "discretisation": discretisation,
    }
    gaps = torch.ones(2, 10)
    gaps[:, 7:] = 0
    real_bars = {k: v[..., :7] if k in PER_BAR else v for k, v in inputs.items()}
    y, last_state = selective_scan(**inputs, gaps=gaps)
    expected_y, expected_state = selective_scan(**real_bars)
    assert torch.equal(y[..., :7], expected_y)
    assert_near(last_state, expected_state)


def test_a_gap_scales_the_step_size() -> None:
    inputs = select_required(make_scan_inputs())
    gaps = torch.rand(2, 150) * 3
    scaled = inputs | {"delta": inputs["delta"] * gaps[:, None]}
    assert_near(selective_scan(**inputs, gaps=gaps), selective_scan_reference(**scaled))


def test_one_two_and_three_threads_give_the_same_gradients_for_one_sequence() -> None:
    inputs = make_scan_inputs(b=1, d=64)
    n_threads_before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            arguments = {k: v.clone().requires_grad_() for k, v in inputs.items()}
            selective_scan(**arguments, delta_softplus=True).cos().sum().backward()
            results.append([v.grad for v in arguments.values()])
    finally:
        torch.set_num_threads(n_threads_before)
    by_one_thread, *others = results
    for other in others:
        for actual, expected in zip(other, by_one_thread, strict=True):
            assert_near(actual, expected)


def test_bfloat16_inputs_are_computed_in_float32() -> None:
    inputs = select_required(make_scan_inputs())
    bfloat16_inputs = {k: v.bfloat16() for k, v in inputs.items()}
    y, last_state = selective_scan(**bfloat16_inputs, return_last_state=True)
    assert (y.dtype, last_state.dtype) == (torch.bfloat16, torch.float32)
    expected = selective_scan(**{k: v.float() for k, v in bfloat16_inputs.items()})
    assert torch.equal(y, expected.bfloat16())


def test_wrong_shapes_dtypes_and_discretisations_are_refused() -> None:
    inputs = select_required(make_scan_inputs())
    with pytest.raises(ShapeError, match=r"B is \(2, 4, 150\); u \(2, 20, 150\) and n = 3 require \(2, 3, 150\)"):
        selective_scan(**inputs | {"B": torch.zeros(2, 4, 150)})
    wrong_shapes = {"D": (19,), "z": (2, 20, 149), "delta_bias": (2,), "gaps": (2, 149), "initial_state": (1, 20, 3)}
    for name, shape in wrong_shapes.items():
        with pytest.raises(ShapeError, match=f"{name} is "):
            selective_scan(**inputs | {name: torch.zeros(shape)})
    with pytest.raises(DtypeError, match=r"C is torch\.complex64"):
        selective_scan(**inputs | {"C": inputs["C"].to(torch.complex64)})
    x, a, w, D, h = make_diagonal_inputs()
    arguments = {"x": x, "a": torch.view_as_complex(a), "w": torch.view_as_complex(w), "D": D}
    arguments |= {"h": torch.view_as_complex(h)}
    for name in ("a", "D", "h"):
        with pytest.raises(ShapeError, match=f"^{name} is|^w is"):
            diagonal_ssm(**arguments | {name: arguments[name][:1]})
    with pytest.raises(ShapeError, match="a is"):
        diagonal_scan(torch.ones(3, 1, 5, dtype=torch.complex64), torch.ones(2, 4, 5, dtype=torch.complex64))
    with pytest.raises(ShapeError, match="one bar or more"):
        selective_scan(**{k: v[..., :0] if k != "A" else v for k, v in inputs.items()})
    with pytest.raises(DtypeError, match="int64"):
        selective_scan(**inputs | {"u": torch.zeros(2, 20, 150, dtype=torch.int64)})
    with pytest.raises(DtypeError, match="complex64"):
        selective_scan(**inputs | {"A": inputs["A"].to(torch.complex64)})
    with pytest.raises(SizeError, match="bilinear"):
        selective_scan(**inputs, discretisation="bilinear")


def make_diagonal_inputs(
    b: int = 2, length: int = 150, d: int = 20, m: int = 3, dtype: torch.dtype = torch.float32
) -> list:
    """Random x, a, w, D and h of ``diagonal_ssm``; the complex a, w and h as real (real, imaginary) pairs (…, 2)."""
    torch.manual_seed(0)
    x = torch.randn(b, length, d)
    a = torch.rand(d, m, 2) * 0.6
    w = torch.randn(d, m, 2)
    D = torch.randn(d)
    h = torch.randn(b, d, m, 2)
    return [v.to(dtype) for v in (x, a, w, D, h)]


def run_ssm(ssm, x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """y and the last state, as pairs, of ``ssm``: any ``diagonal_ssm`` or its reference.

    The other arguments are the values of ``make_diagonal_inputs``.
    """
    y, last_state = ssm(x, *(torch.view_as_complex(v) for v in (a, w)), D, torch.view_as_complex(h))
    return y, torch.view_as_real(last_state)


@both_dtypes
@pytest.mark.parametrize("ssm", [diagonal_ssm, scan_chunked.diagonal_ssm], ids=["scan", "scan_chunked"])
@pytest.mark.parametrize("length", [1, 64, 150])
def test_diagonal_ssm_and_its_gradients_equal_the_definition(dtype: torch.dtype, ssm, length: int) -> None:
    results = []
    for function in (ssm, diagonal_ssm_reference):
        arguments = [v.clone().requires_grad_() for v in make_diagonal_inputs(length=length, dtype=dtype)]
        y, last_state = run_ssm(function, *arguments)
        (y.cos().sum() + last_state.square().sum()).backward()
        results.append([y, last_state, *(v.grad for v in arguments)])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


@both_dtypes
@pytest.mark.parametrize("scan", [diagonal_scan, scan_chunked.diagonal_scan], ids=["scan", "scan_chunked"])
@pytest.mark.parametrize("decay_shape", [(1, 1), (2, 1), (1, 150), (2, 150)])
def test_diagonal_scan_and_its_gradients_equal_the_definition(dtype: torch.dtype, scan, decay_shape: tuple) -> None:
    """``decay_shape``: sequences and bars of the decay factor a; a size of 1 means the same value for all."""
    torch.manual_seed(0)
    a = torch.rand(*decay_shape, 5, 2) * 0.6
    x = torch.randn(2, 150, 5, 2)
    h = torch.randn(2, 5, 2)
    inputs = [a, x, h]
    results = []
    for function in (scan, diagonal_scan_reference):
        arguments = [v.to(dtype).requires_grad_() for v in (v.clone() for v in inputs)]
        states, last_state = function(*(torch.view_as_complex(v) for v in arguments))
        (states.real.cos().sum() + states.imag.square().sum() + last_state.abs().sum()).backward()
        results.append([states, last_state, *(v.grad for v in arguments)])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


def test_gradients_of_diagonal_ssm_and_diagonal_scan_equal_finite_differences() -> None:
    arguments = [v.requires_grad_() for v in make_diagonal_inputs(b=1, length=67, d=2, m=1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *v: run_ssm(diagonal_ssm, *v), arguments, fast_mode=True)
    shapes = ((1, 9, 2), (2, 9, 2), (2, 2))  # a, x, h
    inputs = [(torch.rand(*shape, dtype=torch.complex128) * 0.6).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(diagonal_scan, inputs)


@pytest.mark.parametrize("ssm", [diagonal_ssm, scan_chunked.diagonal_ssm], ids=["scan", "scan_chunked"])
def test_later_bars_change_no_earlier_output_of_diagonal_ssm(ssm) -> None:
    x, *rest = make_diagonal_inputs()
    changed = x.clone()
    changed[:, 100:] = 7.0
    before = run_ssm(ssm, x, *rest)[0]
    after = run_ssm(ssm, changed, *rest)[0]
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


@every_discretisation
def test_a_nan_input_gives_nan_at_the_same_outputs_as_in_the_definition(discretisation: str) -> None:
    for name in ("u", "delta", "B", "C", "z", "A", "D", "delta_bias", "initial_state"):
        inputs = make_scan_inputs(length=9)
        inputs[name].view(-1)[0] = torch.nan
        actual, expected = (
            f(**inputs, delta_softplus=True, discretisation=discretisation)
            for f in (selective_scan, selective_scan_reference)
        )
        assert torch.equal(torch.isnan(actual), torch.isnan(expected)), name


def test_zero_order_hold_is_accurate_at_small_step_sizes() -> None:
    """MAM-09: B̄ keeps its digits where exp(ΔA) − 1 is close to zero."""
    for delta in (1e-1, 1e-3, 1e-6):
        inputs = select_required(make_scan_inputs()) | {"delta": torch.full((2, 20, 150), delta)}
        exact = selective_scan_reference(**{k: v.double() for k, v in inputs.items()}, discretisation="zoh")
        assert_near(selective_scan(**inputs, discretisation="zoh"), exact.float())
        assert_near(selective_scan_reference(**inputs, discretisation="zoh"), exact.float())


def test_nan_inputs_at_padded_bars_have_no_effect() -> None:
    """A gap of 0 marks a padded bar."""
    inputs = make_scan_inputs(length=9)
    gaps = torch.ones(2, 9)
    gaps[:, 6:] = 0
    nan_inputs = {k: v.clone() for k, v in inputs.items()}
    for name in ("u", "delta", "B", "C"):
        nan_inputs[name][..., 6:] = torch.nan
    options = {"delta_softplus": True, "gaps": gaps, "return_last_state": True}
    expected_y, expected_state = selective_scan(**inputs, **options)
    y, last_state = selective_scan(**nan_inputs, **options)
    assert torch.equal(y[..., :6], expected_y[..., :6]) and torch.equal(last_state, expected_state)


def test_a_forked_child_process_can_scan_with_threads() -> None:
    n_threads_before = torch.get_num_threads()
    inputs = select_required(make_scan_inputs(b=4))
    try:
        torch.set_num_threads(2)
        selective_scan(**inputs)
        child_id = os.fork()
        if child_id == 0:
            signal.alarm(20)  # ends a child that hangs
            selective_scan(**inputs)
            os._exit(0)
        _, exit_status = os.waitpid(child_id, 0)
        assert exit_status == 0
    finally:
        torch.set_num_threads(n_threads_before)
