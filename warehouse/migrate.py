"""Updates a warehouse to the SQL files of this program: numbered migrations, then views, then seeds (CSV files).

``store.migrations`` has one row per applied file (``migrations/…``, ``views/…``, ``seeds/…``) with the sha256 of its
text. The transaction that applies a file also writes its row. A warehouse that is up to date is not written to.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb

from warehouse.connect import Warehouse
from warehouse.errors import ChangedMigrationError, NewerMigrationError
from warehouse.tables import query_text
from warehouse.view_files import dependency_order, inherit_comments, view_dependencies, view_name

WAREHOUSE_FOLDER = Path(__file__).parent
SEED_TABLES = {"seeds/universes.csv": "store.universes", "seeds/universe_members.csv": "store.universe_members"}


def migrate(warehouse: Warehouse) -> list[str]:
    """Applies the files that the warehouse lacks. Returns their names in order, none when it was up to date.

    Creates a missing warehouse. Raises NewerMigrationError when a newer program has written to the warehouse, and
    ChangedMigrationError when an applied migration was edited.
    """
    with warehouse.write("migrate") as con:
        return upgrade(con)


def pending_files(warehouse: Warehouse) -> list[str]:
    """Names of the files that ``migrate`` would apply. Raises its errors, and WarehouseMissingError."""
    with warehouse.read() as con:
        return _files_to_apply(_applied_hashes(con), _program_files())


def upgrade(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Like ``migrate``, but on an open database and inside the caller's transaction."""
    program_texts = _program_files()
    applied_hashes = _applied_hashes(con)
    names = _files_to_apply(applied_hashes, program_texts)
    if not names:
        return []
    for name in sorted(set(applied_hashes) - set(program_texts)):  # views of an older program that this one lacks
        con.execute(f"DROP VIEW IF EXISTS {view_name(name)}")
    for name in names:
        if name in SEED_TABLES:
            _load_seed(con, SEED_TABLES[name], WAREHOUSE_FOLDER / name)
        else:
            con.execute(program_texts[name])
    inherit_comments(con, _view_files({name: program_texts[name] for name in names}))
    con.execute(query_text("create_migrations_table"))
    con.execute(
        "DELETE FROM store.migrations WHERE NOT list_contains($unchanged, name)",
        {"unchanged": sorted(set(program_texts) - set(names))},
    )
    hashes = [(name, _sha256(program_texts[name])) for name in names]
    con.executemany("INSERT INTO store.migrations VALUES (?, ?)", hashes)
    return names


def _program_files() -> dict[str, str]:
    """File name → text of every file of this program, in the order of application."""
    migrations = _read_files(sorted(WAREHOUSE_FOLDER.glob("migrations/*.sql")))
    views = _read_files(sorted(WAREHOUSE_FOLDER.glob("views/*.sql")))
    seeds = _read_files([WAREHOUSE_FOLDER / name for name in SEED_TABLES])
    return {**migrations, **{name: views[name] for name in dependency_order(views)}, **seeds}


def _read_files(files: list[Path]) -> dict[str, str]:
    return {str(file.relative_to(WAREHOUSE_FOLDER)): file.read_text() for file in files}


def _view_files(files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if name.startswith("views/")}


def _applied_hashes(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """File name → sha256 of every applied file; empty for a new database."""
    has_table = con.execute(
        "SELECT 1 FROM duckdb_tables()"
        " WHERE database_name = current_database() AND schema_name = 'store' AND table_name = 'migrations'"
    ).fetchone()
    return dict(con.execute("SELECT name, sha256 FROM store.migrations").fetchall()) if has_table else {}


def _files_to_apply(applied_hashes: dict[str, str], program_texts: dict[str, str]) -> list[str]:
    """Names of the files to apply, in the order of ``program_texts``.

    These are the migrations that were not applied yet, the views and seeds whose text changed, and the views that read
    a view in the list. A new migration or a removed view adds every view. ``applied_hashes`` maps names to sha256,
    ``program_texts`` maps names to texts.
    """
    migrations = [name for name in program_texts if name.startswith("migrations/")]
    if unknown := sorted(
        name for name in applied_hashes if name.startswith("migrations/") and name not in program_texts
    ):
        raise NewerMigrationError(f"the warehouse has {', '.join(unknown)}, unknown here; update this program")
    for name in migrations:
        if applied_hashes.get(name, _sha256(program_texts[name])) != _sha256(program_texts[name]):
            raise ChangedMigrationError(
                f"{name} was edited after it had been applied; undo the edit, add a new migration"
            )
    names = [name for name in migrations if name not in applied_hashes]
    needs_all_views = bool(names) or any(name not in program_texts for name in applied_hashes)
    dependencies = view_dependencies(_view_files(program_texts))
    for name, text in program_texts.items():
        if name in migrations:
            continue
        is_changed = applied_hashes.get(name) != _sha256(text) or any(
            view in names for view in dependencies.get(name, [])
        )
        if is_changed or (needs_all_views and name in dependencies):
            names.append(name)
    return names


def _load_seed(con: duckdb.DuckDBPyConnection, table: str, file: Path) -> None:
    """Replaces all rows of ``table`` by those of a CSV file."""
    con.execute(f"DELETE FROM {table}")
    con.execute(
        f"INSERT INTO {table} BY NAME SELECT * FROM read_csv($file, header = true, all_varchar = true)",
        {"file": str(file)},
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
