"""What the command line prints: step lines and progress bars on standard error, tables on standard output."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flows.progress import Report, lines, show_with

ROOMS = ("flows", "tasks", "models", "warehouse")
TOLD = (  # steps, progress, waits
    *("tasks.ledger", "tasks.events", "tasks.live.event_feed", "tasks.live.stream", "tasks.live.bar_closer"),
    *("flows.progress", "warehouse.connect"),
)
NO_TERMINAL_WIDTH = 160


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; where there is none, as wide as COLUMNS says or 160."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal and "COLUMNS" not in found._environ:
        found.width = NO_TERMINAL_WIDTH
    return found


class StepLines(logging.Handler):
    """Prints the rooms' steps, waits and warnings as they happen, each after the seconds since the start."""

    def __init__(self, screen: Console) -> None:
        super().__init__(logging.INFO)
        self.screen, self.started = screen, time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record; without its traceback, which is for the log file."""
        if record.levelno >= logging.WARNING or record.name in TOLD:
            colour = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}.get(record.levelno, "")
            elapsed = time.perf_counter() - self.started
            self.screen.print(f"{elapsed:7.1f} s  {record.getMessage()}", style=colour, markup=False, soft_wrap=True)


@contextlib.contextmanager
def log_to_screen(log: Path) -> Iterator[None]:
    """Step lines and progress on stderr for the block, and everything, tracebacks too, in the file ``log``.

    Enter it after Prefect is imported: its import sets up logging anew.
    """
    screen = console(stderr=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    everything = logging.FileHandler(log, mode="w", encoding="utf-8")
    everything.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    lines_of = StepLines(screen)
    handlers = {name: [lines_of, everything] for name in ROOMS} | {"prefect": [everything]}
    with contextlib.ExitStack() as stack:
        stack.callback(everything.close)
        for name, mine in handlers.items():
            for handler in mine:
                logging.getLogger(name).addHandler(handler)
                stack.callback(logging.getLogger(name).removeHandler, handler)
        for name in ROOMS:
            logging.getLogger(name).setLevel(logging.INFO)
        if screen.is_terminal:
            show_with(stack.enter_context(bars(screen)))
            stack.callback(show_with, lines)
        yield


@contextlib.contextmanager
def bars(screen: Console) -> Iterator[Callable[[], Report]]:
    """A factory of progress bars at the foot of the screen; a bar goes away when its work is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as shown:

        def start() -> Report:
            bar = shown.add_task("", total=None, visible=False)

            def report(done: int, total: int, label: str) -> None:
                shown.update(bar, description=label, completed=done, total=total, visible=done < total)

            return report

        yield start


def silence_warnings() -> None:
    """Keeps other libraries' warnings off the screen; ``python -W`` brings them back."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def table(title: str, columns: dict[str, tuple[str, str]], rows: list[dict]) -> Table:
    """A table of ``rows``; ``columns`` maps a row's key to its heading and format specification ("" for text)."""
    drawn = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading, spec in columns.values():
        drawn.add_column(heading, justify="right" if spec else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(cell(row[key], spec) for key, (_, spec) in columns.items()))
    return drawn


def cell(value: object, spec: str = "") -> str:
    """One value as a table shows it: nothing for NULL, times without a needless clock."""
    if value is None:
        return ""
    if spec:
        return format(value, spec)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S" if value.time() != value.min.time() else "%Y-%m-%d")
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.isoformat() if isinstance(value, date) else str(value)
