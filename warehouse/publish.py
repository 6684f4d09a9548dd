"""The published copy: a read-only database beside the warehouse. It is replaced whole, so readers need no lock."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from warehouse.connect import DUCKDB_FAULTS, Warehouse, domain_errors, open_database
from warehouse.errors import NotPublishedError
from warehouse.migrate import upgrade
from warehouse.tables import query_text, read_query, sql_literal


class PublishedCopy(Warehouse):
    """The published copy of a warehouse, queried like the warehouse itself: as it is now, without a lock."""

    @contextlib.contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the copy as it is now, see ``read_published``."""
        with read_published(self) as con:
            yield con


def publish_copy(warehouse: Warehouse, source: str, universe: str) -> Path:
    """Path of the new published copy: the previous one, with the (source, universe) slice of every table as it is now.

    Tables without these columns are copied whole. Takes the warehouse's lock. The new copy is built beside the previous
    one and renamed over it: open readers keep reading the previous one, and a crash leaves it in place. Raises
    NotPublishedError while the slice's latest night is unfinished, so that only whole nights are published.
    """
    building = warehouse.published.with_suffix(".building")
    with warehouse.hold_lock(f"publish {source} {universe}"), domain_errors(building, OSError):
        _remove(building)  # left by a publish that was killed
        try:
            if warehouse.published.exists():
                shutil.copyfile(warehouse.published, building)
            with open_database(building, read_only=False) as con:
                con.execute(f"ATTACH {sql_literal(str(warehouse.path))} AS origin (READ_ONLY)")
                con.begin()
                upgrade(con)
                _copy_slice(con, {"source": source, "universe": universe})
                con.commit()
            _swap(building, warehouse.published)
        finally:
            _remove(building)
    return warehouse.published


@contextlib.contextmanager
def read_published(warehouse: Warehouse) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the published copy as it is now, without a lock.

    Raises NotPublishedError before the first publish.
    """
    if not warehouse.published.exists():
        raise NotPublishedError(f"no published copy at {warehouse.published}; run a night to its end first")
    # Attached to an empty database: within one process, connecting by path again would give the file that an earlier
    # connection still has open, not the one that has replaced it.
    with open_database(Path(":memory:"), read_only=False) as con:
        with domain_errors(warehouse.published, *DUCKDB_FAULTS):
            con.execute(f"ATTACH {sql_literal(str(warehouse.published))} AS published (READ_ONLY)")
        con.execute("USE published")
        yield con


def _copy_slice(con: duckdb.DuckDBPyConnection, keys: dict[str, object]) -> None:
    nights = read_query(con, "origin_nights", **keys)
    if not nights.num_rows or not nights["finished"][-1].as_py():
        which = f"night {nights['night'][-1]} is not finished" if nights.num_rows else "no night was begun"
        raise NotPublishedError(
            f"{keys['source']} {keys['universe']}: {which}, so the published copy stays as it was; "
            "run that night to its end"
        )
    for table, is_sliced in con.execute(query_text("origin_tables")).fetchall():
        where = " WHERE source = $source AND universe = $universe" if is_sliced else ""
        parameters = keys if is_sliced else {}
        con.execute(f"DELETE FROM {table}{where}", parameters)
        con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM origin.{table}{where}", parameters)


def _swap(building: Path, published: Path) -> None:
    """Renames the finished copy over the previous one, once its contents are on disk: only then is the rename safe."""
    building.chmod(0o444)
    _sync(building)
    building.replace(published)
    _sync(published.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(building: Path) -> None:
    for leftover in building.parent.glob(f"{building.name}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
