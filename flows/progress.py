"""How far long work has got: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

Report = Callable[[int, int, str], None]
EVERY_S = 5.0


def progress() -> Report:
    """A callback (done, total, label) for one piece of long work; any thread may call it."""
    return _start()


def lines() -> Report:
    """Logs a line at most every five seconds: short work stays silent."""
    last = time.monotonic()

    def report(done: int, total: int, label: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            logger.info("%s: %d of %d", label, done, total)

    return report


def show_with(start: Callable[[], Report]) -> None:
    """From here on every new piece of work reports to its own ``start()``."""
    global _start
    _start = start


_start: Callable[[], Report] = lines
