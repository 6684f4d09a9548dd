"""The measurements behind the tables of models/layers/convolution.py. ``pytest tests/benchmarks -m benchmark -s``.

Every contender of a case in turn within each round, best of the rounds, forward and backward; * marks what the table
takes. The assertion is loose, as a clock is: what the table takes is nowhere far from the fastest.
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
D, ROUNDS = 64, 5
CASES = [(64, 16), (256, 16), (256, 64), (512, 16), (1024, 1), (1024, 16), (2048, 16), (4096, 1), (4096, 16)]


def timed(case: str, contenders: dict[str, Callable[[], object]], taken: str) -> dict[str, float]:
    """The best seconds of every contender; prints one line."""
    result = contest(contenders, ROUNDS)
    seconds = {name: result.best(name) for name in contenders}
    cells = (f"{name}{'*' if name == taken else ' '} {1e3 * s:7.1f}" for name, s in seconds.items())
    print(f"\n{case:28s}", "  ".join(cells), "ms", end="")
    return seconds


@pytest.mark.parametrize(("length", "batch"), CASES)
def test_a_kernel_as_long_as_the_series(length: int, batch: int) -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(batch, length, D, requires_grad=True), torch.randn(D, length, requires_grad=True)
    grad = torch.randn(batch, length, D)
    widths = [w for w in (16, 32, 64, 128, 256) if w <= length]
    forms: dict[str, Callable[[], torch.Tensor]] = {str(w): lambda w=w: causal_product(x, kernel, w) for w in widths}  # type: ignore[misc]
    forms["transform"] = lambda: convolution._transformed(x, kernel)
    expected = causal_convolution(x.double(), kernel.double())
    for form in forms.values():
        assert (form() - expected).norm() < 1e-5 * expected.norm()
    taken = str(min(convolution._listed(convolution.PRODUCT_BARS, length), length))
    both = {name: lambda form=form: form().backward(grad) for name, form in forms.items()}  # type: ignore[misc]
    seconds = timed(f"l {length} b {batch}", both, taken)
    exact = {name: s for name, s in seconds.items() if name != "transform"}
    assert exact[taken] < 1.6 * min(exact.values())
    if length >= 2 * convolution.TRANSFORM_BARS:
        assert seconds["transform"] < exact[taken]


@pytest.mark.parametrize("d_state", [16, 64])
@pytest.mark.parametrize(("length", "batch"), CASES)
def test_blocks_of_a_state_space_layer(length: int, batch: int, d_state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = S4(D, d_state), torch.randn(batch, length, D, requires_grad=True)
    grad = torch.randn(batch, length, D)

    def blocks_of(bars: int) -> Callable[[], None]:
        def run() -> None:
            monkeypatch.setattr(s4, "block_bars", lambda length, d_state: bars)
            layer(x)[0].backward(grad)

        return run

    def whole() -> None:
        causal_convolution(x, layer.kernel(length), exact_causality=False).backward(grad)

    contenders = {str(w): blocks_of(w) for w in (16, 32, 64, 128, 256) if w <= length}
    contenders["kernel, transform"] = whole
    taken = str(block_bars(length, d_state))
    seconds = timed(f"N {d_state} l {length} b {batch}", contenders, taken)
    assert seconds[taken] < 1.6 * min(seconds.values())
