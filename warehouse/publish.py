"""The published copy: a read-only database beside the warehouse, swapped in whole, so that no reader meets a lock."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from warehouse.connect import DUCKDB_FAULTS, Warehouse, domain_errors, opened
from warehouse.errors import NotPublishedError
from warehouse.migrate import upgrade
from warehouse.tables import query_text, read_query


class PublishedCopy(Warehouse):
    """The published copy of a warehouse, to be queried in its place: as it is now, and without a lock."""

    @contextlib.contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """``read_published``."""
        with read_published(self) as con:
            yield con


def publish_copy(warehouse: Warehouse, source: str, universe: str) -> Path:
    """Path of the published copy: the one before, with the (source, universe) slice of every table as it is now.

    Tables without these columns are copied whole. Takes the warehouse's lock itself. The copy is built beside the one
    before and renamed over it: whoever has that open keeps reading it, and a crash leaves it in place.
    NotPublishedError while the slice's latest night is unfinished, so that no half night gets out.
    """
    building = warehouse.published.with_suffix(".building")
    with warehouse.locked(f"publish {source} {universe}"), domain_errors(building, OSError):
        _clear(building)  # of a publish that was killed
        try:
            if warehouse.published.exists():
                shutil.copyfile(warehouse.published, building)
            with opened(building, read_only=False) as con:
                con.execute(f"ATTACH {_quoted(warehouse.path)} AS origin (READ_ONLY)")
                con.begin()
                upgrade(con)
                _copy_slice(con, {"source": source, "universe": universe})
                con.commit()
            _swap(building, warehouse.published)
        finally:
            _clear(building)
    return warehouse.published


@contextlib.contextmanager
def read_published(warehouse: Warehouse) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the published copy as it is now, without a lock; NotPublishedError before the first publish."""
    if not warehouse.published.exists():
        raise NotPublishedError(f"no published copy at {warehouse.published}; run a night to its end first")
    # Attached to a database of its own: within one process, connecting by path again would give the file that an
    # earlier connection still has open, not the one that was swapped in since.
    with opened(Path(":memory:"), read_only=False) as con:
        with domain_errors(warehouse.published, *DUCKDB_FAULTS):
            con.execute(f"ATTACH {_quoted(warehouse.published)} AS published (READ_ONLY)")
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
    for table, sliced in con.execute(query_text("origin_tables")).fetchall():
        where, values = (" WHERE source = $source AND universe = $universe", keys) if sliced else ("", {})
        con.execute(f"DELETE FROM {table}{where}", values)
        con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM origin.{table}{where}", values)


def _swap(building: Path, published: Path) -> None:
    """Puts the finished copy in place of the one before; only its contents' being on disk makes the rename safe."""
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


def _clear(building: Path) -> None:
    for leftover in building.parent.glob(f"{building.name}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"  # ATTACH takes no parameters
