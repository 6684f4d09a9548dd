"""Bringing a warehouse to this program's shape: numbered migrations, then views, then seeds.

``store.migrations`` is the ledger: one row per applied file (``migrations/…``, ``views/…``, ``seeds/…``) with the
sha256 of its text, written in the transaction that applied it. Nothing to do means nothing is written.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb

from warehouse.connect import Warehouse
from warehouse.errors import ChangedMigrationError, NewerMigrationError
from warehouse.tables import query_text

ROOM = Path(__file__).parent
SEEDED = {"seeds/universes.csv": "store.universes", "seeds/universe_members.csv": "store.universe_members"}


def migrate(warehouse: Warehouse) -> list[str]:
    """Names of the files that were applied, in order; empty when the warehouse was up to date.

    NewerMigrationError for a file from a newer program; ChangedMigrationError when an applied migration was edited.
    """
    with warehouse.write("migrate") as con:
        return upgrade(con)


def pending(warehouse: Warehouse) -> list[str]:
    """Names of the files that ``migrate`` would apply."""
    with warehouse.read() as con:
        return _due(_ledger(con), _program())


def upgrade(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the files applied to an open database, inside the caller's transaction."""
    program, ledger = _program(), _ledger(con)
    due = _due(ledger, program)
    if not due:
        return []
    for name in sorted(set(ledger) - set(program)):  # views that this program no longer has
        con.execute(f"DROP VIEW IF EXISTS main.{Path(name).stem}")
    for name in due:
        if name in SEEDED:
            _load_seed(con, SEEDED[name], ROOM / name)
        else:
            con.execute(program[name])
    con.execute(query_text("create_ledger"))
    con.execute(
        "DELETE FROM store.migrations WHERE NOT list_contains($kept, name)", {"kept": sorted(set(program) - set(due))}
    )
    con.executemany("INSERT INTO store.migrations VALUES (?, ?)", [(name, _sha256(program[name])) for name in due])
    return due


def _program() -> dict[str, str]:
    """Text of every file to apply by its name, in the order of application."""
    files = [
        *sorted(ROOM.glob("migrations/*.sql")),
        *sorted(ROOM.glob("views/*.sql")),
        *(ROOM / name for name in SEEDED),
    ]
    return {str(file.relative_to(ROOM)): file.read_text() for file in files}


def _ledger(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    found = con.execute(
        "SELECT 1 FROM duckdb_tables()"
        " WHERE database_name = current_database() AND schema_name = 'store' AND table_name = 'migrations'"
    ).fetchone()
    return dict(con.execute("SELECT name, sha256 FROM store.migrations").fetchall()) if found else {}


def _due(ledger: dict[str, str], program: dict[str, str]) -> list[str]:
    """Names to apply: missing migrations; views and seeds that changed; every view after a migration."""
    migrations = [name for name in program if name.startswith("migrations/")]
    if unknown := sorted(name for name in ledger if name.startswith("migrations/") and name not in program):
        raise NewerMigrationError(f"the warehouse has {', '.join(unknown)}, unknown here; update this program")
    for name in migrations:
        if ledger.get(name, _sha256(program[name])) != _sha256(program[name]):
            raise ChangedMigrationError(
                f"{name} was edited after it had been applied; undo the edit, add a new migration"
            )
    missing = [name for name in migrations if name not in ledger]
    rebuilt = missing or any(name not in program for name in ledger)
    return missing + [
        name
        for name, text in program.items()
        if name not in migrations and (ledger.get(name) != _sha256(text) or (rebuilt and name.startswith("views/")))
    ]


def _load_seed(con: duckdb.DuckDBPyConnection, table: str, file: Path) -> None:
    con.execute(f"DELETE FROM {table}")
    con.execute(
        f"INSERT INTO {table} BY NAME SELECT * FROM read_csv($file, header = true, all_varchar = true)",
        {"file": str(file)},
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
