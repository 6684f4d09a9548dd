"""Bringing a warehouse up to date with this program: numbered migrations, then views, then seeds.

``store.migrations`` has one row per applied file (``migrations/…``, ``views/…``, ``seeds/…``) with the sha256 of its
text, written in the transaction that applied the file. A warehouse that is up to date is not written to.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb

from warehouse.connect import Warehouse
from warehouse.errors import ChangedMigrationError, NewerMigrationError
from warehouse.tables import query_text
from warehouse.view_files import dependency_order, inherit_comments, view_dependencies, view_name

ROOM = Path(__file__).parent
SEEDED = {"seeds/universes.csv": "store.universes", "seeds/universe_members.csv": "store.universe_members"}


def migrate(warehouse: Warehouse) -> list[str]:
    """Names of the files that were applied, in order; empty when the warehouse was up to date.

    Raises NewerMigrationError for a file from a newer program, ChangedMigrationError when an applied migration was
    edited.
    """
    with warehouse.write("migrate") as con:
        return upgrade(con)


def pending(warehouse: Warehouse) -> list[str]:
    """Names of the files that ``migrate`` would apply."""
    with warehouse.read() as con:
        return _due(_applied(con), _program())


def upgrade(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the files applied to an open database, inside the caller's transaction."""
    program = _program()
    applied = _applied(con)
    due = _due(applied, program)
    if not due:
        return []
    for name in sorted(set(applied) - set(program)):  # views that this program no longer has
        con.execute(f"DROP VIEW IF EXISTS {view_name(name)}")
    for name in due:
        if name in SEEDED:
            _load_seed(con, SEEDED[name], ROOM / name)
        else:
            con.execute(program[name])
    inherit_comments(con, _views({name: program[name] for name in due}))
    con.execute(query_text("create_migrations_table"))
    con.execute(
        "DELETE FROM store.migrations WHERE NOT list_contains($unchanged, name)",
        {"unchanged": sorted(set(program) - set(due))},
    )
    con.executemany("INSERT INTO store.migrations VALUES (?, ?)", [(name, _sha256(program[name])) for name in due])
    return due


def _program() -> dict[str, str]:
    """Text of every file to apply by its name, in the order of application."""
    migrations = _read_files(sorted(ROOM.glob("migrations/*.sql")))
    views = _read_files(sorted(ROOM.glob("views/*.sql")))
    seeds = _read_files([ROOM / name for name in SEEDED])
    return {**migrations, **{name: views[name] for name in dependency_order(views)}, **seeds}


def _read_files(files: list[Path]) -> dict[str, str]:
    return {str(file.relative_to(ROOM)): file.read_text() for file in files}


def _views(files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if name.startswith("views/")}


def _applied(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """sha256 of every applied file by its name; empty for a new database."""
    has_table = con.execute(
        "SELECT 1 FROM duckdb_tables()"
        " WHERE database_name = current_database() AND schema_name = 'store' AND table_name = 'migrations'"
    ).fetchone()
    return dict(con.execute("SELECT name, sha256 FROM store.migrations").fetchall()) if has_table else {}


def _due(applied: dict[str, str], program: dict[str, str]) -> list[str]:
    """Names to apply: migrations not applied yet; views and seeds that changed, and views that read a changed view.

    Every view is made again after a migration, and after a view was removed.
    """
    migrations = [name for name in program if name.startswith("migrations/")]
    if unknown := sorted(name for name in applied if name.startswith("migrations/") and name not in program):
        raise NewerMigrationError(f"the warehouse has {', '.join(unknown)}, unknown here; update this program")
    for name in migrations:
        if applied.get(name, _sha256(program[name])) != _sha256(program[name]):
            raise ChangedMigrationError(
                f"{name} was edited after it had been applied; undo the edit, add a new migration"
            )
    due = [name for name in migrations if name not in applied]
    all_views = bool(due) or any(name not in program for name in applied)
    dependencies = view_dependencies(_views(program))
    for name, text in program.items():
        if name in migrations:
            continue
        is_changed = applied.get(name) != _sha256(text) or any(view in due for view in dependencies.get(name, []))
        if is_changed or (all_views and name in dependencies):
            due.append(name)
    return due


def _load_seed(con: duckdb.DuckDBPyConnection, table: str, file: Path) -> None:
    con.execute(f"DELETE FROM {table}")
    con.execute(
        f"INSERT INTO {table} BY NAME SELECT * FROM read_csv($file, header = true, all_varchar = true)",
        {"file": str(file)},
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
