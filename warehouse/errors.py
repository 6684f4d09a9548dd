"""Errors of the warehouse.

WarehouseError
├── UnsupportedUrlError    not a DuckDB file
├── WarehouseMissingError  no file where one was named
├── WarehouseLockedError   another program held the lock for too long
├── WarehouseCorruptError  not a database, or a damaged one
├── WarehouseFullError     the disk is full; what was there before stays readable
├── NewerMigrationError    a file from a newer program
├── ChangedMigrationError  a migration was edited after it had been applied
├── RowsRefusedError       rows that do not fit their table
├── UnknownUniverseError   a universe that is in no seed
├── NotPublishedError      nothing published yet, or a night that is not finished
└── PublishedNightError    rows of a published night would change
"""

from __future__ import annotations


class WarehouseError(Exception):
    """Base of the errors of this room; the message states what failed, where, and what to do."""


class UnsupportedUrlError(WarehouseError):
    """A warehouse URL of a scheme that is not supported."""


class WarehouseMissingError(WarehouseError):
    """No database file at the path."""


class WarehouseLockedError(WarehouseError):
    """Another program or thread holds the database."""


class WarehouseCorruptError(WarehouseError):
    """The file is not a DuckDB database, or a damaged one."""


class WarehouseFullError(WarehouseError):
    """The disk has no room for the transaction, which was rolled back."""


class NewerMigrationError(WarehouseError):
    """The file was written by a newer program than this one."""


class ChangedMigrationError(WarehouseError):
    """An applied migration differs from the file of the same name in this program."""


class RowsRefusedError(WarehouseError):
    """Rows whose columns, types or nulls do not fit their table; nothing of them was written."""


class UnknownUniverseError(WarehouseError):
    """A universe name that is not in the warehouse."""


class NotPublishedError(WarehouseError):
    """There is no published copy yet, or the night to publish is not finished."""


class PublishedNightError(WarehouseError):
    """Rows of a published night, which are written once, would change."""
