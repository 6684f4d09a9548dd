"""Times and peak memory of our layers, and of the packages that a user could install instead.

``python -m tests.benchmarks.layers_table --mode keep`` prints one JSON object per case, see cases.py. The first
contender of a case is ours. In mode "keep" the process keeps freed memory (models/training/allocator.py), which makes
the peers faster, so it is the harder comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.dss import DSS
from models.layers.mamba import Mamba
from models.layers.mamba2 import Mamba2
from models.layers.s4 import S4
from models.layers.s4d import S4D
from models.layers.s5 import S5
from models.layers.scan import selective_scan, selective_scan_reference
from models.training.allocator import tune_allocator
from tests.benchmarks import peers
from tests.benchmarks.cases import Case, Result, Work, measure
from tests.benchmarks.contest import short_error
from tests.benchmarks.memory import peak_mib
from tests.benchmarks.networks_table import networks
from tests.benchmarks.peers import Mixed, TextbookS4D, Transformer
from tests.benchmarks.sources import BLOCK_MEMORY, LAYER_MEMORY

D = 64  # channels
N = 64  # states of a channel
BATCH = 16
INNER = 128  # channels inside a Mamba block
SCAN_N = 16  # states of a channel of Mamba
MAX_REFERENCE_BARS = 256  # the longest sequence of the plain loop
MAX_PEER_BARS = 4096  # the longest sequence of slow peers, which take seconds
STEPS = 200  # steps per run of the cases with one bar at a time


def scans(lengths: Sequence[int], backward: bool) -> Iterator[Case]:
    """The selective scan alone, batch 16, 128 channels, 16 states."""
    for bars in lengths:

        def maker(scan: Callable[..., Tensor], bars: int = bars) -> Callable[[], Work]:
            def make() -> Work:
                rng = torch.Generator().manual_seed(0)
                u, z = (torch.randn(BATCH, bars, INNER, generator=rng) for _ in range(2))
                delta = torch.rand(BATCH, bars, INNER, generator=rng) * 0.1
                A = -torch.arange(1.0, SCAN_N + 1).repeat(INNER, 1)
                B, C = (torch.randn(BATCH, bars, SCAN_N, generator=rng) for _ in range(2))
                return gradients(scan, [u, delta, A, B, C, torch.ones(INNER)], z, backward)

            return make

        makers = {"ours": maker(channels_last(selective_scan)), "mambapy": maker(peers.mambapy_scan)}
        if bars <= MAX_REFERENCE_BARS:
            makers["loop"] = maker(channels_last(selective_scan_reference))
        yield Case(f"selective scan, forward{' and backward' * backward}", bars, makers, ("mambapy", "loop"))


def channels_last(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Our scan, which needs the bars in the last axis, for arrays with the channels in the last axis."""

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return scan(*(v.mT for v in (u, delta)), A, B.mT, C.mT, D).mT

    return run


def gradients(f: Callable[..., Any], inputs: list[Tensor], grad: Tensor, backward: bool = True) -> Work:
    """A function that runs ``f`` on ``inputs``; with ``backward`` it also computes all gradients.

    These are the gradients of the inputs and of the weights of ``f``; ``grad`` is the gradient of the output. The
    function returns the output, and with ``backward`` also the gradients of the inputs.
    """
    weights = [p for p in f.parameters() if p.requires_grad] if isinstance(f, nn.Module) else []
    variables = [*(v.requires_grad_(backward) for v in inputs), *weights]

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            y = f(*inputs)
            y = y[0] if isinstance(y, tuple) else y  # a layer may also return its state
        return [y, *torch.autograd.grad(y, variables, grad)[: len(inputs)]] if backward else [y]

    return run


def blocks(lengths: Sequence[int]) -> Iterator[Case]:
    """The whole Mamba block (MAM-01), mambapy's block with the same weights (MAM-11, MAM-12), and our Mamba-2 block."""
    for bars in lengths:
        makers = {"ours": training(lambda: Mamba(D, SCAN_N), bars)}
        makers["mambapy"] = training(lambda: peers.mambapy_block(Mamba(D, SCAN_N)), bars)
        makers["ours, Mamba2"] = training(lambda: Mamba2(D, N), bars)
        yield Case("Mamba block, forward and backward", bars, makers, ("mambapy",))


def layers(lengths: Sequence[int]) -> Iterator[Case]:
    """One layer and the mixing of its channels (S4-02, HYB-03). An LSTM needs none: it mixes its channels itself."""
    for bars in lengths:
        ours = {"ours, S4D": S4D, "ours, S4": S4, "ours, DSS": DSS, "ours, S5": S5}
        makers = {name: training(lambda layer=layer: Mixed(layer(D, N), D), bars) for name, layer in ours.items()}
        makers["LSTM"] = training(lambda: nn.LSTM(D, D, batch_first=True), bars)
        makers["s5-pytorch"] = training(lambda: Mixed(peers.s5_layer(D, N), D), bars)
        makers["textbook S4D"] = training(lambda: textbook(1), bars)
        yield Case("layer, forward and backward", bars, makers)


def textbook(n_layers: int) -> nn.Module:
    """``n_layers`` textbook S4D layers, each with the mixing of its channels."""
    return nn.Sequential(*(Mixed(TextbookS4D(S4D(D, N)), D) for _ in range(n_layers)))


def training(make: Callable[[], nn.Module], bars: int) -> Callable[[], Work]:
    """A function that makes the work of a forward and backward pass of a new module."""

    def make_work() -> Work:
        torch.manual_seed(0)
        module = make()
        rng = torch.Generator().manual_seed(0)
        x, grad = (torch.randn(BATCH, bars, D, generator=rng) for _ in range(2))
        return gradients(module, [x], grad)

    return make_work


def evaluations(lengths: Sequence[int]) -> Iterator[Case]:
    """The forecast of four layers for one sequence, without gradients (MAM-01: also of a Transformer)."""
    for bars in lengths:

        def maker(make: Callable[[], nn.Module], bars: int = bars) -> Callable[[], Work]:
            def make_work() -> Work:
                torch.manual_seed(0)
                module = make().eval()
                x = torch.randn(1, bars, D)

                def run() -> Any:
                    with torch.inference_mode():
                        return module(x)

                return run

            return make_work

        ours = {"ours, S4D": S4D, "ours, S4": S4, "ours, DSS": DSS, "ours, S5": S5}
        makers = {
            name: maker(lambda layer=layer: nn.Sequential(*(Mixed(layer(D, N), D) for _ in range(4))))
            for name, layer in ours.items()
        }
        makers["LSTM"] = maker(lambda: nn.LSTM(D, D, num_layers=4, batch_first=True))
        makers["s5-pytorch"] = maker(lambda: nn.Sequential(*(Mixed(peers.s5_layer(D, N), D) for _ in range(4))))
        if bars <= MAX_PEER_BARS:
            makers["textbook S4D"] = maker(lambda: textbook(4))
            makers["Transformer"] = maker(lambda: Transformer(D, 4))
        yield Case("evaluation, 4 layers, batch 1", bars, makers, ("textbook S4D",))


def steps() -> Iterator[Case]:
    """One step of one layer: one bar of one sample (MAM-04)."""

    def ours(make: Callable[[], Any]) -> Callable[[], Work]:
        def make_work() -> Work:
            layer = make().eval()
            return take_steps(lambda x, state: layer.step(x, state)[1], torch.randn(1, D), layer.initial_state(1))

        return make_work

    def lstm_cell() -> Work:
        cell = nn.LSTMCell(D, D).eval()
        return take_steps(cell, torch.randn(1, D), (torch.zeros(1, D), torch.zeros(1, D)))

    def s5() -> Work:
        layer = peers.s5_layer(D, N).eval().seq
        state = torch.zeros(N, dtype=torch.complex64)
        return take_steps(lambda x, state: layer.forward_rnn(x, state)[1], torch.randn(D), state)

    def mambapy() -> Work:
        block = peers.mambapy_block(Mamba(D, SCAN_N)).eval()
        state = (None, torch.zeros(1, INNER, 3))
        return take_steps(lambda x, state: block.step(x, state)[1], torch.randn(1, D), state)

    makers = {f"ours, {kind.__name__}": ours(lambda kind=kind: kind(D, N)) for kind in (S4D, S4, DSS, S5, Mamba2)}
    makers["ours, Mamba"] = ours(lambda: Mamba(D, SCAN_N))
    makers |= {"LSTMCell": lstm_cell, "s5-pytorch": s5, "mambapy": mambapy}
    yield Case("one step, one layer, one sample", 1, makers, calls=STEPS, threads=1)


def take_steps(step: Callable[[Any, Any], Any], x: Tensor, state: Any) -> Work:
    """A function that takes STEPS steps with the input ``x``, starting from ``state``."""

    def run() -> None:
        current = state
        with torch.no_grad():
            for _ in range(STEPS):
                current = step(x, current)

    return run


def all_cases(quick: bool) -> Iterator[Case]:
    """All timed cases; with ``quick`` those of short sequences only."""
    lengths = (64, 256) if quick else (256, 1024, 4096)
    yield from scans(lengths, backward=True)
    yield from scans(lengths, backward=False)
    yield from blocks(lengths)
    yield from layers(lengths)
    yield from evaluations(lengths if quick else (*lengths, 16384))
    yield from steps()
    yield from networks(100 if quick else 500)


def memories(quick: bool) -> Iterator[Result]:
    """Peak memory of one forward and backward pass (MAM-03, MAM-08, TRAP-02), each contender in a new process."""
    cases = [
        (BLOCK_MEMORY, 1024, BATCH),
        (BLOCK_MEMORY, 4096, BATCH),
        (LAYER_MEMORY, 1024, BATCH),
        (LAYER_MEMORY, 4096, BATCH),
        (LAYER_MEMORY, 16384, 2),
    ]
    if quick:
        cases = [(BLOCK_MEMORY, 256, 2), (LAYER_MEMORY, 256, 2)]
    for group, bars, batch in cases:
        is_block = group == BLOCK_MEMORY
        names = ["ours, Mamba", "mambapy"] if is_block else ["ours, S4D", "textbook S4D"]
        if not quick:
            names += ["ours, Mamba2"] if is_block else ["ours, S4", "ours, S5", "LSTM", "s5-pytorch"]
        if not is_block and not quick and bars <= MAX_PEER_BARS:
            names.append("Transformer")
        result = Result(group, bars, "default", names[0], "MiB")
        for name in names:
            try:
                result.values[name] = peak_mib(name, bars, batch)
            except Exception as error:
                result.failed[name] = short_error(error)
        ours = result.values.get(result.ours)
        if ours:
            result.ratios = {name: value / ours for name, value in result.values.items()}
        yield result


def results(mode: str, quick: bool) -> Iterator[Result]:
    """The results of all cases.

    Memory is measured in mode "default" only, because the measured processes use that mode.
    """
    rounds = 2 if quick else 7
    budget_s = 1.0 if quick else 10.0
    if mode == "default":
        yield from memories(quick)
    for case in all_cases(quick):
        yield measure(case, mode, rounds, budget_s)


def main() -> None:
    """Prints one JSON object per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("keep", "default"), default="keep")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.mode == "keep" and not tune_allocator():
        sys.exit("mode keep needs glibc, the GNU C library")
    for result in results(arguments.mode, arguments.quick):
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
