"""Cases: contenders that are made, compared with ours where they compute the same, and then timed in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.benchmarks.contest import contest, reason

Work = Callable[[], Any]
Makers = dict[str, Callable[[], Work]]


@dataclass(frozen=True)
class Case:
    """Contenders for one piece of work, ours first; those named in ``same`` must compute what ours does.

    A work is so many ``calls``. ``threads`` of torch: a bar at a time has nothing for a second one to do.
    """

    group: str
    bars: int
    makers: Makers
    same: tuple[str, ...] = ()
    calls: int = 1
    threads: int = 2


@dataclass
class Result:
    """Milliseconds or MiB of every contender of a case, their ratio to ours, and why others have none."""

    group: str
    bars: int
    mode: str
    ours: str
    unit: str = "ms"
    values: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measured(case: Case, mode: str, rounds: int, budget_s: float) -> Result:
    """The case's contenders checked against ours and timed."""
    result, works = Result(case.group, case.bars, mode, next(iter(case.makers))), {}
    expected = None
    torch.set_num_threads(case.threads)
    for name, make in case.makers.items():
        try:
            work = make()
            got = work()
            expected = got if expected is None else expected
            if name in case.same:
                check_same(got, expected)
            works[name] = work
        except Exception as error:
            result.failed[name] = reason(error)
    del expected
    timed = contest(works, rounds, budget_s, guarded=True)
    result.failed |= timed.failed
    result.values = {name: 1e3 * timed.median(name) / case.calls for name in timed.seconds}
    if result.ours in timed.seconds:
        result.ratios = {name: timed.ratio(name, result.ours) for name in timed.seconds}
    return result


def check_same(got: Any, expected: Any) -> None:
    """Raises AssertionError where a contender computes something else than ours."""
    for a, b in zip(got, expected, strict=False):
        apart = float((a.detach() - b.detach()).norm() / b.detach().norm())
        assert apart < 1e-4, f"its result is {apart:.1e} from ours"
