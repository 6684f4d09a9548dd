"""The recurrences of the state-space layers: every fast form against its definition (MAM-08, MAM-09).

Glossary as in models/layers/scan.py.
"""

import os
import signal

import pytest
import torch
from torch import Tensor

from models.layers import scan_chunked
from models.layers.errors import DtypeError, ShapeError, SizeError
from models.layers.scan import (
    RULES,
    diagonal_scan,
    diagonal_scan_reference,
    diagonal_ssm,
    diagonal_ssm_reference,
    selective_scan,
    selective_scan_reference,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest expected value
PER_BAR = ("u", "delta", "B", "C", "z")  # the arguments whose last axis is the bar
both_precisions = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
every_rule = pytest.mark.parametrize("rule", RULES)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5 (float64: 1e-10) of the largest expected value."""
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    is_single = actual.dtype in (torch.float32, torch.complex64)
    assert error <= TOLERANCE[torch.float32 if is_single else torch.float64]


def scan_inputs(b: int = 2, d: int = 20, length: int = 150, n: int = 3, dtype: torch.dtype = torch.float32) -> dict:
    """Random arguments of ``selective_scan`` by name, with a ``delta`` of either sign: pass ``delta_softplus``."""
    torch.manual_seed(0)
    shapes = {"u": (b, d, length), "delta": (b, d, length), "B": (b, n, length), "C": (b, n, length), "D": (d,)}
    shapes |= {"z": (b, d, length), "delta_bias": (d,), "initial_state": (b, d, n)}
    inputs = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    inputs["A"] = -torch.rand(d, n, dtype=dtype) * 0.3 - 0.1  # keeps ΔA above −2, below which Euler's rule diverges
    return inputs


def required_arguments(inputs: dict) -> dict:
    """The arguments without a default, with a positive ``delta``."""
    return {k: inputs[k] for k in ("u", "A", "B", "C")} | {"delta": torch.nn.functional.softplus(inputs["delta"])}


@both_precisions
@every_rule
@pytest.mark.parametrize("has_all", [True, False], ids=["every argument", "required arguments"])
def test_the_fast_scan_equals_the_recurrence_and_so_do_its_gradients(
    dtype: torch.dtype, rule: str, has_all: bool
) -> None:
    """MAM-08: the backward pass of the fast scan recomputes the states."""
    inputs = scan_inputs(dtype=dtype)
    inputs = inputs | {"delta_softplus": True} if has_all else required_arguments(inputs)
    results = []
    for function in (selective_scan, selective_scan_reference):
        arguments = {k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        y, h = function(**arguments, return_last_state=True, rule=rule)
        (y.cos().sum() + h.square().sum()).backward()
        results.append([y, h, *(v.grad for v in arguments.values() if isinstance(v, Tensor))])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


@every_rule
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_equal_finite_differences(rule: str, n: int) -> None:
    inputs = scan_inputs(b=1, d=2, length=67, n=n, dtype=torch.float64)
    names = list(inputs)

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        arguments = dict(zip(names, values, strict=True))
        return selective_scan(**arguments, delta_softplus=True, return_last_state=True, rule=rule)

    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in inputs.values()], fast_mode=True)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_lengths_around_a_block_boundary_equal_the_recurrence(length: int) -> None:
    inputs = scan_inputs(length=length)
    assert_near(selective_scan(**inputs, delta_softplus=True), selective_scan_reference(**inputs, delta_softplus=True))


def test_later_bars_change_no_earlier_output() -> None:
    inputs = scan_inputs()
    before = selective_scan(**inputs, delta_softplus=True)
    for name in PER_BAR:
        inputs[name][..., 100:] = 7.0
    after = selective_scan(**inputs, delta_softplus=True)
    assert torch.equal(before[..., :100], after[..., :100])
    assert not torch.equal(before[..., 100:], after[..., 100:])
    cut = {k: v[..., :100] if k in PER_BAR else v for k, v in inputs.items()}
    assert torch.equal(selective_scan(**cut, delta_softplus=True), before[..., :100])


@pytest.mark.parametrize("cut", [1, 64, 100])
def test_two_parts_joined_by_the_state_equal_the_whole_sequence(cut: int) -> None:
    inputs = scan_inputs()
    whole, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    parts = []
    h = inputs.pop("initial_state")
    for part in (slice(0, cut), slice(cut, None)):
        arguments = {k: v[..., part] if k in PER_BAR else v for k, v in inputs.items()}
        y, h = selective_scan(**arguments, delta_softplus=True, initial_state=h, return_last_state=True)
        parts.append(y)
    assert_near(torch.cat(parts, dim=2), whole)
    assert_near(h, last)


@every_rule
def test_a_padded_bar_does_not_change_the_state(rule: str) -> None:
    inputs = scan_inputs(length=10) | {"delta_softplus": True, "return_last_state": True, "rule": rule}
    gaps = torch.ones(2, 10)
    gaps[:, 7:] = 0
    cut = {k: v[..., :7] if k in PER_BAR else v for k, v in inputs.items()}
    y, h = selective_scan(**inputs, gaps=gaps)
    expected, last = selective_scan(**cut)
    assert torch.equal(y[..., :7], expected)
    assert_near(h, last)


def test_a_gap_scales_the_step_size() -> None:
    inputs = required_arguments(scan_inputs())
    gaps = torch.rand(2, 150) * 3
    scaled = inputs | {"delta": inputs["delta"] * gaps[:, None]}
    assert_near(selective_scan(**inputs, gaps=gaps), selective_scan_reference(**scaled))


def test_many_threads_and_few_sequences_give_the_same_gradients() -> None:
    inputs = scan_inputs(b=1, d=64)
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


def test_half_precision_is_computed_in_float32() -> None:
    inputs = required_arguments(scan_inputs())
    halves = {k: v.bfloat16() for k, v in inputs.items()}
    y, h = selective_scan(**halves, return_last_state=True)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    expected = selective_scan(**{k: v.float() for k, v in halves.items()})
    assert torch.equal(y, expected.bfloat16())


def test_bad_inputs_are_refused_with_their_shapes() -> None:
    inputs = required_arguments(scan_inputs())
    with pytest.raises(ShapeError, match=r"B is \(2, 4, 150\); u \(2, 20, 150\) and n = 3 require \(2, 3, 150\)"):
        selective_scan(**inputs | {"B": torch.zeros(2, 4, 150)})
    wrong_shapes = {"D": (19,), "z": (2, 20, 149), "delta_bias": (2,), "gaps": (2, 149), "initial_state": (1, 20, 3)}
    for name, shape in wrong_shapes.items():
        with pytest.raises(ShapeError, match=f"{name} is "):
            selective_scan(**inputs | {name: torch.zeros(shape)})
    with pytest.raises(DtypeError, match=r"C is torch\.complex64"):
        selective_scan(**inputs | {"C": inputs["C"].to(torch.complex64)})
    x, a, w, D, h = diagonal_inputs()
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
        selective_scan(**inputs, rule="bilinear")


def diagonal_inputs(b: int = 2, length: int = 150, d: int = 20, m: int = 3, dtype: torch.dtype = torch.float32) -> list:
    """Random x, a, w, D and h of ``diagonal_ssm``; complex numbers are pairs, so that gradients are real."""
    torch.manual_seed(0)
    parts = [torch.randn(b, length, d), torch.rand(d, m, 2) * 0.6, torch.randn(d, m, 2), torch.randn(d)]
    return [v.to(dtype) for v in (*parts, torch.randn(b, d, m, 2))]


def run_ssm(form, x: Tensor, a: Tensor, w: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """``form``, one of the functions named diagonal_ssm, for the inputs of ``diagonal_inputs``."""
    y, last = form(x, *(torch.view_as_complex(v) for v in (a, w)), D, torch.view_as_complex(h))
    return y, torch.view_as_real(last)


@both_precisions
@pytest.mark.parametrize("form", [diagonal_ssm, scan_chunked.diagonal_ssm], ids=["kernel", "chunked"])
@pytest.mark.parametrize("length", [1, 64, 150])
def test_every_form_of_the_diagonal_convolution_equals_the_recurrence(dtype: torch.dtype, form, length: int) -> None:
    results = []
    for function in (form, diagonal_ssm_reference):
        arguments = [v.clone().requires_grad_() for v in diagonal_inputs(length=length, dtype=dtype)]
        y, h = run_ssm(function, *arguments)
        (y.cos().sum() + h.square().sum()).backward()
        results.append([y, h, *(v.grad for v in arguments)])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


@both_precisions
@pytest.mark.parametrize("form", [diagonal_scan, scan_chunked.diagonal_scan], ids=["kernel", "doubling"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 150), (2, 150)])
def test_every_form_of_the_diagonal_scan_equals_the_recurrence(dtype: torch.dtype, form, shape: tuple) -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(*shape, 5, 2) * 0.6, torch.randn(2, 150, 5, 2), torch.randn(2, 5, 2)]
    results = []
    for function in (form, diagonal_scan_reference):
        arguments = [v.to(dtype).requires_grad_() for v in (v.clone() for v in inputs)]
        states, last = function(*(torch.view_as_complex(v) for v in arguments))
        (states.real.cos().sum() + states.imag.square().sum() + last.abs().sum()).backward()
        results.append([states, last, *(v.grad for v in arguments)])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


def test_gradients_of_the_diagonal_forms_equal_finite_differences() -> None:
    arguments = [v.requires_grad_() for v in diagonal_inputs(b=1, length=67, d=2, m=1, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *v: run_ssm(diagonal_ssm, *v), arguments, fast_mode=True)
    shapes = ((1, 9, 2), (2, 9, 2), (2, 2))  # a, x, h
    inputs = [(torch.rand(*shape, dtype=torch.complex128) * 0.6).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(diagonal_scan, inputs)


@pytest.mark.parametrize("form", [diagonal_ssm, scan_chunked.diagonal_ssm], ids=["kernel", "chunked"])
def test_later_bars_change_no_earlier_output_of_the_diagonal_convolution(form) -> None:
    x, *rest = diagonal_inputs()
    changed = x.clone()
    changed[:, 100:] = 7.0
    before = run_ssm(form, x, *rest)[0]
    after = run_ssm(form, changed, *rest)[0]
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


@every_rule
def test_nan_inputs_give_nan_outputs_as_in_the_recurrence(rule: str) -> None:
    for name in ("u", "delta", "B", "C", "z", "A", "D", "delta_bias", "initial_state"):
        inputs = scan_inputs(length=9)
        inputs[name].view(-1)[0] = torch.nan
        fast, slow = (f(**inputs, delta_softplus=True, rule=rule) for f in (selective_scan, selective_scan_reference))
        assert torch.equal(torch.isnan(fast), torch.isnan(slow)), name


def test_zero_order_hold_is_accurate_at_small_steps() -> None:
    """MAM-09: B̄ keeps its digits where exp(ΔA) − 1 is close to zero."""
    for step in (1e-1, 1e-3, 1e-6):
        inputs = required_arguments(scan_inputs()) | {"delta": torch.full((2, 20, 150), step)}
        exact = selective_scan_reference(**{k: v.double() for k, v in inputs.items()}, rule="zoh")
        assert_near(selective_scan(**inputs, rule="zoh"), exact.float())
        assert_near(selective_scan_reference(**inputs, rule="zoh"), exact.float())


def test_inputs_at_a_padded_bar_have_no_effect() -> None:
    inputs = scan_inputs(length=9)
    gaps = torch.ones(2, 9)
    gaps[:, 6:] = 0
    padded = {k: v.clone() for k, v in inputs.items()}
    for name in ("u", "delta", "B", "C"):
        padded[name][..., 6:] = torch.nan
    options = {"delta_softplus": True, "gaps": gaps, "return_last_state": True}
    y, h = selective_scan(**inputs, **options)
    y_padded, h_padded = selective_scan(**padded, **options)
    assert torch.equal(y[..., :6], y_padded[..., :6]) and torch.equal(h, h_padded)


def test_a_forked_child_process_can_scan_with_threads() -> None:
    n_threads_before = torch.get_num_threads()
    inputs = required_arguments(scan_inputs(b=4))
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
