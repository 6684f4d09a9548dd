"""Timing of contenders for the same work.

A contender is a function. In each round all contenders run once, one after the other, so that other load on the
machine affects all of them alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Contest:
    """The results of a contest: by contender its seconds in each round, or the error with which it failed."""

    seconds: dict[str, list[float]]
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median of the contender's seconds over all rounds."""
        return median(self.seconds[name])

    def best(self, name: str) -> float:
        """The contender's seconds in its fastest round."""
        return min(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """The seconds of ``name`` divided by the seconds of ``reference``: the median of the rounds' ratios."""
        pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
        return median(seconds / reference_seconds for seconds, reference_seconds in pairs)

    def report(self, case: str, reference: str | None = None) -> None:
        """Prints every contender's median milliseconds, its ratio to ``reference``, and the errors."""
        for name in self.seconds:
            ratio = ""
            if reference is not None and reference in self.seconds and name != reference:
                ratio = f", {self.ratio(name, reference):.2g} times {reference}"
            print(f"\n{case}: {name}: {three_digits(1e3 * self.median(name))} ms{ratio}", end="")
        for name, error in self.failed.items():
            print(f"\n{case}: {name}: - ({error})", end="")


MIN_ROUNDS = 3  # these always run, whatever the budget


def contest(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    budget_s: float = math.inf,
    catch_errors: bool = False,
) -> Contest:
    """The times of all contenders in ``rounds`` rounds.

    After MIN_ROUNDS, no round begins that would probably exceed ``budget_s`` seconds. With ``catch_errors``, a
    contender that raises is left out of all later rounds and of ``seconds``, and its error is recorded in ``failed``.
    """
    started = time.perf_counter()
    result = Contest({name: [] for name in contenders})
    for n_before in range(rounds):
        round_started = time.perf_counter()
        for name in list(result.seconds):
            start = time.perf_counter()
            try:
                contenders[name]()
            except Exception as error:
                if not catch_errors:
                    raise
                result.failed[name] = short_error(error)
                del result.seconds[name]
            else:
                result.seconds[name].append(time.perf_counter() - start)
        now = time.perf_counter()
        if n_before + 1 >= MIN_ROUNDS and now - started + (now - round_started) > budget_s:
            break
    return result


def short_error(error: BaseException) -> str:
    """The type and message of an error in one line of at most 160 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def three_digits(value: float) -> str:
    """A number with three significant digits, and never fewer than all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
