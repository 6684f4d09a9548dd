"""A full disk: a write raises WarehouseFullError and is rolled back; committed rows stay readable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from warehouse.connect import Warehouse
from warehouse.errors import WarehouseFullError
from warehouse.publish import publish_copy, read_published

CREATE_LARGE_TABLE = "CREATE TABLE store.large AS SELECT range AS a, random() AS b FROM range(5_000_000)"


@pytest.fixture
def small_disk(migrated_file: Path, tmp_path: Path) -> Iterator[Warehouse]:
    """A migrated warehouse on a file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small file system here: {mount.stderr.strip()}")
    try:
        shutil.copyfile(migrated_file, disk / "warehouse.duckdb")
        yield Warehouse(disk / "warehouse.duckdb")
    finally:
        subprocess.run(["umount", disk], check=True)


def fill_disk(folder: Path) -> Path:
    """Writes a file that takes all free space; returns its path."""
    filler_file = folder / "filler"
    with filler_file.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            return filler_file


def test_a_transaction_too_large_for_the_disk_changes_nothing(small_disk: Warehouse) -> None:
    message = r"warehouse\.duckdb: the disk is full; nothing of this was written"
    with pytest.raises(WarehouseFullError, match=message), small_disk.write("load") as con:
        con.execute("DELETE FROM store.universes")
        con.execute(CREATE_LARGE_TABLE)
    assert small_disk.query("universe_names").num_rows > 0


def test_a_commit_on_a_full_disk_changes_nothing_and_works_once_space_is_free(small_disk: Warehouse) -> None:
    filler_file = fill_disk(small_disk.path.parent)
    names_before = small_disk.query("universe_names")
    with pytest.raises(WarehouseFullError, match="Free space, run again"), small_disk.write("load") as con:
        con.execute("DELETE FROM store.universes")
    assert small_disk.query("universe_names").equals(names_before)
    filler_file.unlink()
    with small_disk.write("load") as con:
        con.execute("DELETE FROM store.universes")
    assert small_disk.query("universe_names").num_rows == 0


def test_a_copy_that_does_not_fit_leaves_the_published_copy(small_disk: Warehouse) -> None:
    with small_disk.write("finish a night") as con:
        con.execute(
            "INSERT INTO store.nights BY NAME SELECT '2024-06-28' AS night, 'recorded' AS source, 'demo' AS universe,"
            " 'r' AS run_id, now() AS clock, '{}' AS settings, '0' AS settings_hash, 'published' AS state,"
            " now() AS published_at"
        )
    publish_copy(small_disk, "recorded", "demo")
    filler_file = fill_disk(small_disk.path.parent)
    with pytest.raises(WarehouseFullError, match="the disk is full"):
        publish_copy(small_disk, "recorded", "demo")
    with read_published(small_disk) as con:
        assert con.execute("SELECT night FROM nights").fetchall() == [(date(2024, 6, 28),)]
    filler_file.unlink()
    publish_copy(small_disk, "recorded", "demo")


LOAD_WITH_A_FILE_SIZE_LIMIT = f"""
import resource, sys
from warehouse.connect import Warehouse
from warehouse.errors import WarehouseFullError
warehouse = Warehouse.from_url(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 2**20, 8 * 2**20))
try:
    with warehouse.write("load") as con:
        con.execute("DELETE FROM store.universes")
        con.execute({CREATE_LARGE_TABLE!r})
except WarehouseFullError as error:
    print("full", warehouse.query("universe_names").num_rows)
"""


def test_a_file_size_limit_counts_as_a_full_disk(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    n_universes = warehouse.query("universe_names").num_rows
    output, errors = start_python(LOAD_WITH_A_FILE_SIZE_LIMIT, warehouse.path).communicate(timeout=60)
    assert output == f"full {n_universes}\n", errors
    assert warehouse.query("universe_names").num_rows == n_universes
