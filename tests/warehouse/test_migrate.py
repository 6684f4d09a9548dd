"""Migrations, views and seeds are applied once, all or nothing, and never to a warehouse of a newer program."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import pytest

from warehouse import migrate as migrate_module
from warehouse.connect import Warehouse
from warehouse.errors import ChangedMigrationError, NewerMigrationError, WarehouseCorruptError
from warehouse.migrate import migrate, pending_files


@pytest.fixture
def sql_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of SQL files and seeds; tests may change it, and ``migrate`` reads it instead."""
    folder = tmp_path / "program"
    for name in ("migrations", "views", "seeds"):
        shutil.copytree(migrate_module.WAREHOUSE_FOLDER / name, folder / name)
    monkeypatch.setattr(migrate_module, "WAREHOUSE_FOLDER", folder)
    return folder


def select(warehouse: Warehouse, sql: str) -> list[tuple]:
    """All rows of a statement."""
    with warehouse.read() as con:
        return con.execute(sql).fetchall()


def test_a_new_warehouse_gets_migrations_then_views_then_seeds(tmp_path: Path) -> None:
    warehouse = Warehouse.from_url(tmp_path / "deep" / "new.duckdb")
    applied = migrate(warehouse)
    folders = [name.split("/")[0] for name in applied]
    assert applied[0] == "migrations/0001_store.sql"
    assert folders == sorted(folders, key=["migrations", "views", "seeds"].index)
    assert [name for (name,) in select(warehouse, "SELECT name FROM store.migrations ORDER BY rowid")] == applied
    assert select(warehouse, "SELECT benchmark FROM universes WHERE universe = 'us_stocks'") == [("SPY",)]


def test_a_second_migration_does_not_change_the_file(warehouse: Warehouse) -> None:
    bytes_before = warehouse.path.read_bytes()
    modified_before = warehouse.path.stat().st_mtime_ns
    assert migrate(warehouse) == []
    assert warehouse.path.read_bytes() == bytes_before
    assert warehouse.path.stat().st_mtime_ns == modified_before
    assert pending_files(warehouse) == []


def test_two_new_warehouses_have_the_same_rows(warehouse: Warehouse, tmp_path: Path) -> None:
    other = Warehouse.from_url(tmp_path / "other.duckdb")
    migrate(other)
    for table in ("store.migrations", "store.universes", "store.universe_members"):
        assert select(warehouse, f"FROM {table}") == select(other, f"FROM {table}")


def views_that_need_later_migrations(sql_folder: Path, first_migration: Path) -> list[Path]:
    """The view files that cannot be applied after the first migration alone."""
    views = []
    with duckdb.connect() as con:
        con.execute(first_migration.read_text())
        for file in (sql_folder / "views").glob("*.sql"):
            try:
                con.execute(file.read_text())
            except duckdb.Error:
                views.append(file)
    return views


def test_an_older_warehouse_gets_the_missing_files_and_keeps_its_rows(sql_folder: Path, tmp_path: Path) -> None:
    first, *later = sorted((sql_folder / "migrations").glob("*.sql"))
    views = views_that_need_later_migrations(sql_folder, first)
    assert {"features", "signals_now", "stream_forecasts"} <= {file.stem for file in views}
    held_back = {file: file.read_text() for file in [*later, *views]}
    for file in held_back:
        file.unlink()
    warehouse = Warehouse.from_url(tmp_path / "older.duckdb")
    migrate(warehouse)
    with warehouse.write("add") as con:
        con.execute(
            "INSERT INTO store.metrics BY NAME SELECT 'live' AS source, 'u' AS universe, '2024-01-02' AS night,"
            " 'b' AS backtest_id, 'sharpe' AS metric, 1.5 AS value, 'r' AS run_id"
        )
    for file, text in held_back.items():
        file.write_text(text)
    applied = migrate(warehouse)
    assert {f"migrations/{file.name}" for file in later} < set(applied)
    assert {f"views/{file.name}" for file in views} < set(applied)
    assert "views/bars.sql" in applied  # every view is applied again after a migration
    assert not any(name.startswith("seeds/") for name in applied)
    assert select(warehouse, "SELECT value FROM store.metrics") == [(1.5,)]


def test_a_warehouse_of_a_newer_program_is_refused_and_not_changed(sql_folder: Path, tmp_path: Path) -> None:
    (sql_folder / "migrations" / "9999_from_the_future.sql").write_text("CREATE TABLE store.novelty (a INTEGER);")
    warehouse = Warehouse.from_url(tmp_path / "newer.duckdb")
    migrate(warehouse)
    (sql_folder / "migrations" / "9999_from_the_future.sql").unlink()
    (sql_folder / "views" / "bars.sql").write_text("CREATE OR REPLACE VIEW main.bars AS SELECT 1 AS one;")
    bytes_before = warehouse.path.read_bytes()
    with pytest.raises(NewerMigrationError, match=r"9999_from_the_future.*update this program"):
        migrate(warehouse)
    assert warehouse.path.read_bytes() == bytes_before


def test_an_edited_migration_is_refused(sql_folder: Path, warehouse: Warehouse) -> None:
    edited = sql_folder / "migrations" / "0001_store.sql"
    edited.write_text(edited.read_text().replace("volume DOUBLE", "volume FLOAT"))
    with pytest.raises(ChangedMigrationError, match=r"0001_store\.sql was edited .* add a new migration"):
        migrate(warehouse)


def test_a_migration_that_fails_changes_nothing(sql_folder: Path, warehouse: Warehouse) -> None:
    (sql_folder / "migrations" / "9998_fine.sql").write_text("CREATE TABLE store.fine (a INTEGER);")
    (sql_folder / "migrations" / "9999_broken.sql").write_text("ALTER TABLE store.nowhere ADD COLUMN a INTEGER;")
    applied = select(warehouse, "FROM store.migrations")
    with pytest.raises(duckdb.CatalogException):
        migrate(warehouse)
    assert select(warehouse, "FROM store.migrations") == applied
    assert select(warehouse, "SELECT 1 FROM duckdb_tables() WHERE table_name = 'fine'") == []


def test_only_the_view_whose_text_changed_is_applied_again(sql_folder: Path, warehouse: Warehouse) -> None:
    view = sql_folder / "views" / "trials.sql"
    view.write_text(view.read_text().replace("    seed,\n", "    seed + 100 AS seed,\n"))
    assert migrate(warehouse) == ["views/trials.sql"]
    with warehouse.write("add") as con:
        con.execute(
            "INSERT INTO store.trials BY NAME SELECT 'live' AS source, 'u' AS universe, 't' AS trial_id, 'm' AS model,"
            " 7 AS seed, '{}' AS spec, 1 AS parameters, [1] AS horizons_bars, 'r' AS run_id"
        )
    assert select(warehouse, "SELECT seed FROM trials") == [(107,)]
    assert migrate(warehouse) == []


def test_a_view_is_applied_again_after_a_view_that_it_reads(sql_folder: Path, warehouse: Warehouse) -> None:
    view = sql_folder / "views" / "stream_forecasts.sql"
    view.write_text(
        view.read_text().replace("    made_at,\n", "").replace("    run_id\n", "    run_id,\n    made_at\n")
    )
    assert migrate(warehouse) == ["views/stream_forecasts.sql", "views/signals_now.sql"]
    columns = select(warehouse, "SELECT column_name FROM duckdb_columns() WHERE table_name = 'signals_now'")
    assert columns[-1] == ("made_at",)
    assert migrate(warehouse) == []


def comments(warehouse: Warehouse, view: str) -> dict[str, str]:
    """Column name → comment of one view; the key ``""`` has the comment of the view itself."""
    columns = f"SELECT column_name, comment FROM duckdb_columns() WHERE schema_name = 'main' AND table_name = '{view}'"
    relation = f"SELECT '', comment FROM duckdb_views() WHERE schema_name = 'main' AND view_name = '{view}'"
    return dict(select(warehouse, f"{columns} UNION ALL {relation}"))


def test_a_view_inherits_the_comments_of_its_source_except_where_it_has_its_own(
    sql_folder: Path, warehouse: Warehouse
) -> None:
    (sql_folder / "migrations" / "9999_comments.sql").write_text(
        "COMMENT ON TABLE store.trials IS 'It''s new'; COMMENT ON COLUMN store.trials.seed IS 'New seed';"
    )
    view = sql_folder / "views" / "trials.sql"
    view.write_text(f"{view.read_text()}COMMENT ON COLUMN main.trials.model IS 'Own';")
    comments_before = comments(warehouse, "trials")
    migrate(warehouse)
    assert comments(warehouse, "trials") == comments_before | {"": "It's new", "seed": "New seed", "model": "Own"}


def test_a_view_of_a_view_inherits_comments_too(warehouse: Warehouse) -> None:
    inherited = comments(warehouse, "stream_forecasts")
    assert comments(warehouse, "signals_now") | {"": None} == inherited | {"": None}
    assert all(inherited.values())


def test_a_view_that_the_program_no_longer_has_is_dropped(sql_folder: Path, warehouse: Warehouse) -> None:
    (sql_folder / "views" / "step_runs.sql").unlink()
    assert migrate(warehouse)
    assert select(warehouse, "SELECT 1 FROM duckdb_views() WHERE view_name = 'step_runs'") == []
    assert migrate(warehouse) == []


def test_a_changed_seed_replaces_all_rows_of_its_table(sql_folder: Path, warehouse: Warehouse) -> None:
    header, *_ = (sql_folder / "seeds" / "universe_members.csv").read_text().splitlines()
    changed = f'{header}\nus_stocks,NEW,2024-01-02,,"Energy, mostly",,by hand\n'
    (sql_folder / "seeds" / "universe_members.csv").write_text(changed)
    assert migrate(warehouse) == ["seeds/universe_members.csv"]
    expected = ("us_stocks", "NEW", date(2024, 1, 2), None, "Energy, mostly", None, "by hand")
    columns = "universe, symbol, valid_from, valid_to, sector, industry, membership_source"
    assert select(warehouse, f"SELECT {columns} FROM universe_members") == [expected]


MIGRATE_AND_PRINT_COUNT = """
import sys
from warehouse.connect import Warehouse
from warehouse.migrate import migrate
print(len(migrate(Warehouse.from_url(sys.argv[1]))))
"""


def test_processes_that_migrate_at_the_same_time_apply_everything_once(
    start_python: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "shared.duckdb"
    processes = [start_python(MIGRATE_AND_PRINT_COUNT, path) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    n_applied = sorted(int(output) for output, _ in outputs)
    names = select(Warehouse.from_url(path), "SELECT name FROM store.migrations")
    assert n_applied == [0, 0, len(names)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["prices.csv", "notes.duckdb"])
def test_a_file_that_is_no_database_is_refused_and_not_changed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("symbol,close\nAAPL,1\n" * 500)
    with pytest.raises(WarehouseCorruptError, match=f"{name}: not a readable DuckDB database"):
        migrate(Warehouse.from_url(path))
    assert path.read_text() == "symbol,close\nAAPL,1\n" * 500


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    warehouse = Warehouse.from_url(tmp_path / "it's mine.csv")
    assert migrate(warehouse)
    assert migrate(warehouse) == []
