"""Speed and memory of every layer, compared with the packages that a user could install instead.

``pytest tests/benchmarks/bench_layers.py -m benchmark -s``. Times vary, so the assertions are loose; the aims are in
sources.py. ``make bench-models`` makes the whole report: all cases in both allocator modes, charts, and the models of a
night, the run for one as-of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from tests.benchmarks import layers_table
from tests.benchmarks.cases import Case, Result, measure
from tests.benchmarks.markdown import summary_line
from tests.benchmarks.networks_table import networks

pytestmark = pytest.mark.benchmark
BARS = (256, 1024)
ROUNDS = 5
BUDGET_S = 8.0
# by group of cases: the peer, and the smallest ratio of its time to ours, with the default allocator
MIN_RATIOS = {
    "selective scan, forward and backward": ("mambapy", 4),
    "selective scan, forward": ("mambapy", 4),
    "Mamba block, forward and backward": ("mambapy", 2),
    "layer, forward and backward": ("textbook S4D", 1),
    "evaluation, 4 layers, batch 1": ("textbook S4D", 1),
    "one step, one layer, one sample": ("s5-pytorch", 2),
    "network on demand, bar by bar, 8 assets": ("always on", 1.5),
    "network with pooled bars, bar by bar, 8 assets": ("pool_bars 1", 1.2),
}


def cases() -> Iterator[Case]:
    """The cases of all groups of MIN_RATIOS."""
    scans = (layers_table.scans(BARS, backward) for backward in (True, False))
    yield from chain(*scans, layers_table.blocks(BARS), layers_table.layers(BARS))
    yield from chain(layers_table.evaluations(BARS), layers_table.steps(), networks())


def ratio_to_ours(result: Result, peer: str) -> float:
    """The peer's figure divided by ours. Skips the test if the peer is not installed; fails if the peer failed."""
    print(f"\n{summary_line(vars(result))}", end="")
    assert result.ours in result.values, result.failed
    if peer not in result.ratios:
        reason = result.failed[peer]
        assert "ModuleNotFoundError" in reason, reason
        pytest.skip(f"{peer} is not installed: pip install '.[bench]'")
    return result.ratios[peer]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.group}, {case.bars}")
def test_our_layers_are_faster_than_their_peers(case: Case) -> None:
    peer, min_ratio = MIN_RATIOS[case.group]
    assert ratio_to_ours(measure(case, "default", ROUNDS, BUDGET_S), peer) > min_ratio


def test_our_layers_take_less_memory_than_their_peers() -> None:
    results = list(layers_table.memories(quick=True))
    assert {r.group for r in results} == {"memory of a Mamba block", "memory of a layer"}
    for result in results:
        peer = "mambapy" if "Mamba" in result.group else "textbook S4D"
        assert ratio_to_ours(result, peer) > 1.5
