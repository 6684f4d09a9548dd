"""Cases: contenders for the same work, compared with ours where they compute the same, then timed in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.benchmarks.contest import contest, short_error

Work = Callable[[], Any]
Makers = dict[str, Callable[[], Work]]


@dataclass(frozen=True)
class Case:
    """Contenders for one piece of work, ours first. Those named in ``same`` must compute the same result as ours.

    ``makers`` make each contender's function. One run of it is ``calls`` calls, and times are per call. ``threads`` is
    the number of torch threads: work on one bar at a time cannot use a second one.
    """

    group: str
    bars: int
    makers: Makers
    same: tuple[str, ...] = ()
    calls: int = 1
    threads: int = 2


@dataclass
class Result:
    """Milliseconds or MiB of every contender of a case, their ratio to ours, and the error of those that failed."""

    group: str
    bars: int
    mode: str
    ours: str
    unit: str = "ms"
    values: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(case: Case, mode: str, rounds: int, budget_s: float) -> Result:
    """The times of the case's contenders, after those of ``case.same`` were compared with ours."""
    result = Result(case.group, case.bars, mode, next(iter(case.makers)))
    works = {}
    expected = None
    torch.set_num_threads(case.threads)
    for name, make in case.makers.items():
        try:
            work = make()
            output = work()
            expected = output if expected is None else expected
            if name in case.same:
                check_same(output, expected)
            works[name] = work
        except Exception as error:
            result.failed[name] = short_error(error)
    del expected
    times = contest(works, rounds, budget_s, catch_errors=True)
    result.failed |= times.failed
    result.values = {name: 1e3 * times.median(name) / case.calls for name in times.seconds}
    if result.ours in times.seconds:
        result.ratios = {name: times.ratio(name, result.ours) for name in times.seconds}
    return result


def check_same(output: Any, expected: Any) -> None:
    """Raises AssertionError if a contender's output differs from ours."""
    for a, b in zip(output, expected, strict=False):
        difference = float((a.detach() - b.detach()).norm() / b.detach().norm())
        assert difference < 1e-4, f"its result is {difference:.1e} from ours"
