"""Peak memory of a forward and backward pass, measured in a new process.

``python -m tests.benchmarks.memory NAME BARS BATCH`` prints the MiB of a contender: the peak during the pass less the
memory before it. A short pass runs first, so that no kernel is compiled or loaded in the measured pass. Linux only.
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

D = 64  # channels
N = 64  # states of a channel
SCAN_N = 16  # states of a channel of Mamba
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
    """The measured process failed; the message is the last line of its standard error."""


def peak_mib(name: str, bars: int, batch: int) -> float:
    """Peak memory in MiB of one pass of a contender of CONTENDERS. Raises PeakError if its process fails."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", name, str(bars), str(batch)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        raise PeakError(lines[-1] if lines else f"exit code {process.returncode}")
    return float(process.stdout)


def memory_kib(field: str) -> int:
    """A memory field of /proc/self/status, in KiB: VmRSS is the memory in use, VmHWM the peak since the last reset."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0])


def run_pass(module: nn.Module, x: torch.Tensor) -> None:
    """Runs a forward and a backward pass."""
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y  # a layer may also return its state
    y.backward(torch.ones(()).expand_as(y))


def main(name: str, bars: int, batch: int) -> None:
    """Prints the peak memory in MiB."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = CONTENDERS[name]()
    run_pass(module, torch.randn(batch, 64, D, requires_grad=True))
    x = torch.randn(batch, bars, D, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_kib("VmRSS")
    run_pass(module, x)
    print((memory_kib("VmHWM") - before) / 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
