"""Runs a night in this process and prints its report."""

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
from flows.server import ONE_NIGHT, local_server
from flows.settings import load_settings
from flows.terminal import console, log_to_screen, table
from warehouse.connect import Warehouse
from warehouse.publish import read_published
from warehouse.tables import read_query

if TYPE_CHECKING:
    from flows.nightly import NightReport

SHOWN_SIGNALS = 10
# Both tables fit a terminal of 80 columns.
RANKED = {
    "rank": ("rank", ">d"),
    "model": ("model", ""),
    "sharpe": ("sharpe", ".2f"),
    "sortino": ("sortino", ".2f"),
    "annual_return": ("per year", ".1%"),
    "excess_annual_return": ("over hold", "+.1%"),
    "max_drawdown": ("drawdown", ".1%"),
    "annual_turnover": ("turnover", ".1f"),
}
SIGNAL = {
    "symbol": ("symbol", ""),
    "side": ("side", ""),
    "label_3": ("label", ""),
    "confidence": ("confidence", ".2f"),
    "weight": ("weight", "+.2%"),
}
STOP = {"stop_price": ("stop", ".6g")}


def run_night(parameters: NightParameters, warehouse: Warehouse, home: Path, screen: Console) -> bool:
    """True when every universe was published. Prints steps, leaderboard and signals of each, and where to look next."""
    started = time.perf_counter()
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the log file has all records
    log = warehouse.path.with_name(f"{warehouse.path.stem}.log")
    console(stderr=True).print("Starting a local Prefect server and loading the models ...")
    with local_server(home, environment=ONE_NIGHT) as server:
        from flows.nightly import NightFailedError, nightly  # the import takes seconds, in which the server starts

        with log_to_screen(log):
            server.wait()
            try:
                reports: Sequence[NightReport] = nightly(parameters)
            except NightFailedError as error:
                reports = error.reports
    for report in reports:
        show_universe(report, warehouse, screen)
    failed = [report for report in reports if report.state != "published"]
    seconds = time.perf_counter() - started
    gigabytes = peak_bytes() / 2**30
    screen.print(f"\n{seconds:.0f} s, peak memory {gigabytes:.1f} GiB")
    if len(failed) < len(reports):
        screen.print(where_to_look_next(warehouse), markup=False, soft_wrap=True)
    if failed:
        names = ", ".join(report.universe for report in failed)
        console(stderr=True).print(f"error: not published: {names}; the details are in {log}", soft_wrap=True)
    return not failed


def show_universe(report: NightReport, warehouse: Warehouse, screen: Console) -> None:
    """Prints how the night of one universe ended and, when it was published, its leaderboard, champion and signals."""
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
    screen.print(table(f"Leaderboard: {sessions} sessions out of sample, net of costs", RANKED, ranking))
    for row in champion:
        screen.print(f"Champion: {row['model']}, {row['reason']}", markup=False)
    if signals:
        show_signals(signals, screen)


def show_signals(signals: list[dict], screen: Console) -> None:
    """Prints the signals with the largest weights, and the number of other signals."""
    session: date = signals[0]["for_session"]
    horizons = {f"return_{bars}": bars for bars, _ in as_items(signals[0]["expected_return"])}
    rows = [
        row | {name: dict(as_items(row["expected_return"])).get(bars) for name, bars in horizons.items()}
        for row in signals[:SHOWN_SIGNALS]
    ]
    columns = SIGNAL | {name: (f"{bars} bar{'s' * (bars > 1)}", "+.2%") for name, bars in horizons.items()} | STOP
    screen.print()
    screen.print(table(f"Signals of {signals[0]['model']} for {session}, expected return by horizon", columns, rows))
    if more := len(signals) - len(rows):
        screen.print(f"… and {more} more in signals_next_day")


def as_items(mapping: dict | list) -> list[tuple]:
    """The pairs of a MAP, which Arrow returns as a list of pairs and DuckDB as a dict."""
    return list(mapping.items() if isinstance(mapping, dict) else mapping)


def peak_bytes() -> int:
    """Peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def where_to_look_next(warehouse: Warehouse) -> str:
    """Text with the commands to run next, written so that they work in this shell."""
    program = "nightgraph" if shutil.which("nightgraph") else relative(Path(sys.executable).with_name("nightgraph"))
    default = Warehouse.from_url(load_settings().warehouse_url)
    option = "" if warehouse == default else f" --warehouse {relative(warehouse.path)}"
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
    return f"Published, read-only: {relative(warehouse.published)}\n\nWhere to look next{lines}"


def relative(path: Path) -> str:
    """The path relative to the working directory when it is inside it, else unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
