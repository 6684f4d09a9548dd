"""Progress of long work: a progress bar on a terminal, otherwise a log line every five seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

ReportProgress = Callable[[int, int, str], None]  # called with (units done, units in total, label)
LOG_EVERY_S = 5.0


def start_progress() -> ReportProgress:
    """A callback that reports the progress of one piece of work; any thread may call it."""
    return _start_reporter()


def start_log_lines() -> ReportProgress:
    """A callback that logs at most one line every five seconds; work that takes less than that logs none."""
    last_log_s = time.monotonic()

    def report(done: int, total: int, label: str) -> None:
        nonlocal last_log_s
        if time.monotonic() - last_log_s >= LOG_EVERY_S:
            last_log_s = time.monotonic()
            logger.info("%s: %d of %d", label, done, total)

    return report


def set_progress_starter(start: Callable[[], ReportProgress]) -> None:
    """Sets the function that starts progress: every later ``start_progress()`` returns ``start()``."""
    global _start_reporter
    _start_reporter = start


_start_reporter: Callable[[], ReportProgress] = start_log_lines
