"""The measurements behind the tables of models/layers/convolution.py. ``pytest tests/benchmarks -m benchmark -s``.

All contenders of a case run in turn within each round, forward and backward; the best round counts; * marks the
table's choice. Times vary, so the assertion is loose: the table's choice is not far from the fastest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.layers import convolution, s4
from models.layers.convolution import block_bars, causal_convolution, causal_product
from models.layers.s4 import S4
from tests.benchmarks.contest import contest

pytestmark = pytest.mark.benchmark
D = 64
ROUNDS = 5
CASES = [(64, 16), (256, 16), (256, 64), (512, 16), (1024, 1), (1024, 16), (2048, 16), (4096, 1), (4096, 16)]


def time_contenders(case: str, contenders: dict[str, Callable[[], object]], choice: str) -> dict[str, float]:
    """The best seconds of every contender. Prints them in one line, with * at the table's ``choice``."""
    result = contest(contenders, ROUNDS)
    seconds = {name: result.best(name) for name in contenders}
    cells = (f"{name}{'*' if name == choice else ' '} {1e3 * s:7.1f}" for name, s in seconds.items())
    print(f"\n{case:28s}", "  ".join(cells), "ms", end="")
    return seconds


@pytest.mark.parametrize(("length", "batch"), CASES)
def test_the_block_length_of_a_kernel_as_long_as_the_series(length: int, batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, length, D, requires_grad=True)
    kernel = torch.randn(D, length, requires_grad=True)
    grad = torch.randn(batch, length, D)
    widths = [w for w in (16, 32, 64, 128, 256) if w <= length]
    forms: dict[str, Callable[[], torch.Tensor]] = {str(w): lambda w=w: causal_product(x, kernel, w) for w in widths}  # type: ignore[misc]
    forms["transform"] = lambda: convolution._transformed(x, kernel)
    expected = causal_convolution(x.double(), kernel.double())
    for form in forms.values():
        assert (form() - expected).norm() < 1e-5 * expected.norm()
    choice = str(min(convolution._listed(convolution.PRODUCT_BARS, length), length))
    passes = {name: lambda form=form: form().backward(grad) for name, form in forms.items()}  # type: ignore[misc]
    seconds = time_contenders(f"l {length} b {batch}", passes, choice)
    exact = {name: s for name, s in seconds.items() if name != "transform"}
    assert exact[choice] < 1.6 * min(exact.values())
    if length >= 2 * convolution.TRANSFORM_BARS:
        assert seconds["transform"] < exact[choice]


@pytest.mark.parametrize("d_state", [16, 64])
@pytest.mark.parametrize(("length", "batch"), CASES)
def test_the_block_length_of_a_state_space_layer(length: int, batch: int, d_state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = S4(D, d_state)
    x = torch.randn(batch, length, D, requires_grad=True)
    grad = torch.randn(batch, length, D)

    def in_blocks(bars: int) -> Callable[[], None]:
        def run() -> None:
            monkeypatch.setattr(s4, "block_bars", lambda length, d_state: bars)
            layer(x)[0].backward(grad)

        return run

    def whole() -> None:
        causal_convolution(x, layer.kernel(length), exact_causality=False).backward(grad)

    contenders = {str(w): in_blocks(w) for w in (16, 32, 64, 128, 256) if w <= length}
    contenders["kernel, transform"] = whole
    choice = str(block_bars(length, d_state))
    seconds = time_contenders(f"N {d_state} l {length} b {batch}", contenders, choice)
    assert seconds[choice] < 1.6 * min(seconds.values())
