"""The published copy: it contains finished nights only, is replaced atomically, and never blocks a reader.

A night is the run for one as-of date, source and universe; a slice is the rows of one source and universe. The fixtures
are in conftest.py: ``add_night`` writes a night with two signals, ``start_python`` starts a process.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import pytest

from warehouse.connect import Warehouse
from warehouse.errors import NotPublishedError, WarehouseCorruptError
from warehouse.migrate import migrate
from warehouse.publish import PublishedCopy, publish_copy, read_published

FIRST_NIGHT = date(2024, 6, 28)
SECOND_NIGHT = date(2024, 7, 1)


def query_copy(warehouse: Warehouse, sql: str) -> list[tuple]:
    """All rows of a statement on the published copy."""
    with read_published(warehouse) as con:
        return con.execute(sql).fetchall()


def test_before_the_first_publish_there_is_no_copy(warehouse: Warehouse) -> None:
    with pytest.raises(NotPublishedError, match="run a night to its end first"), read_published(warehouse):
        pass


def test_the_copy_has_the_same_rows_as_the_warehouse(
    warehouse: Warehouse,
    add_night: Callable[..., None],
    add_bars: Callable[..., None],
    add_actions: Callable[..., None],
) -> None:
    add_night(FIRST_NIGHT)
    add_bars({"2024-06-27T13:30": 100.0, "2024-06-28T13:30": 101.0})
    add_bars({"2024-06-28T13:30": 101.0}, table="raw.bars", provider="yahoo")
    add_actions({"2024-06-28T13:30": 1.0})
    assert publish_copy(warehouse, "recorded", "us_stocks") == warehouse.published
    for relation in ("bars", "signals_next_day", "nights", "universes", "universe_members", "bars_as_of(now())"):
        with warehouse.read() as con:
            rows = con.execute(f"FROM {relation} ORDER BY ALL").fetchall()
        assert rows
        assert query_copy(warehouse, f"FROM {relation} ORDER BY ALL") == rows


def test_the_copy_opens_in_plain_duckdb_without_a_lock(warehouse: Warehouse, add_night: Callable[..., None]) -> None:
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    with warehouse.write("busy"), duckdb.connect(str(warehouse.published), read_only=True) as con:
        assert con.execute("SELECT symbol, side FROM signals_next_day").fetchall() == [("AAA", "LONG")]
    assert warehouse.published.stat().st_mode & 0o222 == 0


def test_a_published_copy_is_queried_like_a_warehouse_and_each_read_gets_the_newest_copy(
    warehouse: Warehouse, add_night: Callable[..., None]
) -> None:
    copy = PublishedCopy(warehouse.path)
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    with warehouse.write("busy"):
        assert copy.query("universe_names").num_rows > 0
    with copy.read() as con:
        count_before = con.execute("SELECT count(*) FROM nights").fetchall()
    add_night(SECOND_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    with copy.read() as con:
        assert con.execute("SELECT count(*) FROM nights").fetchall() != count_before


def test_only_the_slice_is_copied_from_the_warehouse(warehouse: Warehouse, add_night: Callable[..., None]) -> None:
    add_night(FIRST_NIGHT)
    add_night(FIRST_NIGHT, universe="crypto")
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "SELECT DISTINCT universe FROM signals") == [("us_stocks",)]
    publish_copy(warehouse, "recorded", "crypto")
    assert query_copy(warehouse, "SELECT DISTINCT universe FROM signals ORDER BY ALL") == [("crypto",), ("us_stocks",)]


def test_rows_deleted_from_the_warehouse_are_deleted_from_the_copy(
    warehouse: Warehouse, add_night: Callable[..., None], add_bars: Callable[..., None]
) -> None:
    add_night(FIRST_NIGHT)
    add_bars({"2024-06-28T13:30": 101.0})
    publish_copy(warehouse, "recorded", "us_stocks")
    with warehouse.write("restate") as con:
        con.execute("DELETE FROM store.bars")
    add_bars({"2024-06-28T13:30": 102.0})
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "SELECT close FROM bars") == [(102.0,)]


def test_an_unfinished_night_is_never_published(
    warehouse: Warehouse, add_night: Callable[..., None], add_bars: Callable[..., None]
) -> None:
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    add_night(SECOND_NIGHT, published=False)
    add_bars({"2024-07-01T13:30": 101.0})
    bytes_before = warehouse.published.read_bytes()
    with pytest.raises(NotPublishedError, match="recorded us_stocks: night 2024-07-01 is not finished"):
        publish_copy(warehouse, "recorded", "us_stocks")
    assert warehouse.published.read_bytes() == bytes_before
    assert query_copy(warehouse, "SELECT count(*) FROM bars") == [(0,)]


def test_an_unfinished_night_of_one_universe_does_not_hold_back_another(
    warehouse: Warehouse, add_night: Callable[..., None]
) -> None:
    add_night(FIRST_NIGHT, published=False)
    add_night(FIRST_NIGHT, universe="crypto")
    publish_copy(warehouse, "recorded", "crypto")
    assert query_copy(warehouse, "SELECT universe FROM nights") == [("crypto",)]


def test_a_slice_without_a_night_is_refused_and_creates_no_copy(warehouse: Warehouse) -> None:
    with pytest.raises(NotPublishedError, match="simulated nowhere: no night was begun"):
        publish_copy(warehouse, "simulated", "nowhere")
    assert not warehouse.published.exists()


def test_an_open_reader_keeps_its_copy_and_the_next_reader_gets_the_new_one(
    warehouse: Warehouse, add_night: Callable[..., None]
) -> None:
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    with read_published(warehouse) as reader:
        assert reader.execute("SELECT max(night) FROM signals").fetchone() == (FIRST_NIGHT,)
        add_night(SECOND_NIGHT)
        publish_copy(warehouse, "recorded", "us_stocks")
        assert reader.execute("SELECT max(night) FROM signals").fetchone() == (FIRST_NIGHT,)
        assert query_copy(warehouse, "SELECT max(night) FROM signals") == [(SECOND_NIGHT,)]


READ_UNTIL_KILLED = """
import sys, duckdb
print("reading", flush=True)
nights = set()
while True:
    with duckdb.connect(sys.argv[1], read_only=True) as con:
        night, = con.execute("SELECT max(night) FROM nights").fetchone()
        signals, = con.execute("SELECT count(*) FROM signals WHERE night = $night", {"night": night}).fetchone()
    assert signals == 2, (night, signals)
    if str(night) not in nights:
        nights.add(str(night))
        print(night, flush=True)
"""


def test_a_reader_in_another_process_never_waits_and_never_reads_an_unfinished_night(
    warehouse: Warehouse, add_night: Callable[..., None], start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    reader = start_python(READ_UNTIL_KILLED, warehouse.published)
    assert [reader.stdout.readline() for _ in range(2)] == ["reading\n", f"{FIRST_NIGHT}\n"]
    for day in range(1, 6):
        add_night(date(2024, 7, day))
        publish_copy(warehouse, "recorded", "us_stocks")
    last_line = "2024-07-05\n"
    line = reader.stdout.readline()
    while line and line != last_line:
        line = reader.stdout.readline()
    _, errors = ("", "") if line == last_line else reader.communicate()
    assert line == last_line, errors


PUBLISH_AND_STOP_BEFORE_THE_SWAP = """
import sys, time
from warehouse import publish
from warehouse.connect import Warehouse
def stop(building, published):
    print("built", flush=True)
    time.sleep(60)
publish._swap = stop
publish.publish_copy(Warehouse.from_url(sys.argv[1]), "recorded", "us_stocks")
"""


def test_a_publish_killed_before_the_swap_leaves_the_old_copy_and_the_next_one_cleans_up(
    warehouse: Warehouse, add_night: Callable[..., None], start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    add_night(SECOND_NIGHT)
    publisher = start_python(PUBLISH_AND_STOP_BEFORE_THE_SWAP, warehouse.path)
    assert publisher.stdout.readline() == "built\n"
    publisher.send_signal(signal.SIGKILL)
    publisher.wait()
    assert list(warehouse.path.parent.glob("*.building*"))
    assert query_copy(warehouse, "SELECT max(night) FROM nights") == [(FIRST_NIGHT,)]
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "SELECT max(night) FROM nights") == [(SECOND_NIGHT,)]
    assert not list(warehouse.path.parent.glob("*.building*"))


def test_a_path_with_quotes_and_blanks_is_published_like_any_other(tmp_path: Path) -> None:
    warehouse = Warehouse.from_url(tmp_path / "Ada's desk" / "the night.duckdb")
    migrate(warehouse)
    with warehouse.write("finish a night") as con:
        con.execute(
            "INSERT INTO store.nights BY NAME SELECT '2024-06-28' AS night, 'live' AS source, 'crypto' AS universe,"
            " 'r' AS run_id, now() AS clock, '{}' AS settings, '0' AS settings_hash, 'published' AS state,"
            " now() AS published_at"
        )
    assert publish_copy(warehouse, "live", "crypto").name == "the night.published.duckdb"
    assert query_copy(warehouse, "SELECT universe FROM nights") == [("crypto",)]


def test_leftovers_of_a_killed_first_publish_do_not_get_into_the_copy(
    warehouse: Warehouse, add_night: Callable[..., None], start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    add_night(FIRST_NIGHT)
    publisher = start_python(PUBLISH_AND_STOP_BEFORE_THE_SWAP, warehouse.path)
    assert publisher.stdout.readline() == "built\n"
    publisher.send_signal(signal.SIGKILL)
    publisher.wait()
    add_night(FIRST_NIGHT, universe="crypto")
    publish_copy(warehouse, "recorded", "crypto")
    assert query_copy(warehouse, "SELECT universe FROM nights") == [("crypto",)]


def test_a_copy_of_an_older_program_is_brought_up_to_date(warehouse: Warehouse, add_night: Callable[..., None]) -> None:
    add_night(FIRST_NIGHT)
    publish_copy(warehouse, "recorded", "us_stocks")
    warehouse.published.chmod(0o644)
    with duckdb.connect(str(warehouse.published)) as con:
        con.execute("DROP VIEW leaderboard; DELETE FROM store.migrations WHERE name = 'views/leaderboard.sql'")
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "FROM leaderboard") == []


def test_a_damaged_copy_is_named_in_the_error(warehouse: Warehouse) -> None:
    warehouse.published.write_bytes(b"not a database" * 1000)
    with pytest.raises(WarehouseCorruptError, match=r"warehouse\.published\.duckdb: not a readable"):
        query_copy(warehouse, "FROM nights")


HOLD_LOCK_FOR_ONE_SECOND = """
import sys, time
from warehouse.connect import Warehouse
with Warehouse.from_url(sys.argv[1]).write("busy"):
    print("held", flush=True)
    time.sleep(1)
"""


def test_publishing_waits_for_the_writer(
    warehouse: Warehouse, add_night: Callable[..., None], start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    add_night(FIRST_NIGHT)
    writer = start_python(HOLD_LOCK_FOR_ONE_SECOND, warehouse.path)
    assert writer.stdout.readline() == "held\n"
    started_s = time.monotonic()
    publish_copy(warehouse, "recorded", "us_stocks")
    assert time.monotonic() - started_s > 0.5  # most of the second, less the delay until "held" was read
