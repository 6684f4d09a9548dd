"""Migrations, views and seeds: applied once, all or nothing, and never behind a newer program's back."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import duckdb
import pytest

from warehouse import migrate as room
from warehouse.connect import Warehouse
from warehouse.errors import ChangedMigrationError, NewerMigrationError, WarehouseCorruptError
from warehouse.migrate import migrate, pending


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The room's SQL and seeds in a folder that the test may change, in use instead of the real one."""
    folder = tmp_path / "program"
    for part in ("migrations", "views", "seeds"):
        shutil.copytree(room.ROOM / part, folder / part)
    monkeypatch.setattr(room, "ROOM", folder)
    return folder


def rows(warehouse: Warehouse, sql: str) -> list[tuple]:
    with warehouse.read() as con:
        return con.execute(sql).fetchall()


def test_a_new_file_gets_every_migration_then_views_then_seeds(tmp_path):
    warehouse = Warehouse.at(tmp_path / "deep" / "new.duckdb")
    applied = migrate(warehouse)
    kinds = [name.split("/")[0] for name in applied]
    assert applied[0] == "migrations/0001_store.sql"
    assert kinds == sorted(kinds, key=["migrations", "views", "seeds"].index)
    assert [name for (name,) in rows(warehouse, "SELECT name FROM store.migrations ORDER BY rowid")] == applied
    assert rows(warehouse, "SELECT benchmark FROM universes WHERE universe = 'us_stocks'") == [("SPY",)]


def test_second_migrate_is_a_no_op(warehouse):
    before = warehouse.path.read_bytes(), warehouse.path.stat().st_mtime_ns
    assert migrate(warehouse) == []
    assert (warehouse.path.read_bytes(), warehouse.path.stat().st_mtime_ns) == before
    assert pending(warehouse) == []


def test_two_fresh_warehouses_hold_the_same_rows(warehouse, tmp_path):
    other = Warehouse.at(tmp_path / "other.duckdb")
    migrate(other)
    for table in ("store.migrations", "store.universes", "store.universe_members"):
        assert rows(warehouse, f"FROM {table}") == rows(other, f"FROM {table}")


def test_an_older_file_gets_what_it_lacks_and_keeps_its_rows(program, tmp_path):
    later = [file for file in (program / "migrations").glob("*.sql") if not file.name.startswith("0001")]
    newer = ("events", "features", "graph_snapshots", "signals_now", "stream_forecasts", "trades")
    views = [program / "views" / f"{name}.sql" for name in newer]
    held_back = {file: file.read_text() for file in [*later, *views]}
    for file in held_back:
        file.unlink()
    warehouse = Warehouse.at(tmp_path / "older.duckdb")
    migrate(warehouse)
    with warehouse.write("add") as con:
        con.execute("INSERT INTO store.metrics VALUES ('live', 'u', '2024-01-02', 'b', 'sharpe', 1.5, 'r')")
    for file, text in held_back.items():
        file.write_text(text)
    applied = migrate(warehouse)
    assert {f"migrations/{file.name}" for file in later} < set(applied)
    assert "views/bars.sql" in applied  # views are made again after any migration
    assert not any(name.startswith("seeds/") for name in applied)
    assert rows(warehouse, "SELECT value FROM store.metrics") == [(1.5,)]


def test_a_file_from_a_newer_program_is_refused_and_left_alone(program, tmp_path):
    (program / "migrations" / "9999_from_the_future.sql").write_text("CREATE TABLE store.novelty (a INTEGER);")
    warehouse = Warehouse.at(tmp_path / "newer.duckdb")
    migrate(warehouse)
    (program / "migrations" / "9999_from_the_future.sql").unlink()
    (program / "views" / "bars.sql").write_text("CREATE OR REPLACE VIEW main.bars AS SELECT 1 AS one;")
    before = warehouse.path.read_bytes()
    with pytest.raises(NewerMigrationError, match=r"9999_from_the_future.*update this program"):
        migrate(warehouse)
    assert warehouse.path.read_bytes() == before


def test_an_edited_migration_is_refused(program, warehouse):
    edited = program / "migrations" / "0001_store.sql"
    edited.write_text(edited.read_text().replace("volume DOUBLE", "volume FLOAT"))
    with pytest.raises(ChangedMigrationError, match=r"0001_store\.sql was edited .* add a new migration"):
        migrate(warehouse)


def test_a_migration_that_fails_leaves_no_trace(program, warehouse):
    (program / "migrations" / "9998_fine.sql").write_text("CREATE TABLE store.fine (a INTEGER);")
    (program / "migrations" / "9999_broken.sql").write_text("ALTER TABLE store.nowhere ADD COLUMN a INTEGER;")
    ledger = rows(warehouse, "FROM store.migrations")
    with pytest.raises(duckdb.CatalogException):
        migrate(warehouse)
    assert rows(warehouse, "FROM store.migrations") == ledger
    assert rows(warehouse, "SELECT 1 FROM duckdb_tables() WHERE table_name = 'fine'") == []


def test_only_the_view_whose_text_changed_is_made_again(program, warehouse):
    view = program / "views" / "trials.sql"
    view.write_text(view.read_text().replace("    seed,\n", "    seed + 100 AS seed,\n"))
    assert migrate(warehouse) == ["views/trials.sql"]
    with warehouse.write("add") as con:
        con.execute("INSERT INTO store.trials VALUES ('live', 'u', 't', 'm', 7, '{}', 1, [1], 'r')")
    assert rows(warehouse, "SELECT seed FROM trials") == [(107,)]
    assert migrate(warehouse) == []


def test_a_view_that_the_program_no_longer_has_goes_away(program, warehouse):
    (program / "views" / "step_runs.sql").unlink()
    assert migrate(warehouse)
    assert rows(warehouse, "SELECT 1 FROM duckdb_views() WHERE view_name = 'step_runs'") == []
    assert migrate(warehouse) == []


def test_a_changed_seed_replaces_its_table_whole(program, warehouse):
    header, *_ = (program / "seeds" / "universe_members.csv").read_text().splitlines()
    changed = f'{header}\nus_stocks,NEW,2024-01-02,,"Energy, mostly",,by hand\n'
    (program / "seeds" / "universe_members.csv").write_text(changed)
    assert migrate(warehouse) == ["seeds/universe_members.csv"]
    expected = ("us_stocks", "NEW", date(2024, 1, 2), None, "Energy, mostly", None, "by hand")
    columns = "universe, symbol, valid_from, valid_to, sector, industry, membership_source"
    assert rows(warehouse, f"SELECT {columns} FROM universe_members") == [expected]


MIGRATE = """
import sys
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
print(len(migrate(Warehouse.at(sys.argv[1]))))
"""


def test_processes_that_migrate_at_the_same_time_apply_everything_once(start_python, tmp_path):
    path = tmp_path / "shared.duckdb"
    processes = [start_python(MIGRATE, path) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    counts = sorted(int(output) for output, _ in outputs)
    names = rows(Warehouse.at(path), "SELECT name FROM store.migrations")
    assert counts == [0, 0, len(names)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["prices.csv", "notes.duckdb"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(name, tmp_path):
    path = tmp_path / name
    path.write_text("symbol,close\nAAPL,1\n" * 500)
    with pytest.raises(WarehouseCorruptError, match=f"{name}: not a readable DuckDB database"):
        migrate(Warehouse.at(path))
    assert path.read_text() == "symbol,close\nAAPL,1\n" * 500


def test_the_name_of_the_file_does_not_matter(tmp_path):
    warehouse = Warehouse.at(tmp_path / "it's mine.csv")
    assert migrate(warehouse)
    assert migrate(warehouse) == []
