"""The measurements behind the table of models/layers/convolution.py. ``pytest tests/benchmarks -m benchmark -s``.

All contenders of a case run in turn within each round, forward and backward; the best round counts; * marks the
table's choice. Times vary, so the assertion is loose: the table's choice is not far from the fastest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.layers import s4
from models.layers.convolution import block_bars
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


def convolve_by_fft(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """y (b, l, d) with y_t = Σ_j kernel[:, j] · x_{t−j}, the textbook form: causal only up to rounding."""
    size = 2 << (x.shape[1] - 1).bit_length()
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : x.shape[1]].transpose(1, 2)


@pytest.mark.parametrize("d_state", [16, 64])
@pytest.mark.parametrize(("length", "batch"), CASES)
def test_the_block_length_of_a_state_space_layer(
    length: int, batch: int, d_state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        convolve_by_fft(x, layer.kernel(length)).backward(grad)

    contenders = {str(w): in_blocks(w) for w in (16, 32, 64, 128, 256) if w <= length}
    contenders["kernel, transform"] = whole
    choice = str(block_bars(length, d_state))
    seconds = time_contenders(f"N {d_state} l {length} b {batch}", contenders, choice)
    assert seconds[choice] < 1.6 * min(seconds.values())
