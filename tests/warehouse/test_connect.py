"""Connections to the warehouse: URLs, transactions, the lock between processes, damaged files.

The fixtures ``warehouse`` (migrated, 5 s lock timeout) and ``start_python`` are in conftest.py.
"""

from __future__ import annotations

import functools
import logging
import operator
import pickle
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from warehouse.connect import Warehouse
from warehouse.errors import (
    NewerMigrationError,
    UnsupportedUrlError,
    WarehouseCorruptError,
    WarehouseError,
    WarehouseLockedError,
    WarehouseMissingError,
)

INSERT_UNIVERSES = """
INSERT INTO store.universes BY NAME
SELECT
    'added ' || i AS universe, 'yahoo' AS provider, '1d' AS interval, 'XNYS' AS calendar, 'SPY' AS benchmark,
    '2020-01-01' AS history_start, 1 AS commission_bps, 5 AS slippage_bps, true AS survivorship_biased,
    '' AS description
FROM range({}) AS r(i)
"""

HOLD_LOCK = """
import sys, time
from warehouse.connect import Warehouse
with Warehouse.from_url(sys.argv[1]).write("a long backfill"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def add_universes(warehouse: Warehouse, n: int) -> None:
    """Writes ``n`` universes, named "added 0", "added 1", …"""
    with warehouse.write("add") as con:
        con.execute(INSERT_UNIVERSES.format(n))


def count_added(warehouse: Warehouse) -> int:
    """The number of universes that ``add_universes`` wrote."""
    with warehouse.read() as con:
        return len(con.execute("FROM store.universes WHERE universe LIKE 'added%'").fetchall())


@pytest.mark.parametrize("url", ["{}/w.duckdb", "duckdb://{}/w.duckdb"])
def test_a_path_and_a_duckdb_url_name_the_same_file(url: str, tmp_path: Path) -> None:
    warehouse = Warehouse.from_url(url.format(tmp_path))
    assert warehouse.path == tmp_path / "w.duckdb"
    assert warehouse.published == tmp_path / "w.published.duckdb"
    assert warehouse.artifacts == tmp_path / "w.artifacts"
    assert pickle.loads(pickle.dumps(warehouse)) == warehouse


def test_a_relative_path_is_resolved_when_the_warehouse_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Warehouse.from_url("w.duckdb").path == tmp_path / "w.duckdb"


@pytest.mark.parametrize(
    "url", ["postgresql://host/db", "ducklake:meta.db", "md:shared", ":memory:", "", "s3://b/w.db"]
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(UnsupportedUrlError, match="give the path of a DuckDB file"):
        Warehouse.from_url(url)


def test_reading_a_missing_file_is_refused_and_creates_none(tmp_path: Path) -> None:
    with pytest.raises(WarehouseMissingError, match=r"no warehouse at .*new/w\.duckdb"):
        count_added(Warehouse.from_url(tmp_path / "new" / "w.duckdb"))
    assert not (tmp_path / "new").exists()


def test_every_connection_is_in_utc(warehouse: Warehouse) -> None:
    with warehouse.write("read") as con:
        assert con.execute("SELECT current_setting('TimeZone')").fetchone() == ("UTC",)
    with warehouse.read() as con:
        assert con.execute("SELECT CAST(TIMESTAMPTZ '2024-01-02 12:00:00-05' AS VARCHAR)").fetchone() == (
            "2024-01-02 17:00:00+00",
        )


def test_a_block_is_committed_at_its_end_and_rolled_back_on_an_error(warehouse: Warehouse) -> None:
    add_universes(warehouse, 3)
    with pytest.raises(ZeroDivisionError), warehouse.write("add") as con:
        con.execute(INSERT_UNIVERSES.format(5))
        raise ZeroDivisionError
    assert count_added(warehouse) == 3


def test_a_read_connection_cannot_write(warehouse: Warehouse) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="read-only"), warehouse.read() as con:
        con.execute(INSERT_UNIVERSES.format(1))


def test_a_writer_waits_for_another_process_and_logs_which(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]], caplog: pytest.LogCaptureFixture
) -> None:
    holder = start_python(HOLD_LOCK, warehouse.path, 2.5)
    assert holder.stdout.readline() == "held\n"
    with caplog.at_level(logging.INFO, logger="warehouse.connect"):
        add_universes(warehouse, 2)
    assert f"waiting for pid {holder.pid}, a long backfill, since 2" in caplog.text
    assert count_added(warehouse) == 2


def test_a_wait_that_times_out_names_the_holder(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start_python(HOLD_LOCK, warehouse.path, 60)
    assert holder.stdout.readline() == "held\n"
    impatient_warehouse = Warehouse(warehouse.path, lock_timeout_s=0.3)
    started_s = time.monotonic()
    with pytest.raises(WarehouseLockedError, match=f"held by pid {holder.pid}, a long backfill, .* after 0.3 s"):
        count_added(impatient_warehouse)
    assert time.monotonic() - started_s < 2  # far below the 60 s for which the lock is held


COMMIT_THEN_HANG = """
import sys, time
from warehouse.connect import Warehouse
warehouse = Warehouse.from_url(sys.argv[1])
with warehouse.write("first") as con:
    con.execute(sys.argv[2].format(7))
with warehouse.write("second") as con:
    con.execute(sys.argv[2].format(400_000))
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_writer_killed_in_its_transaction_frees_the_lock_and_keeps_what_was_committed(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    writer = start_python(COMMIT_THEN_HANG, warehouse.path, INSERT_UNIVERSES)
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert count_added(warehouse) == 7
    add_universes(warehouse, 1)
    assert count_added(warehouse) == 8


COMMIT_WITHOUT_CLOSING = """
import os, sys, signal, duckdb
con = duckdb.connect(sys.argv[1])
con.execute(sys.argv[2].format(9))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_commit_that_only_reached_the_log_before_a_kill_is_read(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    start_python(COMMIT_WITHOUT_CLOSING, warehouse.path, INSERT_UNIVERSES).wait()
    assert Path(f"{warehouse.path}.wal").stat().st_size > 0
    assert count_added(warehouse) == 9


N_INCREMENTS = 10
ADD_DAYS = f"""
import sys
from warehouse.connect import Warehouse
for _ in range({N_INCREMENTS}):
    with Warehouse.from_url(sys.argv[1]).write("count") as con:
        universe = "universe = 'added 0'"
        start, = con.execute("SELECT history_start FROM store.universes WHERE " + universe).fetchone()
        con.execute("UPDATE store.universes SET history_start = ? + TO_DAYS(1) WHERE " + universe, [start])
"""


def test_contending_processes_and_threads_lose_no_update(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    # The default timeout is used, because on a busy machine a process may wait for long.
    warehouse = Warehouse.from_url(warehouse.path)
    add_universes(warehouse, 1)
    processes = [start_python(ADD_DAYS, warehouse.path) for _ in range(2)]

    def add_days() -> None:
        for _ in range(N_INCREMENTS):
            with warehouse.write("count") as con:
                con.execute(
                    "UPDATE store.universes SET history_start = history_start + TO_DAYS(1) WHERE universe = 'added 0'"
                )

    threads = [threading.Thread(target=add_days) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    with warehouse.read() as con:
        days_added = con.execute(
            "SELECT history_start::DATE - DATE '2020-01-01' FROM store.universes WHERE universe = 'added 0'"
        )
        assert days_added.fetchone() == ((len(processes) + len(threads)) * N_INCREMENTS,)


def test_a_block_inside_a_block_of_the_same_thread_is_refused_at_once(warehouse: Warehouse) -> None:
    started_s = time.monotonic()
    with warehouse.write("outer"), pytest.raises(WarehouseLockedError, match=r"this very thread .*outer"):
        count_added(warehouse)
    assert time.monotonic() - started_s < warehouse.lock_timeout_s / 2


OPEN_WITHOUT_LOCK = """
import sys, time, duckdb
con = duckdb.connect(sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


def test_a_program_that_ignores_the_lock_is_named(
    warehouse: Warehouse, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_python(OPEN_WITHOUT_LOCK, warehouse.path)
    assert process.stdout.readline() == "open\n"
    with pytest.raises(WarehouseLockedError, match=rf"another program has the file open.*PID {process.pid}"):
        count_added(warehouse)


def test_a_connection_of_this_process_that_ignores_the_lock_is_named(warehouse: Warehouse) -> None:
    unlocked_connection = duckdb.connect(str(warehouse.path))
    with pytest.raises(WarehouseLockedError, match="another program has the file open"):
        count_added(warehouse)
    unlocked_connection.close()


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "overwritten"])
def test_a_damaged_file_is_named_with_advice(warehouse: Warehouse, damage: str) -> None:
    contents = warehouse.path.read_bytes()
    damaged_contents = {
        "text": b"symbol,close\n" * 1000,
        "empty": b"",
        "truncated": contents[: len(contents) // 2],
        "overwritten": contents[:8192] + bytes(4096) + contents[12288:],
    }
    warehouse.path.write_bytes(damaged_contents[damage])
    with pytest.raises(WarehouseCorruptError, match=r"warehouse\.duckdb: not a readable .* published copy"):
        count_added(warehouse)


def test_a_folder_is_refused_as_a_warehouse(tmp_path: Path) -> None:
    with pytest.raises(WarehouseCorruptError, match="not a readable DuckDB database"):
        count_added(Warehouse(tmp_path))


def test_a_path_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a folder")
    with pytest.raises(WarehouseError, match="no right to write here"):
        add_universes(Warehouse(tmp_path / "notes.txt" / "w.duckdb"), 1)


def test_a_file_of_a_newer_duckdb_is_refused(warehouse: Warehouse) -> None:
    contents = bytearray(warehouse.path.read_bytes())
    contents[12:20] = struct.pack("<Q", 999)  # the storage version; its header block has a checksum
    words = struct.unpack("<511Q", contents[8:4096])
    products = (word * 0xBF58476D1CE4E5B9 % 2**64 for word in words)
    contents[:8] = struct.pack("<Q", functools.reduce(operator.xor, products, 5381))
    warehouse.path.write_bytes(contents)
    with pytest.raises(NewerMigrationError, match="written by a newer DuckDB; update this program"):
        count_added(warehouse)


def test_a_named_query_returns_arrow_rows(warehouse: Warehouse) -> None:
    add_universes(warehouse, 2)
    assert warehouse.query("universe_named", universe="added 1").to_pylist()[0]["benchmark"] == "SPY"
    assert warehouse.query("universe_named", universe="nowhere").num_rows == 0
