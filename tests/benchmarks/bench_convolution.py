"""The measurements behind the table of block lengths in models/layers/convolution.py.

``pytest tests/benchmarks/bench_convolution.py -m benchmark -s``. A contender is a forward and backward pass with one
block length; its figure is its fastest round. In the output, * marks the block length that the table selects. Times
vary, so the assertion is loose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from models.layers import s4
from models.layers.convolution import choose_block_bars
from models.layers.s4 import S4
from tests.benchmarks.contest import contest

pytestmark = pytest.mark.benchmark
D = 64  # channels
ROUNDS = 5
MAX_RATIO = 1.6  # of the selected block length's time to the fastest contender's
CASES = [  # (bars, batch)
    *((64, 16), (256, 16), (256, 64), (512, 16), (1024, 1)),
    *((1024, 16), (2048, 16), (4096, 1), (4096, 16)),
]


def time_contenders(case: str, contenders: Mapping[str, Callable[[], object]], selected: str) -> dict[str, float]:
    """The seconds of every contender's fastest round. Prints them in one line, with * at the contender ``selected``."""
    result = contest(contenders, ROUNDS)
    seconds = {name: result.best(name) for name in contenders}
    cells = (f"{name}{'*' if name == selected else ' '} {1e3 * s:7.1f}" for name, s in seconds.items())
    print(f"\n{case:28s}", "  ".join(cells), "ms", end="")
    return seconds


def convolve_by_fft(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The convolution of x (b, l, d) with ``kernel`` (d, l): y_t = Σ_j kernel[:, j] · x_{t−j}, (b, l, d).

    This is the textbook form; a Fourier transform is causal only up to rounding.
    """
    size = 2 << (x.shape[1] - 1).bit_length()
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : x.shape[1]].transpose(1, 2)


@pytest.mark.parametrize("d_state", [16, 64])
@pytest.mark.parametrize(("length", "batch"), CASES)
def test_the_selected_block_length_is_not_far_from_the_fastest(
    length: int, batch: int, d_state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contenders are five block lengths, and one Fourier transform over the whole sequence."""
    torch.manual_seed(0)
    layer = S4(D, d_state)
    x = torch.randn(batch, length, D, requires_grad=True)
    grad = torch.randn(batch, length, D)

    def with_block_length(bars: int) -> Callable[[], None]:
        def run() -> None:
            monkeypatch.setattr(s4, "choose_block_bars", lambda length, d_state: bars)
            layer(x)[0].backward(grad)

        return run

    def by_fft() -> None:
        convolve_by_fft(x, layer.kernel(length)).backward(grad)

    contenders = {str(bars): with_block_length(bars) for bars in (16, 32, 64, 128, 256) if bars <= length}
    contenders["one transform"] = by_fft
    selected = str(choose_block_bars(length, d_state))
    seconds = time_contenders(f"{d_state} states, {length} bars, batch {batch}", contenders, selected)
    assert seconds[selected] < MAX_RATIO * min(seconds.values())
