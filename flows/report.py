"""Runs a night (the run for one as-of date) in this process and prints its results.

The printed tables are read from the published copy, the read-only database that each finished night replaces.
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
from flows.terminal import log_to_screen, make_console, make_table
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


def run_night(parameters: NightParameters, warehouse: Warehouse, home: Path, console: Console) -> bool:
    """Runs the night of ``parameters`` and prints its results. Returns True when every universe was published.

    Prints the steps, leaderboard and signals of each universe to ``console``, and the commands to run next. ``home`` is
    the folder of the local Prefect server. A night that fails or is blocked is printed, not raised.
    """
    started_s = time.perf_counter()
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the log file has all records
    log_file = warehouse.path.with_name(f"{warehouse.path.stem}.log")
    make_console(stderr=True).print("Starting a local Prefect server and loading the models ...")
    with local_server(home, environment=ONE_NIGHT_ENVIRONMENT) as server:
        from flows.nightly import NightFailedError, nightly  # the import takes seconds; meanwhile the server starts

        with log_to_screen(log_file):
            server.wait_until_ready()
            try:
                night_reports: Sequence[NightReport] = nightly(parameters)
            except NightFailedError as error:
                night_reports = error.reports
    for night_report in night_reports:
        show_universe(night_report, warehouse, console)
    unpublished = [night_report.universe for night_report in night_reports if night_report.state != "published"]
    seconds = time.perf_counter() - started_s
    peak_gib = peak_memory_bytes() / 2**30
    console.print(f"\n{seconds:.0f} s, peak memory {peak_gib:.1f} GiB")
    if len(unpublished) < len(night_reports):
        console.print(where_to_look_next(warehouse), markup=False, soft_wrap=True)
    if unpublished:
        names = ", ".join(unpublished)
        make_console(stderr=True).print(f"error: not published: {names}; the details are in {log_file}", soft_wrap=True)
    return not unpublished


def show_universe(night_report: NightReport, warehouse: Warehouse, console: Console) -> None:
    """Prints the state of the night of one universe; if published, also its leaderboard, champion and signals."""
    console.print(
        f"\n{night_report.universe}, night {night_report.night}, {night_report.source}: {night_report.state}",
        style="bold",
        markup=False,
    )
    console.print(night_report.message, markup=False, soft_wrap=True)
    console.print("  ".join(f"{step} {seconds:.1f}s" for step, seconds in night_report.seconds.items()))
    if night_report.state != "published":
        return
    with read_published(warehouse) as con:
        keys = {"night": night_report.night, "source": night_report.source, "universe": night_report.universe}
        ranking = read_query(con, "published_leaderboard", **keys).to_pylist()
        signals = read_query(con, "published_signals", **keys).to_pylist()
        champion_rows = read_query(con, "published_champion", **keys).to_pylist()  # one row, or none
    n_sessions = max(row["sessions"] for row in ranking)
    console.print()
    console.print(
        make_table(f"Leaderboard: {n_sessions} sessions out of sample, net of costs", LEADERBOARD_COLUMNS, ranking)
    )
    for champion in champion_rows:
        console.print(f"Champion: {champion['model']}, {champion['reason']}", markup=False)
    if signals:
        show_signals(signals, console)


def show_signals(signals: list[dict], console: Console) -> None:
    """Prints a table of the first ``SHOWN_SIGNALS`` signals, and the number of the other signals.

    ``signals`` are the rows of ``published_signals.sql``, largest absolute weight first.
    """
    for_session: date = signals[0]["for_session"]
    horizons_bars = [n_bars for n_bars, _ in map_items(signals[0]["expected_return"])]
    return_columns = {f"return_{n_bars}": (f"{n_bars} bar{'s' * (n_bars > 1)}", "+.2%") for n_bars in horizons_bars}
    rows = []
    for signal in signals[:SHOWN_SIGNALS]:
        expected_return = dict(map_items(signal["expected_return"]))
        rows.append(signal | {f"return_{n_bars}": expected_return.get(n_bars) for n_bars in horizons_bars})
    title = f"Signals of {signals[0]['model']} for {for_session}, expected return by horizon"
    console.print()
    console.print(make_table(title, SIGNAL_COLUMNS | return_columns | STOP_COLUMN, rows))
    n_more = len(signals) - len(rows)
    if n_more:
        console.print(f"… and {n_more} more in signals_next_day")


def map_items(mapping: dict | list) -> list[tuple]:
    """The (key, value) pairs of a MAP value. Arrow returns a MAP as a list of pairs, DuckDB as a dict."""
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
    """``path`` relative to the working directory when it lies in that directory, else ``path`` unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
