"""The command line `nightgraph`; ``EXIT_CODES`` lists its exit codes.

A night is the run for one as-of date. The published copy is the read-only database that each finished night replaces.
A tape is a folder of recorded market data. Commands import their modules when they run, so that help and queries start
fast.
"""

from __future__ import annotations

import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from flows.doctor import installed_version, run_checks
from flows.server import ServerError
from flows.settings import SettingsError, load_settings
from flows.sql import QueryError, run_query
from flows.terminal import make_console, silence_warnings
from models.graphs.snapshot import GraphError
from models.training.errors import TrainingError
from tasks.errors import TaskError
from warehouse.connect import Warehouse
from warehouse.errors import UnknownUniverseError, UnsupportedUrlError, WarehouseError

INPUT_ERRORS = (SettingsError, ValidationError, UnknownUniverseError, UnsupportedUrlError)
EXPECTED_ERRORS = (TaskError, GraphError, TrainingError, WarehouseError, ServerError, QueryError)
EXIT_CODES = "Exit codes: 0 success, 1 failure, 2 invalid command line or setting, 130 Ctrl-C."
app = typer.Typer(
    help="A research desk that runs itself every night: market data, graphs, models, backtests, signals.",
    epilog=EXIT_CODES,
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
    """Prints the version and exits with 0 if ``is_requested``."""
    if is_requested:
        print(installed_version("nightgraph") or "not installed: running from a checkout")
        raise typer.Exit


@app.command(
    epilog=f"{EXIT_CODES} Code 1: the night failed or was blocked. The reason is printed; nothing of it is published."
)
def night(
    as_of: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="DATE",
            help="the night, a UTC date [default: the latest one that is over; simulated: the setting simulated_as_of]",
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(metavar="SOURCE", help="live, recorded (needs --tape) or simulated")
    ] = "simulated",
    tape: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, metavar="DIR", help="folder with a recorded tape")
    ] = None,
    universe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="repeatable [default: the default universes of the source]")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="repeatable [default: the setting models]")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help="repeatable [default: the setting seeds]")] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Run one whole night and print its results.

    The night runs in this process and starts and stops its own Prefect server. When PREFECT_API_URL names a server, it
    uses that server.
    """
    from flows.parameters import NightParameters

    target_warehouse = resolve_warehouse(warehouse)
    night_options: dict[str, object] = {
        "as_of": as_of and as_of.date(),
        "source": source,
        "tape": tape,
        "universes": universe or (),
        "models": model or None,
        "seeds": seed or None,
        "warehouse": str(target_warehouse.path),
    }
    parameters = NightParameters.model_validate(night_options)
    if (source == "recorded") != (tape is not None):
        raise SettingsError("--source recorded needs --tape DIR, and --tape DIR needs --source recorded")
    from flows.report import run_night

    try:
        is_published = run_night(parameters, target_warehouse, prefect_home(target_warehouse), make_console())
    except BaseException as error:
        if not is_interrupt(error):
            raise
        exit_with_error("stopped before the end; the same command resumes the night", 130)
    raise typer.Exit(0 if is_published else 1)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="a query in DuckDB's SQL")],
    csv: Annotated[bool, typer.Option("--csv", help="print CSV (RFC 4180), with maps and lists as JSON")] = False,
    json: Annotated[bool, typer.Option("--json", help="print a JSON array of objects, with times in ISO 8601")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="query the warehouse itself; this may wait for a running night")
    ] = False,
    warehouse: WarehouseOption = None,
) -> None:
    """Query the published copy.

    The copy is read-only, and a query of it never waits for a running night. The rows of a stream are published with
    the next night. With --now, the query reads the warehouse itself: it sees the rows of running streams and of
    unfinished nights.
    """
    if csv and json:
        raise SettingsError("choose --csv or --json, not both")
    output_format = "csv" if csv else "json" if json else "table"
    run_query(resolve_warehouse(warehouse), statement, output_format, sys.stdout, make_console(), now)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="name of a network, as in the leaderboard")],
    universe: Annotated[str, typer.Option(metavar="NAME", help="the universe that the network was fitted on")],
    out: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="folder for the three files")],
    bars: Annotated[int, typer.Option(min=1, metavar="N", help="number of bars that sequence.onnx reads at once")] = 64,
    assets: Annotated[int, typer.Option(min=1, metavar="N", help="number of assets that both ONNX files read")] = 1,
    warehouse: WarehouseOption = None,
) -> None:
    """Export a network for other programs: the weights of its newest published fold.

    model.safetensors contains the weights and their description. step.onnx forecasts one bar per call, sequence.onnx
    many bars per call. Each ONNX file is compared with the network in onnxruntime before it is written to the folder.
    This command needs the packages of the extra `export`.
    """
    from tasks.export import export_model

    exported = export_model(resolve_warehouse(warehouse), universe, model, out, bars, assets)
    print(f"{exported.weights}: fold {exported.fold} of {model}, {exported.source} night {exported.night}")
    for onnx_file in exported.onnx_files:
        kibibytes = onnx_file.n_bytes / 1024
        print(f"{onnx_file.path}: {onnx_file.n_nodes} nodes, {kibibytes:.0f} KiB, error ≤ {onnx_file.max_error:.1g}")


@app.command(epilog="Exit codes: 0 no check fails (warnings are allowed), 1 a check fails.")
def doctor(warehouse: WarehouseOption = None) -> None:
    """Check this machine, and say what to do about each problem.

    The checks cover versions, GPU, disk, warehouse, published copy, Prefect, and how the last nights ended.
    """
    console = make_console()
    exit_code = 0
    target_warehouse = resolve_warehouse(warehouse)
    for finding in run_checks(target_warehouse, prefect_home(target_warehouse)):
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
        console.print(f"[{colour}]{finding.state:4}[/]  [bold]{finding.subject}[/]: ", end="")
        console.print(finding.detail + (f"\n      to do: {finding.todo}" if finding.todo else ""), markup=False)
        if finding.state == "fail":
            exit_code = 1
    raise typer.Exit(exit_code)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="port of the UI and the API, on the loopback interface")] = 4200,
    schedules: Annotated[
        bool | None,
        typer.Option(help="switch all cron schedules on or off [default: unchanged, and a new schedule is off]"),
    ] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Run the Prefect UI, deployments and workers until Ctrl-C.

    Starts a server, creates the work pools, deploys prefect.yaml and starts the workers. Ctrl-C stops all of them.
    """
    target_warehouse = resolve_warehouse(warehouse)
    os.environ["NIGHTLY_WAREHOUSE_URL"] = str(target_warehouse.path)
    from flows.serve import serve_until_stopped

    serve_until_stopped(prefect_home(target_warehouse), port, schedules, make_console())


@app.command()
def schema() -> None:
    """Print the meaning of every table and column, in Markdown."""
    import duckdb

    from warehouse.migrate import upgrade
    from warehouse.schema import describe_schema

    with duckdb.connect() as con:
        upgrade(con)
        print(describe_schema(con))


@app.command()
def macro(
    fred: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE", help="parquet file with the columns series, date, value"
        ),
    ],
    tape: Annotated[
        Path,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="folder with a recorded tape that contains SPY"),
    ],
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help="repeatable [default: 0, 1, 2]")] = None,
    markdown: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE", help="file to write the report to")
    ] = None,
) -> None:
    """Compare Mamba with a Transformer at forecasting the next month's volatility regime.

    The inputs are SPY and twelve FRED indicators, each used from its publication date. The comparison is walk-forward
    and reports 95 % intervals. It takes minutes.
    """
    from flows.macro import run_macro

    run_macro(fred, tape, seed or (), markdown, make_console())


@app.command(
    epilog=f"{EXIT_CODES} Ctrl-C and SIGTERM stop it gracefully: it saves all received events and exits with 0."
)
def stream(
    universe: Annotated[str, typer.Option(metavar="NAME", help="a universe of Bybit perpetuals")] = "crypto",
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="stop after N minutes [default: run until Ctrl-C or SIGTERM]")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="WS_URL", help="websocket to use instead of Bybit's; its rows get source=recorded"),
    ] = None,
    rest_url: Annotated[
        str | None, typer.Option(metavar="URL", help="REST service of --url, for missed trades and closed bars")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="a published temporal graph network that forecasts at every close"),
    ] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Store trades, books, funding, open interest and liquidations as they happen; the view `events` shows them.

    The stream reconnects after a lost connection, fetches missed trades, and continues where the last run stopped. With
    --model, the views `stream_forecasts` and `signals_now` show the network's forecasts at the close of each bar.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the command prints its own lines
    from flows.stream import StreamParameters, run_stream

    stream_options = {
        "universe": universe,
        "minutes": minutes,
        "url": url,
        "rest_url": rest_url,
        "model": model,
        "warehouse": str(resolve_warehouse(warehouse).path),
    }
    run_stream(StreamParameters.model_validate(stream_options), make_console())


@app.command()
def events(
    day: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], metavar="DATE", help="the first day, a UTC date")],
    days: Annotated[int, typer.Option(metavar="N", help="number of days, from --day onwards")] = 1,
    universe: Annotated[str, typer.Option(metavar="NAME", help="a universe of Bybit perpetuals")] = "crypto",
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="archive to use instead of Bybit's; its rows get source=recorded")
    ] = None,
    rest_url: Annotated[
        str | None, typer.Option(metavar="URL", help="REST service of --url, for open interest")
    ] = None,
    warehouse: WarehouseOption = None,
) -> None:
    """Store whole days of trades from Bybit's archive, and hourly open interest; the view `events` shows them.

    Events that an earlier run or `stream` has stored are not changed. Days that the archive lacks are reported at the
    end, after all other days are stored.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the command prints its own lines
    from flows.events import EventsParameters, run_events

    events_options = {
        "day": day.date(),
        "days": days,
        "universe": universe,
        "url": url,
        "rest_url": rest_url,
        "warehouse": str(resolve_warehouse(warehouse).path),
    }
    run_events(EventsParameters.model_validate(events_options), make_console())


@app.callback()
def global_options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def resolve_warehouse(url_or_file: str | None) -> Warehouse:
    """The warehouse at ``url_or_file`` (the option --warehouse), or for None that of the setting warehouse_url."""
    return Warehouse.from_url(load_settings(warehouse_url=url_or_file).warehouse_url)


def prefect_home(warehouse: Warehouse) -> Path:
    """The folder of Prefect's database and logs: PREFECT_HOME, or else a folder beside the warehouse."""
    return Path(os.environ.get("PREFECT_HOME") or warehouse.path.with_name(f"{warehouse.path.stem}.prefect"))


def main() -> None:
    """Runs the command line and exits.

    An expected error prints one line on stderr. Any other error is a defect: its traceback is printed too.
    """
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
    """True when a KeyboardInterrupt is in the error's chain of causes: DuckDB raises a RuntimeError for Ctrl-C."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def exit_with_error(error: object, code: int) -> NoReturn:
    """Prints ``error: …`` on stderr and exits with ``code``. ``error`` is an exception or a message."""
    if isinstance(error, ValidationError):
        error = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
