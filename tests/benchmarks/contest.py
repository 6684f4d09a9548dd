"""Contenders for the same work, timed in turn within each round, so that other load affects all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Contest:
    """Seconds of every contender round by round, and the errors of the contenders that failed."""

    seconds: dict[str, list[float]]
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median seconds of all rounds."""
        return median(self.seconds[name])

    def best(self, name: str) -> float:
        """The seconds of the fastest round."""
        return min(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """The time of ``name`` divided by that of ``reference``: the median of the ratios of each round."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[reference], strict=True))

    def report(self, case: str, reference: str | None = None) -> None:
        """Prints every contender's median, and its ratio to ``reference``."""
        for name in self.seconds:
            ratio = ""
            if reference is not None and reference in self.seconds and name != reference:
                ratio = f", {self.ratio(name, reference):.2g} times {reference}"
            print(f"\n{case}: {name}: {three_digits(1e3 * self.median(name))} ms{ratio}", end="")
        for name, error in self.failed.items():
            print(f"\n{case}: {name}: - ({error})", end="")


def contest(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    budget_s: float = math.inf,
    catch_errors: bool = False,
) -> Contest:
    """The times of all contenders, each run once in each of ``rounds``; no more rounds once ``budget_s`` would be
    exceeded, but at least three.

    ``catch_errors``: a contender that raises is left out from then on, and its error is recorded in ``failed``.
    """
    started = time.perf_counter()
    result = Contest({name: [] for name in contenders})
    for turn in range(rounds):
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
        if turn + 1 >= 3 and now - started + (now - round_started) > budget_s:
            break
    return result


def short_error(error: BaseException) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def three_digits(value: float) -> str:
    """A number with three significant digits; with all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
