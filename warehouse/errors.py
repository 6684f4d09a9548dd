"""What can go wrong in the warehouse.

WarehouseError
├── UnsupportedUrlError    not a DuckDB file
├── WarehouseMissingError  no file where one was named
├── WarehouseLockedError   another program kept it for too long
├── WarehouseCorruptError  not a database, or a damaged one
├── WarehouseFullError     the disk is full; what was there before stays readable
├── NewerMigrationError    a file from a newer program
├── ChangedMigrationError  a migration was edited after it had been applied
├── RowsRefusedError       rows that do not fit their table
├── UnknownUniverseError   a universe that no seed knows
├── NotPublishedError      nothing published yet, or a night that is not finished
└── PublishedNightError    rows of a published night would change
"""

from __future__ import annotations


class WarehouseError(Exception):
    """Anything the warehouse refuses or fails to do; the message says what, where, and what to do."""


class UnsupportedUrlError(WarehouseError):
    """A warehouse URL of a scheme that is not offered."""


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
    """A universe name that the warehouse does not know."""


class NotPublishedError(WarehouseError):
    """No published copy yet, or one was asked of a night that is not finished."""


class PublishedNightError(WarehouseError):
    """Rows of a published night, which are written once, would change."""
