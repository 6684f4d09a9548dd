"""Peak memory of a forward and backward pass, in a fresh process each: ``python -m tests.benchmarks.memory NAME L B``.

The figure is the most the process held during the pass above what it held before it; a short pass goes first, so that
no kernel is compiled or loaded in the one that is measured. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models.layers.mamba import Mamba
from models.layers.mamba2 import Mamba2
from models.layers.s4 import S4
from models.layers.s4d import S4D
from models.layers.s5 import S5
from tests.benchmarks import peers
from tests.benchmarks.peers import Mixed, TextbookS4D, Transformer

D, N, SCAN_N = 64, 64, 16
CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    "ours, S4D": lambda: Mixed(S4D(D, N), D),
    "ours, S4": lambda: Mixed(S4(D, N), D),
    "ours, S5": lambda: Mixed(S5(D, N), D),
    "ours, Mamba": lambda: Mamba(D, SCAN_N),
    "ours, Mamba2": lambda: Mamba2(D, N),
    "textbook S4D": lambda: Mixed(TextbookS4D(S4D(D, N)), D),
    "s5-pytorch": lambda: Mixed(peers.s5_layer(D, N), D),
    "LSTM": lambda: nn.LSTM(D, D, batch_first=True),
    "Transformer": lambda: Transformer(D, 1),
    "mambapy": lambda: peers.mambapy_block(Mamba(D, SCAN_N)),
}


class PeakError(RuntimeError):
    """The process that was to be measured ended early."""


def peak(name: str, bars: int, batch: int) -> float:
    """MiB that one pass of the contender took at its peak. Raises PeakError."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", name, str(bars), str(batch)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if ran.returncode:
        raise PeakError((ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1])
    return float(ran.stdout)


def held(name: str) -> int:
    """KiB of a field of this process's status: VmRSS now, VmHWM at the most."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0])


def one_pass(module: nn.Module, x: torch.Tensor) -> None:
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(torch.ones(()).expand_as(y))


def main(name: str, bars: int, batch: int) -> None:
    """Prints the peak."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = CONTENDERS[name]()
    one_pass(module, torch.randn(batch, 64, D, requires_grad=True))
    x = torch.randn(batch, bars, D, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = held("VmRSS")
    one_pass(module, x)
    print((held("VmHWM") - before) / 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
