"""Arrow tables in and out of the warehouse, in bulk, inside the caller's transaction."""

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
    """How many rows now make the slice ``key = value AND …`` of ``table``: its old rows are gone, ``rows`` are there.

    Key columns that ``rows`` lack come from ``keys``; those they have must agree with them, or RowsRefusedError.
    """
    if not keys:
        raise ValueError(f"replace_slice of {table} needs at least one key column")
    condition = " AND ".join(f"{_identifier(key)} = ${key}" for key in keys)
    con.execute(f"DELETE FROM {_table(table)} WHERE {condition}", keys)
    return append(con, table, rows, **keys)


def append(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, **constants: object) -> int:
    """How many rows were added to ``table``, matched by column name; ``constants`` become columns of every row."""
    columns = [_identifier(column) for column in rows.column_names]
    con.register(BATCH, rows)
    try:
        for name in constants.keys() & set(columns):
            _refuse_disagreement(con, table, name, constants[name])
        added = [f"${_identifier(name)} AS {name}" for name in constants if name not in columns]
        used = {name: value for name, value in constants.items() if name not in columns}
        con.execute(f"INSERT INTO {_table(table)} BY NAME SELECT {', '.join([*columns, *added])} FROM {BATCH}", used)
    except (duckdb.BinderException, duckdb.ConstraintException, duckdb.ConversionException) as exc:
        raise RowsRefusedError(f"{rows.num_rows} rows do not fit {table}: {exc}") from exc
    finally:
        con.unregister(BATCH)
    return rows.num_rows


def upsert(
    con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, /, by: tuple[str, ...], **constants: object
) -> int:
    """How many rows were written: each replaces the row of ``table`` with the same ``by`` columns, or is added.

    ``rows`` hold each key once. A key column may be a constant.
    """
    source = {name: f"${_identifier(name)}" if name in constants else f"{BATCH}.{_identifier(name)}" for name in by}
    condition = " AND ".join(f"old.{name} = {value}" for name, value in source.items())
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
    """Rows of ``warehouse/queries/<name>.sql`` with its ``$parameters``."""
    return con.execute(query_text(name), parameters).to_arrow_table()


@lru_cache(maxsize=128)
def query_text(name: str) -> str:
    """The statement in ``warehouse/queries/<name>.sql``."""
    return (QUERIES / f"{_identifier(name)}.sql").read_text()


def _refuse_disagreement(con: duckdb.DuckDBPyConnection, table: str, name: str, value: object) -> None:
    count = con.execute(
        f"SELECT count(*) FROM {BATCH} WHERE {name} IS DISTINCT FROM $value", {"value": value}
    ).fetchone()
    if count and count[0]:
        raise RowsRefusedError(f"{count[0]} rows for {table} have another {name} than the slice's {value!r}")


def _table(name: str) -> str:
    """``schema.table`` as it is, refused when it is not a plain pair of identifiers."""
    return ".".join(_identifier(part) for part in name.split(".", 1))


def _identifier(name: str) -> str:
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not a table or column name of the warehouse")
    return name
