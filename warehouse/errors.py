"""Errors of the package ``warehouse``.

WarehouseError
├── UnsupportedUrlError    the URL does not name a DuckDB file
├── WarehouseMissingError  no file exists at the path
├── WarehouseLockedError   another program or thread held the lock for too long
├── WarehouseCorruptError  the file is not a DuckDB database, or is damaged
├── WarehouseFullError     the disk is full; committed data stay readable
├── NewerMigrationError    a newer program wrote the file
├── ChangedMigrationError  a migration was edited after it had been applied
├── RowsRefusedError       rows do not fit their table
├── UnknownUniverseError   no universe has the name
├── NotPublishedError      no published copy exists yet, or the night to publish is not finished
└── PublishedNightError    rows of a published night would change

A night is the run for one as-of date. The published copy is the read-only file that analysts query.
"""

from __future__ import annotations


class WarehouseError(Exception):
    """Base class of this package's errors; the message states what failed, where, and what to do."""


class UnsupportedUrlError(WarehouseError):
    """A warehouse URL with an unsupported scheme or an empty path."""


class WarehouseMissingError(WarehouseError):
    """No database file exists at the path."""


class WarehouseLockedError(WarehouseError):
    """Another program or thread held the lock for longer than the timeout, or opened the file without the lock."""


class WarehouseCorruptError(WarehouseError):
    """The file is not a DuckDB database, or is damaged."""


class WarehouseFullError(WarehouseError):
    """The disk is too full for the transaction, which was rolled back."""


class NewerMigrationError(WarehouseError):
    """The file was written by a newer version of this program or of DuckDB."""


class ChangedMigrationError(WarehouseError):
    """An applied migration differs from the file of the same name in this program."""


class RowsRefusedError(WarehouseError):
    """Rows do not fit the columns, types or NOT NULL constraints of their table; no row was written."""


class UnknownUniverseError(WarehouseError):
    """No universe of the warehouse has the name."""


class NotPublishedError(WarehouseError):
    """No published copy exists yet, or the night to publish is not finished."""


class PublishedNightError(WarehouseError):
    """A write would change rows of a published night; rows of a published night never change."""
