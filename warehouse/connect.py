"""Connections to the warehouse: one DuckDB file that one process at a time may open.

While one process writes, DuckDB refuses all other processes, readers too. Therefore each access first acquires an
inter-process lock, and a waiting process logs which process holds it. The operating system releases the lock when its
holder dies. Analysts read the published copy instead: a read-only file that each finished night replaces as a whole
(``warehouse/publish.py``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout

from warehouse.errors import (
    NewerMigrationError,
    UnsupportedUrlError,
    WarehouseCorruptError,
    WarehouseError,
    WarehouseFullError,
    WarehouseLockedError,
    WarehouseMissingError,
)
from warehouse.tables import read_query

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 300.0
FIRST_WAIT_LOG_S = 1.0
WAIT_LOG_EVERY_S = 10.0

DUCKDB_FAULTS: tuple[type[Exception], ...] = (
    duckdb.IOException,
    duckdb.FatalException,
    duckdb.ConnectionException,
    duckdb.SerializationException,
    duckdb.TransactionException,
)
RESTORE_ADVICE = "not a readable DuckDB database; move it away and put its published copy or a backup in its place"
# Faults of DuckDB differ only in their text. Each entry: error class to raise, texts of the fault, advice.
FAULT_TRANSLATIONS: tuple[tuple[type[WarehouseError], tuple[str, ...], str], ...] = (
    (
        WarehouseFullError,
        ("No space left on device", "File too large", "Disk quota exceeded"),
        "the disk is full; nothing of this was written, what was there before is readable. Free space, run again",
    ),
    (
        WarehouseLockedError,
        ("Could not set lock on file", "with a different configuration than existing connections"),
        "another program has the file open without the warehouse's lock; close it there, or read the published copy",
    ),
    (
        WarehouseError,
        ("Permission denied", "Read-only file system", "Not a directory", "File exists"),
        "no right to write here; give --warehouse a path in a folder of yours, or read the published copy",
    ),
    (
        NewerMigrationError,
        ("Trying to read a database file with version number",),
        "the file was written by a newer DuckDB; update this program",
    ),
    (
        WarehouseCorruptError,
        ("not a valid DuckDB database", "Could not read enough bytes", "Corrupt", "checksum", "Is a directory"),
        RESTORE_ADVICE,
    ),
)


@dataclass(frozen=True)
class Warehouse:
    """One DuckDB file and the files beside it; ``lock_timeout_s`` is the longest wait for its lock."""

    path: Path
    lock_timeout_s: float = LOCK_TIMEOUT_S

    @classmethod
    def from_url(cls, url_or_file: str | Path) -> Warehouse:
        """The warehouse at a path or ``duckdb://`` URL (``duckdb:///data/w.duckdb`` is ``/data/w.duckdb``).

        Raises UnsupportedUrlError for another scheme or an empty path.
        """
        text = str(url_or_file).removeprefix("duckdb://")
        if not text or ":" in text.partition("/")[0]:
            raise UnsupportedUrlError(f"{url_or_file!s}: give the path of a DuckDB file, or duckdb:///path")
        return cls(Path(text).expanduser().resolve())

    @property
    def published(self) -> Path:
        """Path of the read-only copy for analysts."""
        return self.path.with_name(f"{self.path.stem}.published.duckdb")

    @property
    def artifacts(self) -> Path:
        """Path of the folder of model files."""
        return self.path.with_name(f"{self.path.stem}.artifacts")

    @contextlib.contextmanager
    def write(self, purpose: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection inside one transaction: committed at the end of the block, rolled back on any error.

        Acquires the lock first; other processes that wait for it log ``purpose``. Creates a missing file. Raises
        WarehouseLockedError after ``lock_timeout_s``, and the errors of ``open_database``.
        """
        with self.hold_lock(purpose), open_database(self.path, read_only=False) as con:
            con.begin()
            try:
                yield con
                con.commit()
            except BaseException:
                with contextlib.suppress(duckdb.Error):  # a fatal error has already ended the transaction
                    con.rollback()
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection under the same lock as ``write``.

        Fetch rows inside the block and compute after it, because the block holds the lock. Raises
        WarehouseMissingError when the file does not exist, WarehouseLockedError after ``lock_timeout_s``.
        """
        if not self.path.exists():
            raise WarehouseMissingError(f"no warehouse at {self.path}; run a night to make one, or check the path")
        with self.hold_lock("read"), open_database(self.path, read_only=True) as con:
            yield con

    def query(self, name: str, /, **parameters: object) -> pa.Table:
        """Rows of the statement in ``warehouse/queries/<name>.sql``, run with its ``$parameters``."""
        with self.read() as con:
            return read_query(con, name, **parameters)

    @contextlib.contextmanager
    def hold_lock(self, purpose: str) -> Iterator[None]:
        """Holds the inter-process lock for the block; ``purpose`` is what waiting processes log.

        Raises WarehouseLockedError after ``lock_timeout_s``, or at once when this thread holds the lock already.
        """
        lock = FileLock(self._path_with_suffix("lock"))
        with translate_errors(self.path, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire(lock)
        try:
            self._write_holder(purpose)
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock) -> None:
        """Waits for the lock and acquires it; logs the lock's holder after one second and then every ten seconds."""
        deadline = time.monotonic() + self.lock_timeout_s
        wait_s = FIRST_WAIT_LOG_S
        while True:
            remaining = deadline - time.monotonic()
            try:
                lock.acquire(timeout=max(0.0, min(wait_s, remaining)))
                return
            except Timeout as exc:
                holder = self._read_holder()
                if (holder.get("pid"), holder.get("thread")) == (os.getpid(), threading.get_ident()):
                    raise WarehouseLockedError(
                        f"{self.path}: this very thread holds the lock ({holder['purpose']}); close that block first"
                    ) from exc
                description = (
                    "pid {pid}, {purpose}, since {since}".format_map(holder) if holder else "an unknown holder"
                )
                if remaining <= wait_s:
                    raise WarehouseLockedError(
                        f"{self.path}: still held by {description} after {self.lock_timeout_s:g} s; "
                        "let it finish or end that process, then run again"
                    ) from exc
                logger.info("waiting for %s (%s)", description, self.path.name)
                wait_s = WAIT_LOG_EVERY_S

    def _write_holder(self, purpose: str) -> None:
        holder = {
            "pid": os.getpid(),
            "thread": threading.get_ident(),
            "purpose": purpose,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with contextlib.suppress(OSError):  # the file only informs: a full disk must not stop a reader
            self._path_with_suffix("holder").write_text(json.dumps(holder))

    def _read_holder(self) -> dict:
        try:
            return json.loads(self._path_with_suffix("holder").read_text())
        except (OSError, ValueError):  # the file does not exist yet, or another process is writing it
            return {}

    def _path_with_suffix(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")


@contextlib.contextmanager
def open_database(path: Path, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to one DuckDB file, in UTC and without the warehouse's lock.

    Raises the errors of warehouse/errors.py in place of DuckDB's, WarehouseCorruptError for a file that is no database.
    """
    with translate_errors(path, *DUCKDB_FAULTS):
        if path.is_file() and not _is_duckdb(path):
            raise WarehouseCorruptError(f"{path}: {RESTORE_ADVICE} (no DuckDB header)")
        con = duckdb.connect(str(path), read_only=read_only)
        try:
            con.execute("SET TimeZone='UTC'")
            yield con
        finally:
            con.close()


@contextlib.contextmanager
def translate_errors(path: Path, *faults: type[Exception]) -> Iterator[None]:
    """Runs the block and translates exceptions of the types ``faults`` to errors about ``path``.

    FAULT_TRANSLATIONS lists the translations. An exception whose text matches no entry is raised unchanged.
    """
    try:
        yield
    except faults as exc:
        for error_type, fault_texts, advice in FAULT_TRANSLATIONS:
            if any(text in str(exc) for text in fault_texts):
                raise error_type(f"{path}: {advice} ({exc})") from exc
        raise


def _is_duckdb(path: Path) -> bool:
    """True when the file has DuckDB's header. DuckDB does not refuse every other file: it opens a CSV as a table."""
    with path.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"
