"""Contenders for the same work, timed in turn within each round, so that what else the machine does meets them all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Contest:
    """Seconds of every contender round by round, and why a contender fell out."""

    seconds: dict[str, list[float]]
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Seconds of the middle round."""
        return median(self.seconds[name])

    def best(self, name: str) -> float:
        """Seconds of the fastest round."""
        return min(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """How many times as long as ``to`` it took: the median of the ratios round by round."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))

    def report(self, case: str, to: str | None = None) -> None:
        """Prints every contender's median, and its ratio to ``to``."""
        for name in self.seconds:
            ratio = f", {self.ratio(name, to):.2g} times {to}" if to in self.seconds and name != to else ""
            print(f"\n{case}: {name}: {short(1e3 * self.median(name))} ms{ratio}", end="")
        for name, reason in self.failed.items():
            print(f"\n{case}: {name}: - ({reason})", end="")


def contest(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 5, budget_s: float = math.inf, guarded: bool = False
) -> Contest:
    """Every contender once in each of ``rounds``, fewer when ``budget_s`` is spent, but three at least.

    ``guarded``: a contender that raises falls out with its reason, and the others go on.
    """
    started, result = time.perf_counter(), Contest({name: [] for name in contenders})
    for turn in range(rounds):
        begun = time.perf_counter()
        for name in list(result.seconds):
            start = time.perf_counter()
            try:
                contenders[name]()
            except Exception as error:
                if not guarded:
                    raise
                result.failed[name] = reason(error)
                del result.seconds[name]
            else:
                result.seconds[name].append(time.perf_counter() - start)
        now = time.perf_counter()
        if turn + 1 >= 3 and now - started + (now - begun) > budget_s:
            break
    return result


def reason(error: BaseException) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def short(value: float) -> str:
    """Three digits, and more only before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
