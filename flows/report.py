"""Runs a night (the run for one as-of date) in this process and prints its report.

The report is read from the published copy, the read-only database that each finished night replaces.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.parameters import NightParameters
from flows.server import ONE_NIGHT_ENVIRONMENT, local_server
from flows.settings import load_settings
from flows.terminal import console, log_to_screen, make_table
from warehouse.connect import Warehouse
from warehouse.publish import read_published
from warehouse.tables import read_query

if TYPE_CHECKING:
    from flows.nightly import NightReport

SHOWN_SIGNALS = 10
# Column of the query → (heading, format specification). Both tables fit a terminal of 80 columns.
LEADERBOARD_COLUMNS = {
    "rank": ("rank", ">d"),
    "model": ("model", ""),
    "sharpe": ("sharpe", ".2f"),
    "sortino": ("sortino", ".2f"),
    "annual_return": ("per year", ".1%"),
    "excess_annual_return": ("over hold", "+.1%"),
    "max_drawdown": ("drawdown", ".1%"),
    "annual_turnover": ("turnover", ".1f"),
}
SIGNAL_COLUMNS = {
    "symbol": ("symbol", ""),
    "side": ("side", ""),
    "label_3": ("label", ""),
    "confidence": ("confidence", ".2f"),
    "weight": ("weight", "+.2%"),
}
STOP_COLUMN = {"stop_price": ("stop", ".6g")}


def run_night(parameters: NightParameters, warehouse: Warehouse, home: Path, screen: Console) -> bool:
    """True when every universe was published.

    Prints the steps, leaderboard and signals of each universe, and the commands to run next. ``home`` is the folder of
    the local Prefect server.
    """
    started = time.perf_counter()
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the log file has all records
    log_file = warehouse.path.with_name(f"{warehouse.path.stem}.log")
    console(stderr=True).print("Starting a local Prefect server and loading the models ...")
    with local_server(home, environment=ONE_NIGHT_ENVIRONMENT) as server:
        from flows.nightly import NightFailedError, nightly  # the import takes seconds; meanwhile the server starts

        with log_to_screen(log_file):
            server.wait_until_ready()
            try:
                reports: Sequence[NightReport] = nightly(parameters)
            except NightFailedError as error:
                reports = error.reports
    for report in reports:
        show_universe(report, warehouse, screen)
    failed = [report for report in reports if report.state != "published"]
    seconds = time.perf_counter() - started
    gigabytes = peak_memory_bytes() / 2**30
    screen.print(f"\n{seconds:.0f} s, peak memory {gigabytes:.1f} GiB")
    if len(failed) < len(reports):
        screen.print(where_to_look_next(warehouse), markup=False, soft_wrap=True)
    if failed:
        names = ", ".join(report.universe for report in failed)
        console(stderr=True).print(f"error: not published: {names}; the details are in {log_file}", soft_wrap=True)
    return not failed


def show_universe(report: NightReport, warehouse: Warehouse, screen: Console) -> None:
    """Prints the state of the night of one universe; if published, also its leaderboard, champion and signals."""
    screen.print(
        f"\n{report.universe}, night {report.night}, {report.source}: {report.state}", style="bold", markup=False
    )
    screen.print(report.message, markup=False, soft_wrap=True)
    screen.print("  ".join(f"{step} {seconds:.1f}s" for step, seconds in report.seconds.items()))
    if report.state != "published":
        return
    with read_published(warehouse) as con:
        keys = {"night": report.night, "source": report.source, "universe": report.universe}
        ranking = read_query(con, "published_leaderboard", **keys).to_pylist()
        signals = read_query(con, "published_signals", **keys).to_pylist()
        champion = read_query(con, "published_champion", **keys).to_pylist()
    sessions = max(row["sessions"] for row in ranking)
    screen.print()
    screen.print(
        make_table(f"Leaderboard: {sessions} sessions out of sample, net of costs", LEADERBOARD_COLUMNS, ranking)
    )
    for row in champion:
        screen.print(f"Champion: {row['model']}, {row['reason']}", markup=False)
    if signals:
        show_signals(signals, screen)


def show_signals(signals: list[dict], screen: Console) -> None:
    """Prints the first ``SHOWN_SIGNALS`` rows, and the number of other signals.

    ``signals`` are the rows of ``published_signals.sql``, largest absolute weight first.
    """
    session: date = signals[0]["for_session"]
    horizons = [bars for bars, _ in map_items(signals[0]["expected_return"])]
    return_columns = {f"return_{bars}": (f"{bars} bar{'s' * (bars > 1)}", "+.2%") for bars in horizons}
    rows = []
    for signal in signals[:SHOWN_SIGNALS]:
        expected_return = dict(map_items(signal["expected_return"]))
        rows.append(signal | {f"return_{bars}": expected_return.get(bars) for bars in horizons})
    title = f"Signals of {signals[0]['model']} for {session}, expected return by horizon"
    screen.print()
    screen.print(make_table(title, SIGNAL_COLUMNS | return_columns | STOP_COLUMN, rows))
    n_more = len(signals) - len(rows)
    if n_more:
        screen.print(f"… and {n_more} more in signals_next_day")


def map_items(mapping: dict | list) -> list[tuple]:
    """The (key, value) pairs of a MAP, which Arrow returns as a list of pairs and DuckDB as a dict."""
    return list(mapping.items() if isinstance(mapping, dict) else mapping)


def peak_memory_bytes() -> int:
    """Peak memory of this process, in bytes."""
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss * 1024  # Linux counts KiB


def where_to_look_next(warehouse: Warehouse) -> str:
    """Text with the commands to run next; they work in the shell and the folder of this process."""
    program = (
        "nightgraph" if shutil.which("nightgraph") else relative_path(Path(sys.executable).with_name("nightgraph"))
    )
    default_warehouse = Warehouse.from_url(load_settings().warehouse_url)
    option = "" if warehouse == default_warehouse else f" --warehouse {relative_path(warehouse.path)}"
    commands = {
        f'{program} sql "SELECT * FROM signals_next_day"{option}': "",
        f'{program} sql "SELECT * FROM leaderboard"{option}': "",
        f"{program} schema": "what every table and column means",
        f"{program} doctor": "whether everything is in order",
        f"{program} serve": "the Prefect UI: run nights by hand, or every night by itself",
        "README.md": "all the rest",
    }
    width = max(len(command) for command, purpose in commands.items() if purpose)
    lines = "".join(f"\n  {command:{width}}  {purpose}".rstrip() for command, purpose in commands.items())
    return f"Published, read-only: {relative_path(warehouse.published)}\n\nWhere to look next{lines}"


def relative_path(path: Path) -> str:
    """The path relative to the working directory when it is inside it, else unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
