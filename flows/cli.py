"""The command `nightgraph`. Exit codes: 0 done, 1 failed, 2 the command line or a setting is not usable, 130 Ctrl-C."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from flows.doctor import examine, installed
from flows.server import ServerError
from flows.settings import SettingsError, load_settings
from flows.sql import QueryError, run
from flows.terminal import console, silence_warnings
from models.graphs.snapshot import GraphError
from models.training.errors import TrainingError
from tasks.errors import TaskError
from warehouse.connect import Warehouse
from warehouse.errors import UnknownUniverseError, UnsupportedUrlError, WarehouseError

INPUT_ERRORS = (SettingsError, ValidationError, UnknownUniverseError, UnsupportedUrlError)
EXPECTED_ERRORS = (TaskError, GraphError, TrainingError, WarehouseError, ServerError, QueryError)
CODES = "Exit codes: 0 done, 1 it failed, 2 the command line or a setting is not usable, 130 Ctrl-C."
app = typer.Typer(
    help="A research desk that runs itself every night: market data, graphs, models, backtests, signals.",
    epilog=CODES,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)
WarehouseOption = Annotated[
    str | None,
    typer.Option("--warehouse", metavar="URL_OR_FILE", help="DuckDB file [default: the setting warehouse_url]"),
]


def print_version(is_requested: bool) -> None:
    """Prints the version and exits, if requested."""
    if is_requested:
        print(installed("nightgraph") or "not installed: this is a checkout")
        raise typer.Exit


@app.command(
    epilog=f"{CODES} Here 1 is a night that failed or was blocked; it prints why, and readers see nothing of it."
)
def night(
    as_of: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="DATE",
            help="the night, a UTC date [default: the latest one over; simulated: simulated_as_of]",
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="SOURCE", help="live, recorded (needs --tape) or simulated")
    ] = "simulated",
    tape: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, metavar="DIR", help="folder with a recorded tape")
    ] = None,
    universe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="repeatable [default: all for the source]")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="repeatable [default: the setting models]")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help="repeatable [default: the setting seeds]")] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Run one whole night and print what came out.

    It runs in this process, on a Prefect server that starts and stops with it, or on the one PREFECT_API_URL names.
    """
    from flows.parameters import NightParameters

    target = resolve_warehouse(warehouse)
    options: dict[str, object] = {
        "as_of": as_of and as_of.date(),
        "source": source,
        "tape": tape,
        "universes": universe or (),
    }
    options |= {"models": model or None, "seeds": seed or None, "warehouse": str(target.path)}
    parameters = NightParameters.model_validate(options)
    if (source == "recorded") != (tape is not None):
        raise SettingsError("--source recorded and --tape DIR belong together")
    from flows.report import run_night

    try:
        published = run_night(parameters, target, prefect_home(target), console())
    except BaseException as error:
        if not is_interrupt(error):
            raise
        exit_with_error("stopped before its end; the same command goes on from here", 130)
    raise typer.Exit(0 if published else 1)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="what to ask the published copy, in DuckDB's SQL")],
    csv: Annotated[bool, typer.Option("--csv", help="RFC 4180; maps and lists as JSON")] = False,
    json: Annotated[bool, typer.Option("--json", help="an array of objects, times in ISO 8601")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="ask the warehouse itself, which may have to be waited for")
    ] = False,
    warehouse: WarehouseOption = None,
) -> None:
    """Query what has been published.

    Reads the read-only copy, so it never waits for a night that is running, and cannot change anything. What a stream
    writes is published with the next night; with --now it is there, as are nights that are not finished.
    """
    if csv and json:
        raise SettingsError("--csv or --json, not both")
    style = "csv" if csv else "json" if json else "table"
    run(resolve_warehouse(warehouse), statement, style, sys.stdout, console(), now)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="a network of the zoo, as the leaderboard names it")],
    universe: Annotated[str, typer.Option(metavar="NAME", help="which market it was fitted on")],
    out: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="folder for the three files")],
    bars: Annotated[int, typer.Option(min=1, metavar="N", help="bars of sequence.onnx")] = 64,
    assets: Annotated[int, typer.Option(min=1, metavar="N", help="assets of both graphs")] = 1,
    warehouse: WarehouseOption = None,
) -> None:
    """Write a network's newest published fold for other programs.

    model.safetensors holds the weights and what they mean; step.onnx forecasts bar by bar, sequence.onnx many bars at
    once. Both graphs are checked in onnxruntime before they are there. Needs the packages of the extra `export`.
    """
    from tasks.export import export_model

    exported = export_model(resolve_warehouse(warehouse), universe, model, out, bars, assets)
    print(f"{exported.weights}: fold {exported.fold} of {model}, {exported.source} night {exported.night}")
    for graph in exported.graphs:
        print(f"{graph.path}: {graph.nodes} nodes, {graph.bytes / 1024:.0f} KiB, off by {graph.error:.1g} at most")


@app.command(epilog="Exit codes: 0 nothing fails (warnings allowed), 1 something does.")
def doctor(warehouse: WarehouseOption = None) -> None:
    """Check this machine: what is wrong, and what to do about it.

    Checks versions, GPU, disk, warehouse, published copy, Prefect and how the last nights ended.
    """
    screen = console()
    exit_code = 0
    target = resolve_warehouse(warehouse)
    for finding in examine(target, prefect_home(target)):
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
        screen.print(f"[{colour}]{finding.state:4}[/]  [bold]{finding.subject}[/]: ", end="")
        screen.print(finding.detail + (f"\n      to do: {finding.todo}" if finding.todo else ""), markup=False)
        exit_code = max(exit_code, int(finding.state == "fail"))
    raise typer.Exit(exit_code)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="port of the UI and the API, on the loopback interface")] = 4200,
    schedules: Annotated[
        bool | None, typer.Option(help="switch all cron schedules on or off [default: as they were; new ones off]")
    ] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Keep the Prefect UI, deployments and workers running.

    Starts a server, creates the work pools, deploys prefect.yaml and starts the workers; Ctrl-C stops them all.
    """
    target = resolve_warehouse(warehouse)
    os.environ["NIGHTLY_WAREHOUSE_URL"] = str(target.path)
    from flows.serve import serve_until_stopped

    serve_until_stopped(prefect_home(target), port, schedules, console())


@app.command()
def schema() -> None:
    """Print what every table and column means, in Markdown."""
    import duckdb

    from warehouse.migrate import upgrade
    from warehouse.schema import describe

    with duckdb.connect() as con:
        upgrade(con)
        print(describe(con))


@app.command()
def macro(
    fred: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="parquet of series, date, value")
    ],
    tape: Annotated[
        Path, typer.Option(exists=True, file_okay=False, metavar="DIR", help="folder with a recorded tape that has SPY")
    ],
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help="repeatable [default: 0, 1, 2]")] = None,
    markdown: Annotated[Path | None, typer.Option(dir_okay=False, metavar="FILE", help="write the report here")] = None,
) -> None:
    """Measure Mamba against a Transformer on the coming month's volatility regime.

    Twelve FRED indicators, lagged by their publication, and SPY; walk-forward, with 95 % intervals. Takes minutes.
    """
    from flows.macro import run_macro

    run_macro(fred, tape, seed or (), markdown, console())


@app.command(epilog=f"{CODES} Ctrl-C and SIGTERM end it in order: what has arrived is saved, and it exits with 0.")
def stream(
    universe: Annotated[str, typer.Option(metavar="NAME", help="a universe of Bybit perpetuals")] = "crypto",
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="how long [default: until Ctrl-C or SIGTERM]")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="WS_URL", help="another websocket than Bybit's own; its rows are `recorded`")
    ] = None,
    rest_url: Annotated[
        str | None, typer.Option(metavar="URL", help="its REST service, for what was missed and for closed bars")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="a published temporal graph network, to forecast at every close")
    ] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Write trades, books, funding, open interest and liquidations to the view `events` as they happen.

    Reconnects after lost connections, fetches the trades it missed, and continues where the last run stopped. With
    --model, the network's forecasts at the close of each bar go to `stream_forecasts` and `signals_now`.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # we print our own lines
    from flows.stream import StreamParameters, run_stream

    options = {"universe": universe, "minutes": minutes, "url": url, "rest_url": rest_url, "model": model}
    options["warehouse"] = str(resolve_warehouse(warehouse).path)
    run_stream(StreamParameters.model_validate(options), console())


@app.command()
def events(
    day: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="the first UTC day")],
    days: Annotated[int, typer.Option(metavar="N", help="how many days from it on")] = 1,
    universe: Annotated[str, typer.Option(metavar="NAME", help="a universe of Bybit perpetuals")] = "crypto",
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="another archive than Bybit's own; its rows are `recorded`")
    ] = None,
    rest_url: Annotated[str | None, typer.Option(metavar="URL", help="the REST service that goes with --url")] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Fetch whole days of trades from Bybit's archive, and their hourly open interest, into the view `events`.

    Events that are stored already, by an earlier run or by `stream`, stay as they are. Days that the archive lacks are
    reported at the end, when all others are stored.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # we print our own lines
    from flows.events import EventsParameters, run_events

    options = {"day": day.date(), "days": days, "universe": universe, "url": url, "rest_url": rest_url}
    options["warehouse"] = str(resolve_warehouse(warehouse).path)
    run_events(EventsParameters.model_validate(options), console())


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def resolve_warehouse(url_or_file: str | None) -> Warehouse:
    """The warehouse of the option --warehouse, or of the settings."""
    return Warehouse.from_url(load_settings(warehouse_url=url_or_file).warehouse_url)


def prefect_home(warehouse: Warehouse) -> Path:
    """The folder of Prefect's database and logs: PREFECT_HOME, or one beside the warehouse."""
    return Path(os.environ.get("PREFECT_HOME") or warehouse.path.with_name(f"{warehouse.path.stem}.prefect"))


def main() -> None:
    """Runs the command line; an expected error is one line on stderr."""
    silence_warnings()
    try:
        app()
    except INPUT_ERRORS as error:
        exit_with_error(error, 2)
    except EXPECTED_ERRORS as error:
        exit_with_error(error, 1)
    except Exception:
        traceback.print_exc()
        exit_with_error(
            "this is a defect of nightgraph; please report it with the lines above (.github/CONTRIBUTING.md)", 1
        )


def is_interrupt(error: BaseException | None) -> bool:
    """True when Ctrl-C caused the error; DuckDB, for example, raises a RuntimeError for it."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def exit_with_error(error: object, code: int) -> NoReturn:
    """Prints ``error: …`` and exits."""
    if isinstance(error, ValidationError):
        error = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
