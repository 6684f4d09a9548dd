"""Reading and writing the warehouse's tables as Arrow tables, in bulk, inside the caller's transaction."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import duckdb
import pyarrow as pa

from warehouse.errors import RowsRefusedError

QUERIES = Path(__file__).parent / "queries"
IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")
BATCH = "arriving_rows"


def replace_slice(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, **keys: object) -> int:
    """How many rows were written: ``rows`` replace the slice ``key = value AND …`` of ``table``.

    Key columns that ``rows`` lack come from ``keys``. Raises RowsRefusedError when one that they have differs from it.
    """
    if not keys:
        raise ValueError(f"replace_slice of {table} needs at least one key column")
    condition = " AND ".join(f"{_identifier(key)} = ${key}" for key in keys)
    con.execute(f"DELETE FROM {_table(table)} WHERE {condition}", keys)
    return append(con, table, rows, **keys)


def append(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, **constants: object) -> int:
    """How many rows were added to ``table``, matched by column name; ``constants`` become columns of every row.

    Raises RowsRefusedError when they do not fit the table; then none is written.
    """
    columns = [_identifier(column) for column in rows.column_names]
    con.register(BATCH, rows)
    try:
        for name in constants.keys() & set(columns):
            _refuse_disagreement(con, table, name, constants[name])
        parameters = {name: value for name, value in constants.items() if name not in columns}
        selected = [*columns, *(f"${_identifier(name)} AS {name}" for name in parameters)]
        con.execute(f"INSERT INTO {_table(table)} BY NAME SELECT {', '.join(selected)} FROM {BATCH}", parameters)
    except (duckdb.BinderException, duckdb.ConstraintException, duckdb.ConversionException) as exc:
        raise RowsRefusedError(f"{rows.num_rows} rows do not fit {table}: {exc}") from exc
    finally:
        con.unregister(BATCH)
    return rows.num_rows


def upsert(
    con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, by: tuple[str, ...], **constants: object
) -> int:
    """How many rows were written: each replaces the row of ``table`` with the same ``by`` columns, or is added.

    ``rows`` contain each key once. A key column may be a constant.
    """
    key_values = {name: f"${_identifier(name)}" if name in constants else f"{BATCH}.{_identifier(name)}" for name in by}
    condition = " AND ".join(f"old.{name} = {value}" for name, value in key_values.items())
    con.register(BATCH, rows)
    try:
        con.execute(
            f"DELETE FROM {_table(table)} AS old USING {BATCH} WHERE {condition}",
            {name: constants[name] for name in by if name in constants},
        )
    finally:
        con.unregister(BATCH)
    return append(con, table, rows, **constants)


def read_query(con: duckdb.DuckDBPyConnection, name: str, /, **parameters: object) -> pa.Table:
    """Rows of the statement in ``warehouse/queries/<name>.sql``, run with its ``$parameters``."""
    return con.execute(query_text(name), parameters).to_arrow_table()


@lru_cache(maxsize=128)
def query_text(name: str) -> str:
    """The statement in ``warehouse/queries/<name>.sql``."""
    return (QUERIES / f"{_identifier(name)}.sql").read_text()


def sql_literal(text: str) -> str:
    """``text`` as an SQL string, for statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def _refuse_disagreement(con: duckdb.DuckDBPyConnection, table: str, name: str, value: object) -> None:
    count = con.execute(
        f"SELECT count(*) FROM {BATCH} WHERE {name} IS DISTINCT FROM $value", {"value": value}
    ).fetchone()
    if count and count[0]:
        raise RowsRefusedError(f"{count[0]} rows for {table} have another {name} than the slice's {value!r}")


def _table(name: str) -> str:
    """``name`` (``schema.table``) unchanged. Raises ValueError when a part of it is not an identifier."""
    return ".".join(_identifier(part) for part in name.split(".", 1))


def _identifier(name: str) -> str:
    """``name`` unchanged. Raises ValueError when it is not an identifier."""
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not a table or column name of the warehouse")
    return name
