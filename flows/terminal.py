"""Output of the command line: step lines and progress bars on standard error, tables on standard output."""

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

from flows.progress import Report, log_lines, set_progress

ROOMS = ("flows", "tasks", "models", "warehouse")
SHOWN_LOGGERS = (  # steps, progress, waits
    *("tasks.ledger", "tasks.events", "tasks.live.event_feed", "tasks.live.stream", "tasks.live.bar_closer"),
    *("flows.progress", "warehouse.connect"),
)
NO_TERMINAL_WIDTH = 160


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; without a terminal, as wide as COLUMNS or 160."""
    screen = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not screen.is_terminal and "COLUMNS" not in screen._environ:
        screen.width = NO_TERMINAL_WIDTH
    return screen


class StepLines(logging.Handler):
    """Prints the steps, waits and warnings of our packages as they happen, with the seconds since the start."""

    def __init__(self, screen: Console) -> None:
        super().__init__(logging.INFO)
        self.screen = screen
        self.started = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record without its traceback, which goes to the log file."""
        if record.levelno >= logging.WARNING or record.name in SHOWN_LOGGERS:
            colour = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}.get(record.levelno, "")
            elapsed = time.perf_counter() - self.started
            self.screen.print(f"{elapsed:7.1f} s  {record.getMessage()}", style=colour, markup=False, soft_wrap=True)


@contextlib.contextmanager
def log_to_screen(log: Path) -> Iterator[None]:
    """Shows step lines and progress on stderr for the block, and writes all records with tracebacks to ``log``.

    Enter it after Prefect is imported: the import configures logging anew.
    """
    screen = console(stderr=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log_file = logging.FileHandler(log, mode="w", encoding="utf-8")
    log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    step_lines = StepLines(screen)
    handlers: dict[str, list[logging.Handler]] = {name: [step_lines, log_file] for name in ROOMS}
    handlers["prefect"] = [log_file]
    with contextlib.ExitStack() as stack:
        stack.callback(log_file.close)
        for name, handlers_of_room in handlers.items():
            for handler in handlers_of_room:
                logging.getLogger(name).addHandler(handler)
                stack.callback(logging.getLogger(name).removeHandler, handler)
        for name in ROOMS:
            logging.getLogger(name).setLevel(logging.INFO)
        if screen.is_terminal:
            set_progress(stack.enter_context(progress_bars(screen)))
            stack.callback(set_progress, log_lines)
        yield


@contextlib.contextmanager
def progress_bars(screen: Console) -> Iterator[Callable[[], Report]]:
    """A factory of progress bars at the foot of the screen; a bar disappears when its work is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as display:

        def start() -> Report:
            bar = display.add_task("", total=None, visible=False)

            def report(done: int, total: int, label: str) -> None:
                display.update(bar, description=label, completed=done, total=total, visible=done < total)

            return report

        yield start


def silence_warnings() -> None:
    """Hides the warnings of libraries, unless ``python -W`` sets a filter."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def table(title: str, columns: dict[str, tuple[str, str]], rows: list[dict]) -> Table:
    """A table of ``rows``; ``columns`` maps a row's key to its heading and format specification ("" for text)."""
    output = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading, spec in columns.values():
        output.add_column(heading, justify="right" if spec else "left", no_wrap=True)
    for row in rows:
        output.add_row(*(cell(row[key], spec) for key, (_, spec) in columns.items()))
    return output


def cell(value: object, spec: str = "") -> str:
    """One value as the text of a table's cell: empty for NULL; a time at midnight is shown as its date."""
    if value is None:
        return ""
    if spec:
        return format(value, spec)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S" if value.time() != value.min.time() else "%Y-%m-%d")
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.isoformat() if isinstance(value, date) else str(value)
