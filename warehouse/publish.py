"""The published copy: a read-only database beside the warehouse, for analysts.

Every publish replaces the file as a whole, so readers need no lock. A night is the run for one as-of date, source and
universe. A slice is the rows of one source and universe.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from warehouse.connect import DUCKDB_FAULTS, Warehouse, open_database, translate_errors
from warehouse.errors import NotPublishedError
from warehouse.migrate import upgrade
from warehouse.tables import query_text, read_query, sql_literal


class PublishedCopy(Warehouse):
    """The published copy of a warehouse with the interface of a Warehouse; reading it takes no lock."""

    @contextlib.contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the newest copy, see ``read_published``."""
        with read_published(self) as con:
            yield con


def publish_copy(warehouse: Warehouse, source: str, universe: str) -> Path:
    """Replaces the published copy and returns its path.

    The new copy is the previous one with one slice of every table replaced from the warehouse. Tables without the
    columns source and universe are replaced whole. Holds the warehouse's lock. The new copy is built beside the
    previous one and then renamed over it. Open readers keep reading the previous copy, and a crash leaves it in place.
    Raises NotPublishedError while the latest night of the slice is not finished, so that only finished nights are
    published.
    """
    building = warehouse.published.with_suffix(".building")
    with warehouse.hold_lock(f"publish {source} {universe}"), translate_errors(building, OSError):
        _remove(building)  # a killed publish leaves this file
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
    """A connection to the newest published copy, without a lock.

    Raises NotPublishedError when no copy exists yet, WarehouseCorruptError for a damaged copy.
    """
    if not warehouse.published.exists():
        raise NotPublishedError(f"no published copy at {warehouse.published}; run a night to its end first")
    # The copy is attached to an empty database. Connecting by path would return, within one process, the old file that
    # an earlier connection still has open, and not the file that has replaced it.
    with open_database(Path(":memory:"), read_only=False) as con:
        with translate_errors(warehouse.published, *DUCKDB_FAULTS):
            con.execute(f"ATTACH {sql_literal(str(warehouse.published))} AS published (READ_ONLY)")
        con.execute("USE published")
        yield con


def _copy_slice(con: duckdb.DuckDBPyConnection, keys: dict[str, object]) -> None:
    """Replaces the rows of one slice by the rows of the attached database ``origin``.

    ``keys`` are the source and universe of the slice.
    """
    nights = read_query(con, "origin_nights", **keys)
    is_finished = bool(nights.num_rows) and nights["finished"][-1].as_py()
    if not is_finished:
        reason = f"night {nights['night'][-1]} is not finished" if nights.num_rows else "no night was begun"
        raise NotPublishedError(
            f"{keys['source']} {keys['universe']}: {reason}, so the published copy stays as it was; "
            "run that night to its end"
        )
    for table, is_sliced in con.execute(query_text("origin_tables")).fetchall():
        where = " WHERE source = $source AND universe = $universe" if is_sliced else ""
        parameters = keys if is_sliced else {}
        con.execute(f"DELETE FROM {table}{where}", parameters)
        con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM origin.{table}{where}", parameters)


def _swap(building: Path, published: Path) -> None:
    """Renames the finished copy over the previous one, after its contents are on disk: a crash must not lose both."""
    building.chmod(0o444)
    _sync(building)
    building.replace(published)
    _sync(published.parent)


def _sync(path: Path) -> None:
    """Waits until the contents of a file or folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(building: Path) -> None:
    """Removes the unfinished copy and the files that DuckDB keeps beside it."""
    for leftover in building.parent.glob(f"{building.name}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
