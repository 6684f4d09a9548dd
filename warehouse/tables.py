"""Bulk reads and writes of the warehouse's tables as Arrow tables, inside the caller's transaction."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import duckdb
import pyarrow as pa

from warehouse.errors import RowsRefusedError

QUERY_FOLDER = Path(__file__).parent / "queries"
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")
ARRIVING = "arriving_rows"  # name under which the rows to write are registered with DuckDB


def replace_slice(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, **keys: object) -> int:
    """Replaces a slice of ``table`` by ``rows`` and returns the number of rows written.

    The slice is the rows in which every column of ``keys`` has the value in ``keys``. ``keys`` become columns of the
    written rows. Raises RowsRefusedError when ``rows`` has a key column with another value, or does not fit the table.
    Raises ValueError without keys.
    """
    if not keys:
        raise ValueError(f"replace_slice of {table} needs at least one key column")
    condition = " AND ".join(f"{_identifier(key)} = ${key}" for key in keys)
    con.execute(f"DELETE FROM {_table(table)} WHERE {condition}", keys)
    return append(con, table, rows, **keys)


def append(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, **constants: object) -> int:
    """Adds ``rows`` to ``table``, matched by column name, and returns the number of rows added.

    ``constants`` are columns with one value for all rows. Raises RowsRefusedError when rows do not fit the table, or
    when ``rows`` has the column of a constant with another value. Then no row is written.
    """
    columns = [_identifier(column) for column in rows.column_names]
    con.register(ARRIVING, rows)
    try:
        for name in constants.keys() & set(columns):
            _refuse_disagreement(con, table, name, constants[name])
        parameters = {name: value for name, value in constants.items() if name not in columns}
        selected = [*columns, *(f"${_identifier(name)} AS {name}" for name in parameters)]
        con.execute(f"INSERT INTO {_table(table)} BY NAME SELECT {', '.join(selected)} FROM {ARRIVING}", parameters)
    except (duckdb.BinderException, duckdb.ConstraintException, duckdb.ConversionException) as exc:
        raise RowsRefusedError(f"{rows.num_rows} rows do not fit {table}: {exc}") from exc
    finally:
        con.unregister(ARRIVING)
    return rows.num_rows


def upsert(
    con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, by: tuple[str, ...], **constants: object
) -> int:
    """Writes ``rows`` and returns their number. A row replaces the row of ``table`` with the same key, or is added.

    The key is the columns ``by``. ``rows`` must contain each key once. A column of ``by`` may be one of the
    ``constants``: columns with one value for all rows. Raises RowsRefusedError as ``append`` does.
    """
    key_values = {
        name: f"${_identifier(name)}" if name in constants else f"{ARRIVING}.{_identifier(name)}" for name in by
    }
    condition = " AND ".join(f"old.{name} = {value}" for name, value in key_values.items())
    con.register(ARRIVING, rows)
    try:
        con.execute(
            f"DELETE FROM {_table(table)} AS old USING {ARRIVING} WHERE {condition}",
            {name: constants[name] for name in by if name in constants},
        )
    finally:
        con.unregister(ARRIVING)
    return append(con, table, rows, **constants)


def read_query(con: duckdb.DuckDBPyConnection, name: str, /, **parameters: object) -> pa.Table:
    """Rows of the statement in ``warehouse/queries/<name>.sql``, run with its ``$parameters``."""
    return con.execute(query_text(name), parameters).to_arrow_table()


@lru_cache(maxsize=128)
def query_text(name: str) -> str:
    """The statement in ``warehouse/queries/<name>.sql``."""
    return (QUERY_FOLDER / f"{_identifier(name)}.sql").read_text()


def sql_literal(text: str) -> str:
    """``text`` as a quoted SQL string literal, for statements that accept no ``$parameters``."""
    return "'" + text.replace("'", "''") + "'"


def _refuse_disagreement(con: duckdb.DuckDBPyConnection, table: str, name: str, value: object) -> None:
    """Raises RowsRefusedError when the column ``name`` of an arriving row differs from ``value``."""
    statement = f"SELECT count(*) FROM {ARRIVING} WHERE {name} IS DISTINCT FROM $value"
    ((n_different,),) = con.execute(statement, {"value": value}).fetchall()
    if n_different:
        raise RowsRefusedError(f"{n_different} rows for {table} have another {name} than the slice's {value!r}")


def _table(name: str) -> str:
    """``name`` (a table, or schema.table) unchanged. Raises ValueError when a part of it is not an identifier."""
    return ".".join(_identifier(part) for part in name.split(".", 1))


def _identifier(name: str) -> str:
    """``name`` unchanged. Raises ValueError unless it is lower-case letters, digits and underscores."""
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not a table or column name of the warehouse")
    return name
