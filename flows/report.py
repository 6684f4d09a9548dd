"""A night run in this process, and what it prints when it is over."""

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
from flows.terminal import console, table, telling
from warehouse.connect import Warehouse
from warehouse.publish import read_published
from warehouse.tables import read_query

if TYPE_CHECKING:
    from flows.nightly import NightReport

SHOWN_SIGNALS = 10
RANKED = {
    "rank": ">d",
    "model": "",
    "sharpe": ".2f",
    "sortino": ".2f",
    "calmar": ".2f",
    "annual_return": ".1%",
    "excess_annual_return": ".1%",
    "max_drawdown": ".1%",
    "annual_turnover": ".1f",
    "sessions": ">d",
}
SIGNAL = {"symbol": "", "side": "", "label_5": "", "confidence": ".2f", "weight": "+.2%"}
PRICED = {"expected_volatility": ".2%", "close": ".6g", "stop_price": ".6g"}


def run_night(parameters: NightParameters, warehouse: Warehouse, home: Path, screen: Console) -> bool:
    """True when every universe was published. Prints each one's steps, leaderboard and signals, and where they are."""
    started = time.perf_counter()
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the log file has it all
    log = warehouse.path.with_name(f"{warehouse.path.stem}.log")
    console(stderr=True).print("Starting a local Prefect server and loading the models ...")
    with local_server(home, environment=ONE_NIGHT) as server:
        from flows.nightly import NightFailedError, nightly  # takes seconds, in which the server starts

        with telling(log):
            server.wait()
            try:
                reports: Sequence[NightReport] = nightly(parameters)
            except NightFailedError as error:
                reports = error.reports
    for report in reports:
        show_universe(report, warehouse, screen)
    failed = [report for report in reports if report.state != "published"]
    seconds, gigabytes = time.perf_counter() - started, peak_bytes() / 2**30
    screen.print(f"\n{seconds:.0f} s, peak memory {gigabytes:.1f} GiB")
    if failed:
        screen.print(
            f"Not published: {', '.join(r.universe for r in failed)}. Details: {log}", style="red", markup=False
        )
    if len(failed) < len(reports):
        screen.print(where_to_look_next(warehouse), markup=False)
    return not failed


def show_universe(report: NightReport, warehouse: Warehouse, screen: Console) -> None:
    """How the night of one universe went; when it was published, what readers now see of it."""
    screen.print(
        f"\n{report.universe}, night {report.night}, {report.source}: {report.state}", style="bold", markup=False
    )
    screen.print(report.message, markup=False)
    screen.print("  ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items()))
    if report.state != "published":
        return
    with read_published(warehouse) as con:
        keys = {"night": report.night, "source": report.source, "universe": report.universe}
        ranking = read_query(con, "published_leaderboard", **keys).to_pylist()
        signals = read_query(con, "published_signals", **keys).to_pylist()
    screen.print()
    screen.print(table("Leaderboard, out of sample and net of costs", RANKED, ranking))
    if signals:
        show_signals(signals, screen)


def show_signals(signals: list[dict], screen: Console) -> None:
    """The signals with the largest weights, and how many there are besides."""
    session: date = signals[0]["for_session"]
    horizons = {f"{bars}-bar return": bars for bars, _ in as_items(signals[0]["expected_return"])}
    rows = [
        row | {name: dict(as_items(row["expected_return"])).get(bars) for name, bars in horizons.items()}
        for row in signals[:SHOWN_SIGNALS]
    ]
    columns = SIGNAL | dict.fromkeys(horizons, "+.2%") | PRICED
    screen.print()
    screen.print(table(f"Signals for {session} by {signals[0]['model']}, largest weights first", columns, rows))
    if more := len(signals) - len(rows):
        screen.print(f"… and {more} more in signals_next_day")


def as_items(mapping: dict | list) -> list[tuple]:
    """A MAP's pairs; Arrow gives it as a list of pairs, DuckDB as a dict."""
    return list(mapping.items() if isinstance(mapping, dict) else mapping)


def peak_bytes() -> int:
    """The most memory this process has held at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def where_to_look_next(warehouse: Warehouse) -> str:
    """The commands that show more, spelt so that they work in this shell."""
    program = "nightgraph" if shutil.which("nightgraph") else relative(Path(sys.executable).with_name("nightgraph"))
    default = Warehouse.at(NightParameters().settings().warehouse_url)
    option = "" if warehouse == default else f" --warehouse {relative(warehouse.path)}"
    ways = {
        f'{program} sql "SELECT * FROM signals_next_day"{option}': "",
        f'{program} sql "SELECT * FROM leaderboard"{option}': "",
        f"{program} schema": "what every table and column means",
        f"{program} doctor": "whether everything is in order",
        f"{program} serve": "the Prefect UI: run nights by hand, or every night by itself",
        "README.md": "all the rest",
    }
    width = max(len(way) for way, what in ways.items() if what)
    lines = "".join(f"\n  {way:{width}}  {what}".rstrip() for way, what in ways.items())
    return f"Published, read-only: {relative(warehouse.published)}\n\nWhere to look next{lines}"


def relative(path: Path) -> str:
    """The path as seen from here when it is below, else whole."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
