"""Every layer against what a user could install instead. ``pytest tests/benchmarks -m benchmark -s``; the whole table,
both allocator modes, charts and the models of a night: ``make bench-models``.

The assertions are loose, as a clock is; what is aimed for stands in sources.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from tests.benchmarks import layers_table
from tests.benchmarks.cases import Case, Result, measured
from tests.benchmarks.markdown import in_short
from tests.benchmarks.networks_table import networks

pytestmark = pytest.mark.benchmark
BARS = (256, 1024)
ROUNDS, BUDGET_S = 5, 8.0
# what must not be slower than ours, by group; measured with the allocator as it is
FASTER = {
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
    timed = (layers_table.scans(BARS, backward) for backward in (True, False))
    yield from chain(*timed, *(kind(BARS) for kind in (layers_table.blocks, layers_table.layers)))
    yield from chain(layers_table.evaluations(BARS), layers_table.steps(), networks())


def lead(result: Result, peer: str) -> float:
    """How many times as long as ours the peer needs; skips where the peer is not installed, fails where it differs."""
    print(f"\n{in_short(vars(result))}", end="")
    assert result.ours in result.values, result.failed
    if peer not in result.ratios:
        why = result.failed[peer]
        assert "ModuleNotFoundError" in why, why
        pytest.skip(f"{peer} is not installed: pip install '.[bench]'")
    return result.ratios[peer]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: f"{case.group}, {case.bars}")
def test_ours_is_faster(case: Case) -> None:
    peer, times = FASTER[case.group]
    assert lead(measured(case, "default", ROUNDS, BUDGET_S), peer) > times


def test_a_pass_takes_less_memory() -> None:
    results = list(layers_table.memories(quick=True))
    assert {r.group for r in results} == {"memory of a Mamba block", "memory of a layer"}
    for result in results:
        assert lead(result, "mambapy" if "Mamba" in result.group else "textbook S4D") > 1.5
