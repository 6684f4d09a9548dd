"""Cases of the report on layers: contenders for the same work.

A contender that computes the same as ours is compared with ours first; then all are timed, see contest.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.benchmarks.contest import contest, short_error

Work = Callable[[], Any]  # what is timed
Makers = dict[str, Callable[[], Work]]  # functions that make each contender's work, by the contender's name


@dataclass(frozen=True)
class Case:
    """Contenders for one piece of work on sequences of ``bars`` bars, ours first; the cases of a ``group`` are a table.

    The contenders named in ``same`` must compute the same result as ours. One run of a work is ``calls`` calls; the
    figures are per call. ``threads`` is the number of torch threads; work on one bar at a time cannot use a second one.
    """

    group: str
    bars: int
    makers: Makers
    same: tuple[str, ...] = ()
    calls: int = 1
    threads: int = 2


@dataclass
class Result:
    """The figures of a case, in ``unit``, by contender; their ratios to ours; and the errors of failed contenders.

    ``ours`` is the name of our contender. ``mode`` is that of the allocator, see models_table.py.
    """

    group: str
    bars: int
    mode: str
    ours: str
    unit: str = "ms"
    values: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(case: Case, mode: str, rounds: int, budget_s: float) -> Result:
    """Compares the contenders of ``case.same`` with ours, then times all contenders. Returns median milliseconds.

    A contender that raises, or whose result differs from ours, is recorded in ``failed``.
    """
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
    """Raises AssertionError if a tensor of the output differs from ours by a relative norm of 1e-4 or more."""
    for tensor, expected_tensor in zip(output, expected, strict=False):
        difference = (tensor.detach() - expected_tensor.detach()).norm()
        relative = float(difference / expected_tensor.detach().norm())
        assert relative < 1e-4, f"its result differs from ours by {relative:.1e}"
