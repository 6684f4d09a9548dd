"""Rows of a query on the published copy, or on the warehouse, written as a table, as CSV or as JSON."""

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

from flows.terminal import cell
from warehouse.connect import Warehouse
from warehouse.publish import read_published

BATCH_ROWS = 10_000
SHOWN_ROWS = 200


class QueryError(Exception):
    """DuckDB refused the statement; its message on one line."""


def run(warehouse: Warehouse, statement: str, style: str, output: TextIO, screen: Console, now: bool = False) -> None:
    """Writes the rows of ``statement`` to ``output`` as csv or json, or shows them on ``screen`` as a table.

    It queries the published copy or, with ``now``, the warehouse itself: waits for its lock and releases it before it
    writes. Raises QueryError for a statement that DuckDB refuses, NotPublishedError before the first publish.
    """
    with contextlib.ExitStack() as connection:
        con = connection.enter_context(warehouse.read() if now else read_published(warehouse))
        try:
            con.execute(statement)
            if not con.description:
                raise QueryError("the statement gives no rows")
            columns = [column[0] for column in con.description]
            rows = fetched_rows(con)
            if now:
                rows = iter(list(rows))
                connection.close()  # a slow reader of the output must not hold up nights and streams
            write = {"csv": write_csv, "json": write_json}.get(style)
            if write:
                write(columns, rows, output)
            else:
                show(columns, rows, screen)
        except duckdb.Error as error:
            raise QueryError(one_line(error)) from error


def fetched_rows(con: duckdb.DuckDBPyConnection) -> Iterator[tuple]:
    """The rows of the statement that was executed last, one by one."""
    while rows := con.fetchmany(BATCH_ROWS):
        yield from rows


def one_line(error: duckdb.Error) -> str:
    """DuckDB's message without its copy of the statement and without line breaks."""
    text = str(error).split("\n\nLINE ")[0]
    return " ".join(text.split())


def write_csv(columns: list[str], rows: Iterator[tuple], output: TextIO) -> None:
    """Writes RFC 4180: header, CRLF, quotes where needed; NULL is empty, times are ISO 8601, maps and lists JSON."""
    writer = csv.writer(output)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_field(value) for value in row])


def write_json(columns: list[str], rows: Iterator[tuple], output: TextIO) -> None:
    """Writes an array with one object per row; NULL, NaN and infinity are null, times are ISO 8601."""
    separator = "["
    for row in rows:
        output.write(separator + json.dumps(dict(zip(columns, map(plain, row), strict=True)), ensure_ascii=False))
        separator = ",\n "
    output.write("[]\n" if separator == "[" else "]\n")


def show(columns: list[str], rows: Iterator[tuple], screen: Console) -> None:
    """Prints a table of the first rows, numbers aligned to the right, and the number of other rows."""
    first = list(islice(rows, SHOWN_ROWS))
    output = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        numeric = any(isinstance(row[number], (int, float, Decimal)) for row in first)
        output.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in first:
        output.add_row(*(cell(plain(v) if isinstance(v, (dict, list)) else v) for v in row))
    screen.print(output, markup=False)
    if more := sum(1 for _ in rows):
        screen.print(f"… and {more} more rows; --csv and --json print all", style="dim")


def plain(value: object) -> object:
    """The value as one that JSON can hold."""
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
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _csv_field(value: object) -> object:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(plain(value), ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, (int, float, str, Decimal)) or value is None else plain(value)
