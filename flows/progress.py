"""Progress of long work: a bar on a terminal, elsewhere a log line every few seconds."""

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


def log_lines() -> Report:
    """A callback that logs a line at most every five seconds; short work logs none."""
    last = time.monotonic()

    def report(done: int, total: int, label: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            logger.info("%s: %d of %d", label, done, total)

    return report


def set_progress(start: Callable[[], Report]) -> None:
    """Makes ``progress`` return ``start()`` from here on."""
    global _start
    _start = start


_start: Callable[[], Report] = log_lines
