"""The published copy: it contains whole nights only, is replaced at once, and never blocks a reader."""

from __future__ import annotations

import signal
import time
from datetime import date

import duckdb
import pytest

from warehouse.connect import Warehouse
from warehouse.errors import NotPublishedError, WarehouseCorruptError
from warehouse.migrate import migrate
from warehouse.publish import PublishedCopy, publish_copy, read_published

FIRST = date(2024, 6, 28)
SECOND = date(2024, 7, 1)


def query_copy(warehouse: Warehouse, sql: str) -> list[tuple]:
    with read_published(warehouse) as con:
        return con.execute(sql).fetchall()


def test_before_the_first_publish_there_is_no_copy(warehouse):
    with pytest.raises(NotPublishedError, match="run a night to its end first"), read_published(warehouse):
        pass


def test_the_copy_has_the_same_rows_as_the_warehouse(warehouse, add_night, add_bars, add_actions):
    add_night(FIRST)
    add_bars({"2024-06-27T13:30": 100.0, "2024-06-28T13:30": 101.0})
    add_bars({"2024-06-28T13:30": 101.0}, table="raw.bars", provider="yahoo")
    add_actions({"2024-06-28T13:30": 1.0})
    assert publish_copy(warehouse, "recorded", "us_stocks") == warehouse.published
    for relation in ("bars", "signals_next_day", "nights", "universes", "universe_members", "bars_as_of(now())"):
        with warehouse.read() as con:
            rows = con.execute(f"FROM {relation} ORDER BY ALL").fetchall()
        assert rows
        assert query_copy(warehouse, f"FROM {relation} ORDER BY ALL") == rows


def test_the_copy_opens_in_plain_duckdb_without_a_lock(warehouse, add_night):
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    with warehouse.write("busy"), duckdb.connect(str(warehouse.published), read_only=True) as con:
        assert con.execute("SELECT symbol, side FROM signals_next_day").fetchall() == [("AAA", "LONG")]
    assert warehouse.published.stat().st_mode & 0o222 == 0


def test_a_published_copy_is_queried_like_a_warehouse_and_read_anew_each_time(warehouse, add_night):
    copy = PublishedCopy(warehouse.path)
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    with warehouse.write("busy"):
        assert copy.query("universe_names").num_rows > 0
    with copy.read() as con:
        before = con.execute("SELECT count(*) FROM nights").fetchall()
    add_night(SECOND)
    publish_copy(warehouse, "recorded", "us_stocks")
    with copy.read() as con:
        assert con.execute("SELECT count(*) FROM nights").fetchall() != before


def test_only_the_slice_is_copied_from_the_warehouse(warehouse, add_night):
    add_night(FIRST)
    add_night(FIRST, universe="crypto")
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "SELECT DISTINCT universe FROM signals") == [("us_stocks",)]
    publish_copy(warehouse, "recorded", "crypto")
    assert query_copy(warehouse, "SELECT DISTINCT universe FROM signals ORDER BY ALL") == [("crypto",), ("us_stocks",)]


def test_rows_deleted_from_the_warehouse_are_deleted_from_the_copy(warehouse, add_night, add_bars):
    add_night(FIRST)
    add_bars({"2024-06-28T13:30": 101.0})
    publish_copy(warehouse, "recorded", "us_stocks")
    with warehouse.write("restate") as con:
        con.execute("DELETE FROM store.bars")
    add_bars({"2024-06-28T13:30": 102.0})
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "SELECT close FROM bars") == [(102.0,)]


def test_an_unfinished_night_is_never_published(warehouse, add_night, add_bars):
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    add_night(SECOND, published=False)
    add_bars({"2024-07-01T13:30": 101.0})
    before = warehouse.published.read_bytes()
    with pytest.raises(NotPublishedError, match="recorded us_stocks: night 2024-07-01 is not finished"):
        publish_copy(warehouse, "recorded", "us_stocks")
    assert warehouse.published.read_bytes() == before
    assert query_copy(warehouse, "SELECT count(*) FROM bars") == [(0,)]


def test_an_unfinished_night_of_one_universe_does_not_hold_back_another(warehouse, add_night):
    add_night(FIRST, published=False)
    add_night(FIRST, universe="crypto")
    publish_copy(warehouse, "recorded", "crypto")
    assert query_copy(warehouse, "SELECT universe FROM nights") == [("crypto",)]


def test_a_slice_without_a_night_is_refused_and_creates_no_copy(warehouse):
    with pytest.raises(NotPublishedError, match="simulated nowhere: no night was begun"):
        publish_copy(warehouse, "simulated", "nowhere")
    assert not warehouse.published.exists()


def test_an_open_reader_keeps_its_copy_and_the_next_reader_gets_the_new_one(warehouse, add_night):
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    with read_published(warehouse) as reader:
        assert reader.execute("SELECT max(night) FROM signals").fetchone() == (FIRST,)
        add_night(SECOND)
        publish_copy(warehouse, "recorded", "us_stocks")
        assert reader.execute("SELECT max(night) FROM signals").fetchone() == (FIRST,)
        assert query_copy(warehouse, "SELECT max(night) FROM signals") == [(SECOND,)]


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


def test_a_reader_in_another_process_meets_no_lock_and_no_unfinished_night(warehouse, add_night, start_python):
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    reader = start_python(READ_UNTIL_KILLED, warehouse.published)
    assert [reader.stdout.readline() for _ in range(2)] == ["reading\n", f"{FIRST}\n"]
    for day in range(1, 6):
        add_night(date(2024, 7, day))
        publish_copy(warehouse, "recorded", "us_stocks")
    while (line := reader.stdout.readline()) and line != "2024-07-05\n":
        pass
    assert line == "2024-07-05\n", reader.communicate()[1]


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
    warehouse, add_night, start_python
):
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    add_night(SECOND)
    publisher = start_python(PUBLISH_AND_STOP_BEFORE_THE_SWAP, warehouse.path)
    assert publisher.stdout.readline() == "built\n"
    publisher.send_signal(signal.SIGKILL)
    publisher.wait()
    assert list(warehouse.path.parent.glob("*.building*"))
    assert query_copy(warehouse, "SELECT max(night) FROM nights") == [(FIRST,)]
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "SELECT max(night) FROM nights") == [(SECOND,)]
    assert not list(warehouse.path.parent.glob("*.building*"))


def test_a_path_with_quotes_and_blanks_is_published_like_any_other(tmp_path):
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


def test_leftovers_of_a_killed_first_publish_do_not_get_into_the_copy(warehouse, add_night, start_python):
    add_night(FIRST)
    publisher = start_python(PUBLISH_AND_STOP_BEFORE_THE_SWAP, warehouse.path)
    assert publisher.stdout.readline() == "built\n"
    publisher.send_signal(signal.SIGKILL)
    publisher.wait()
    add_night(FIRST, universe="crypto")
    publish_copy(warehouse, "recorded", "crypto")
    assert query_copy(warehouse, "SELECT universe FROM nights") == [("crypto",)]


def test_a_copy_of_an_older_program_is_brought_up_to_date(warehouse, add_night):
    add_night(FIRST)
    publish_copy(warehouse, "recorded", "us_stocks")
    warehouse.published.chmod(0o644)
    with duckdb.connect(str(warehouse.published)) as con:
        con.execute("DROP VIEW leaderboard; DELETE FROM store.migrations WHERE name = 'views/leaderboard.sql'")
    publish_copy(warehouse, "recorded", "us_stocks")
    assert query_copy(warehouse, "FROM leaderboard") == []


def test_readers_of_a_damaged_copy_get_its_name(warehouse):
    warehouse.published.write_bytes(b"not a database" * 1000)
    with pytest.raises(WarehouseCorruptError, match=r"warehouse\.published\.duckdb: not a readable"):
        query_copy(warehouse, "FROM nights")


def test_publishing_waits_for_the_writer(warehouse, add_night, start_python):
    add_night(FIRST)
    code = (
        "import sys, time; from warehouse.connect import Warehouse\n"
        "with Warehouse.from_url(sys.argv[1]).write('busy'):\n    print('held', flush=True); time.sleep(1)"
    )
    assert start_python(code, warehouse.path).stdout.readline() == "held\n"
    started = time.monotonic()
    publish_copy(warehouse, "recorded", "us_stocks")
    assert time.monotonic() - started > 0.5
