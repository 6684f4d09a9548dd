"""The command `nightgraph sql`: writes the rows of a query as a table, as CSV or as JSON.

The query reads the published copy (the read-only database that each finished night replaces), or the warehouse itself.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from typing import TextIO

import duckdb
from rich.console import Console
from rich.table import Table

from flows.terminal import format_cell
from warehouse.connect import Warehouse
from warehouse.publish import read_published

BATCH_ROWS = 10_000
SHOWN_ROWS = 200


class QueryError(Exception):
    """DuckDB refused the statement; its message on one line."""


def run_query(
    warehouse: Warehouse, statement: str, output_format: str, output: TextIO, console: Console, now: bool = False
) -> None:
    """Writes the rows of ``statement`` to ``output`` for output_format csv or json, or to ``console`` as a table.

    The statement reads the published copy. With ``now`` it reads the warehouse itself: it waits for the lock, fetches
    all rows, and releases the lock before it writes them. Raises QueryError for a statement that DuckDB refuses or that
    has no rows, and NotPublishedError when no copy exists yet.
    """
    with contextlib.ExitStack() as stack:
        con = stack.enter_context(warehouse.read() if now else read_published(warehouse))
        try:
            con.execute(statement)
            if not con.description:
                raise QueryError("the statement returns no rows")
            columns = [column[0] for column in con.description]
            rows = fetch_rows(con)
            if now:
                rows = iter(list(rows))
                stack.close()  # a slow reader of the output must not block nights and streams
            if output_format == "csv":
                write_csv(columns, rows, output)
            elif output_format == "json":
                write_json(columns, rows, output)
            else:
                print_table(columns, rows, console)
        except duckdb.Error as error:
            raise QueryError(one_line(error)) from error


def fetch_rows(con: duckdb.DuckDBPyConnection) -> Iterator[tuple]:
    """Iterator over the rows of the statement that was executed last; fetches ``BATCH_ROWS`` at a time."""
    while rows := con.fetchmany(BATCH_ROWS):
        yield from rows


def one_line(error: duckdb.Error) -> str:
    """DuckDB's message on one line, without its quotation of the statement."""
    text = str(error).split("\n\nLINE ")[0]
    return " ".join(text.split())


def write_csv(columns: list[str], rows: Iterator[tuple], output: TextIO) -> None:
    """Writes CSV by RFC 4180, with a header. NULL is an empty field, times are ISO 8601, maps and lists are JSON."""
    writer = csv.writer(output)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_field(value) for value in row])


def write_json(columns: list[str], rows: Iterator[tuple], output: TextIO) -> None:
    """Writes a JSON array with one object per row. NULL, NaN and infinity become null, times ISO 8601."""
    separator = "["
    for row in rows:
        output.write(
            separator + json.dumps(dict(zip(columns, map(to_json_value, row), strict=True)), ensure_ascii=False)
        )
        separator = ",\n "
    output.write("[]\n" if separator == "[" else "]\n")


def print_table(columns: list[str], rows: Iterator[tuple], console: Console) -> None:
    """Prints a table of the first ``SHOWN_ROWS`` rows, numbers aligned to the right, and the number of other rows."""
    shown_rows = list(islice(rows, SHOWN_ROWS))
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for position, column in enumerate(columns):
        is_numeric = any(isinstance(row[position], (int, float, Decimal)) for row in shown_rows)
        grid.add_column(column, justify="right" if is_numeric else "left", overflow="fold")
    for row in shown_rows:
        grid.add_row(*(format_cell(to_json_value(v) if isinstance(v, (dict, list)) else v) for v in row))
    console.print(grid, markup=False)
    n_more = sum(1 for _ in rows)
    if n_more:
        console.print(f"… and {n_more} more rows; --csv and --json print all", style="dim")


def to_json_value(value: object) -> object:
    """The value as a JSON value: NaN and infinity become null, times ISO 8601, bytes hex, other types text."""
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case dict():
            return {str(to_json_value(key)): to_json_value(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json_value(item) for item in value]
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _csv_field(value: object) -> object:
    """The value as ``csv.writer`` should write it: maps and lists as JSON, booleans in lower case, times ISO 8601."""
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(to_json_value(value), ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, (int, float, str, Decimal)) or value is None else to_json_value(value)
