"""Terminal output of the commands: step lines and progress bars on standard error, tables on standard output."""

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

from flows.progress import ReportProgress, set_progress_starter, start_log_lines

PACKAGES = ("flows", "tasks", "models", "warehouse")
SHOWN_LOGGERS = (  # their INFO lines are shown: steps, progress, waits
    *("tasks.ledger", "tasks.events", "tasks.live.event_feed", "tasks.live.stream", "tasks.live.bar_closer"),
    *("flows.progress", "warehouse.connect"),
)
NO_TERMINAL_WIDTH = 160


def make_console(stderr: bool = False) -> Console:
    """A console as wide as the terminal. Without a terminal, it is as wide as the variable COLUMNS, or 160."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console.width = NO_TERMINAL_WIDTH
    return console


class StepLines(logging.Handler):
    """Handler that prints log records of SHOWN_LOGGERS, warnings and errors, with the seconds since its start."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.started_s = time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record without its traceback; the log file has the traceback."""
        if record.levelno >= logging.WARNING or record.name in SHOWN_LOGGERS:
            colour = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}.get(record.levelno, "")
            elapsed_s = time.perf_counter() - self.started_s
            self.console.print(f"{elapsed_s:7.1f} s  {record.getMessage()}", style=colour, markup=False, soft_wrap=True)


@contextlib.contextmanager
def log_to_screen(log_path: Path) -> Iterator[None]:
    """Shows step lines and progress on standard error during the block, and writes all log records to ``log_path``.

    The file also contains tracebacks; an existing file is overwritten. Enter the block after Prefect is imported,
    because the import of Prefect replaces the logging configuration.
    """
    console = make_console(stderr=True)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log_file = logging.FileHandler(log_path, mode="w", encoding="utf-8")
    log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    step_lines = StepLines(console)
    handlers: dict[str, list[logging.Handler]] = {name: [step_lines, log_file] for name in PACKAGES}
    handlers["prefect"] = [log_file]
    with contextlib.ExitStack() as stack:
        stack.callback(log_file.close)
        for name, package_handlers in handlers.items():
            for handler in package_handlers:
                logging.getLogger(name).addHandler(handler)
                stack.callback(logging.getLogger(name).removeHandler, handler)
        for name in PACKAGES:
            logging.getLogger(name).setLevel(logging.INFO)
        if console.is_terminal:
            set_progress_starter(stack.enter_context(progress_bars(console)))
            stack.callback(set_progress_starter, start_log_lines)
        yield


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[], ReportProgress]]:
    """A function that starts a progress bar at the foot of the terminal; a bar disappears when its work is done.

    Each call returns the callback of one bar, see ``flows/progress.py``.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as display:

        def start() -> ReportProgress:
            task_id = display.add_task("", total=None, visible=False)

            def report(done: int, total: int, label: str) -> None:
                display.update(task_id, description=label, completed=done, total=total, visible=done < total)

            return report

        yield start


def silence_warnings() -> None:
    """Hides Python warnings, unless ``python -W`` or PYTHONWARNINGS sets a filter."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def make_table(title: str, columns: dict[str, tuple[str, str]], rows: list[dict]) -> Table:
    """A table of ``rows``; ``columns`` maps a key of the rows to (heading, format specification; "" for text)."""
    grid = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading, spec in columns.values():
        grid.add_column(heading, justify="right" if spec else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(format_cell(row[key], spec) for key, (_, spec) in columns.items()))
    return grid


def format_cell(value: object, spec: str = "") -> str:
    """The text of a table cell: empty for None; floats with six significant digits unless ``spec`` says otherwise.

    A datetime at midnight is shown as its date.
    """
    if value is None:
        return ""
    if spec:
        return format(value, spec)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S" if value.time() != value.min.time() else "%Y-%m-%d")
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.isoformat() if isinstance(value, date) else str(value)
