"""The published copy: a read-only database beside the warehouse, swapped in whole, so that no reader meets a lock."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from warehouse.connect import Warehouse, opened
from warehouse.errors import NotPublishedError
from warehouse.migrate import upgrade


def publish_copy(warehouse: Warehouse, source: str, universe: str) -> Path:
    """Path of the new published copy: the old one with the (source, universe) slice of every table as it is now.

    Tables without these columns are copied whole. Takes the warehouse's lock itself. The copy is built beside the old
    one and renamed over it: whoever has the old file open keeps reading it, and a crash leaves it in place.
    NotPublishedError while the slice's latest night is unfinished, so that a half night never gets out.
    """
    building = warehouse.published.with_suffix(".building")
    with warehouse.locked(f"publish {source} {universe}"):
        for leftover in building.parent.glob(f"{building.name}*"):  # of a publish that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if warehouse.published.exists():
            shutil.copyfile(warehouse.published, building)
        with opened(building, read_only=False) as con:
            con.execute(f"ATTACH {_quoted(warehouse.path)} AS origin (READ_ONLY)")
            _refuse_half_night(con, source, universe)
            con.begin()
            upgrade(con)
            _copy_slice(con, source, universe)
            con.commit()
        building.chmod(0o444)
        _sync(building)
        building.replace(warehouse.published)
        _sync(building.parent)
    return warehouse.published


@contextlib.contextmanager
def read_published(warehouse: Warehouse) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the published copy as it is now, without a lock; NotPublishedError before the first publish."""
    if not warehouse.published.exists():
        raise NotPublishedError(f"no published copy at {warehouse.published}; run a night to its end first")
    # Attached to a database of its own: within one process, connecting by path again would give the file that an
    # earlier connection still has open, not the one that was swapped in since.
    with opened(Path(":memory:"), read_only=False) as con:
        con.execute(f"ATTACH {_quoted(warehouse.published)} AS published (READ_ONLY)")
        con.execute("USE published")
        yield con


def _refuse_half_night(con: duckdb.DuckDBPyConnection, source: str, universe: str) -> None:
    latest = con.execute(
        "SELECT night, published_at IS NOT NULL FROM origin.store.nights"
        " WHERE source = $source AND universe = $universe ORDER BY night DESC LIMIT 1",
        {"source": source, "universe": universe},
    ).fetchone()
    if latest is None or not latest[1]:
        which = (
            f"night {latest[0]} of {source} {universe} is" if latest else f"{source} {universe} has no night that is"
        )
        raise NotPublishedError(f"{which} finished; run it to its end, the published copy stays as it was")


def _copy_slice(con: duckdb.DuckDBPyConnection, source: str, universe: str) -> None:
    tables = con.execute(
        "SELECT schema_name || '.' || table_name, list_has_all(list(column_name), ['source', 'universe'])"
        " FROM duckdb_columns() WHERE database_name = 'origin' AND schema_name IN ('raw', 'store')"
        " AND table_name <> 'migrations' GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    for table, sliced in tables:
        where, keys = ("", {})
        if sliced:
            where, keys = " WHERE source = $source AND universe = $universe", {"source": source, "universe": universe}
        con.execute(f"DELETE FROM {table}{where}", keys)
        con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM origin.{table}{where}", keys)


def _sync(path: Path) -> None:
    """Flushed to disk, file or folder, so that the rename never outlives the contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"  # ATTACH takes no parameters
