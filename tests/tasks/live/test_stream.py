"""A whole stream against a fake exchange: after any fault it has the rows and the state of an undisturbed stream."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from models.graphs.market_stream import EVENT_VALUES
from models.graphs.snapshot import GraphError
from tasks.errors import RefusedError
from tasks.events import archive_run_id
from tasks.live.backfill import MissedTrades
from tasks.live.event_feed import StoreOnly
from tasks.live.job import StreamJob, StreamReport
from tasks.live.stream import MAX_AHEAD, MarketStream, stream_events
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_frames import FrameReader, topics_for
from tasks.markets.event_rows import event_rows
from tasks.markets.retry_policy import NO_RETRY, RetryPolicy
from tests.exchange import (
    AWAIT_SNAPSHOT_REQUEST,
    COME_BACK,
    DISCONNECT,
    FALL_SILENT,
    GO_AWAY,
    QUICK_TIMING,
    FakeExchange,
    run_until_script_ends,
)
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.migrate import migrate

SYMBOLS = ("BTCUSDT", "ETHUSDT")
START_MS = 1_789_299_660_000  # UTC
TRADE_INTERVAL_MS = 250
LAST_TRADE = 40  # number of the script's last trade


def trade(number: int, symbol: str = "BTCUSDT", ms: int | None = None) -> str:
    """A frame with the trade ``number``, TRADE_INTERVAL_MS after trade ``number - 1``, or at START_MS + ``ms``."""
    stamp = START_MS + (TRADE_INTERVAL_MS * number if ms is None else ms)
    price = f"{60_000 + 7 * (number % 5)}"
    data = {
        "T": stamp,
        "s": symbol,
        "S": "Buy" if number % 3 else "Sell",
        "v": "0.5",
        "p": price,
        "i": f"{symbol}-{number}",
    }
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": stamp + 30, "data": [data]})


def liquidation(number: int) -> str:
    """A frame with a liquidation at the time of the trade ``number``."""
    data = {"T": START_MS + TRADE_INTERVAL_MS * number, "s": "ETHUSDT", "S": "Sell", "v": f"{number}", "p": "2500"}
    return json.dumps({"topic": "allLiquidation.ETHUSDT", "type": "snapshot", "ts": data["T"], "data": [data]})


def book(update: int, kind: str = "delta") -> str:
    """A book frame whose best bid is 1000 + ``update``, 20 ms after the trade with the number ``update``."""
    stamp = START_MS + TRADE_INTERVAL_MS * update + 20
    levels = {"b": [[str(1_000 + update), "1"]], "a": [["5000", str(update)]]}
    if kind == "snapshot":
        levels = {"b": [[str(1_000 + u), "1"] for u in range(1, update + 1)], "a": levels["a"]}
    data = {"s": "BTCUSDT", **levels, "u": update, "seq": 1}
    return json.dumps({"topic": "orderbook.50.BTCUSDT", "type": kind, "ts": stamp + 5, "cts": stamp, "data": data})


def ticker(number: int, kind: str = "delta", **data: str) -> str:
    """A ticker frame with these fields, 40 ms after the trade ``number``."""
    stamp = START_MS + TRADE_INTERVAL_MS * number + 40
    data = {"symbol": "BTCUSDT", **data}
    return json.dumps({"topic": "tickers.BTCUSDT", "type": kind, "cs": number, "ts": stamp, "data": data})


# book change → the snapshot after it, for FakeExchange
BOOKS = {book(update): book(update, "snapshot") for update in range(2, LAST_TRADE + 1)}
TICKER = {"fundingRate": "0.0001", "nextFundingTime": "1789315200000", "openInterest": "5000"}


def script() -> list[str]:
    """Ten seconds of frames: trades of both symbols, a book, a ticker and liquidations.

    At the trades 20 to 25 and 30 to 33 there are only trades, because REST can replace only trades after a fault.
    """
    steps = [ticker(0, "snapshot", **TICKER), book(1, "snapshot")]
    update = 1
    for number in range(1, LAST_TRADE + 1):
        steps += [trade(number), trade(number, "ETHUSDT")]
        if not (20 <= number <= 25 or 30 <= number <= 33):
            update += 1
            steps += [book_at_trade(update, number)]
        if number % 10 == 5 and number != 25:
            steps += [liquidation(number), ticker(number, openInterest=str(5000 + number))]
    return steps


def book_at_trade(update: int, number: int) -> str:
    """The book's change ``update``, 20 ms after the trade ``number``; adds the snapshot after it to BOOKS."""
    change = json.loads(book(update))
    change["cts"] = START_MS + TRADE_INTERVAL_MS * number + 20
    text = json.dumps(change)
    snapshot = json.loads(book(update, "snapshot"))
    snapshot["cts"] = change["cts"]
    BOOKS[text] = json.dumps(snapshot)
    return text


class StoredEvent(NamedTuple):
    """A row of the table ``events`` without ``fetched_at``: the columns that tests use, and the other columns."""

    kind: str
    symbol: str
    event_id: str
    columns: tuple


class StreamResult(NamedTuple):
    """The stored rows and the final state of a stream."""

    rows: list[StoredEvent]
    state: dict[str, np.ndarray]


class OrderSensitive(StoreOnly):
    """A consumer whose state depends on every row, on their order and on the batches they arrived in.

    ``value``: a decaying sum of the rows' values, the number of batches, the number of rows.
    """

    def __init__(self) -> None:
        self.value = np.array([1.0, 0.0, 0.0])

    def consume(self, rows: np.ndarray) -> None:
        total = sum(rows[name].sum() for name in ("kind", "symbol", *EVENT_VALUES)) + rows["t"].sum() % 997
        decaying_sum, n_batches, n_rows = self.value
        self.value = np.array([decaying_sum * 0.9 + total, n_batches + 1, n_rows + len(rows)])

    def state(self) -> dict[str, np.ndarray]:
        return {"value": self.value}

    def restore(self, arrays: Any) -> None:
        self.value = arrays["value"]


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "warehouse.duckdb"
    migrate(Warehouse.from_url(path))
    return path


@pytest.fixture
def warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse.from_url(shutil.copy(migrated_file, tmp_path))


@pytest.fixture
def rest() -> Iterator[Any]:
    """rest(exchange): a client of the exchange's REST service."""
    clients = []

    def build(exchange: FakeExchange) -> Bybit:
        clients.append(Bybit(datetime(2100, 1, 1, tzinfo=UTC), retry_policy=NO_RETRY, url=exchange.rest_url))
        return clients[-1]

    yield build
    for client in clients:
        client.close()


def make_job(exchange: FakeExchange, warehouse: Warehouse, **changes: Any) -> StreamJob:
    job = StreamJob(
        warehouse,
        "test",
        SYMBOLS,
        "recorded",
        exchange.url,
        save_every_s=0.1,
        book_every_ms=100,
        timing=QUICK_TIMING,
        backfill_every_s=0.02,
    )
    return replace(job, **changes)


def stored_events(warehouse: Warehouse, where: str = "true") -> list[StoredEvent]:
    """The stored events in a fixed order."""
    columns = "kind, symbol, event_id, * EXCLUDE (kind, symbol, event_id, fetched_at)"
    with warehouse.read() as con:
        rows = con.execute(f"SELECT {columns} FROM events WHERE {where} ORDER BY ALL").fetchall()
    return [StoredEvent(kind, symbol, event_id, tuple(other)) for kind, symbol, event_id, *other in rows]


def event_ids(rows: list[StoredEvent]) -> list[str]:
    """The ids of the events, in the order of the rows."""
    return [row.event_id for row in rows]


def run_script(steps: list[str], warehouse: Warehouse, rest: Any, **changes: Any) -> tuple[MarketStream, StreamReport]:
    """A stream that has received the whole script, and its report."""
    rejected = changes.pop("rejected", ())
    topics = topics_for(changes.get("symbols", SYMBOLS))
    with FakeExchange(steps, topics, rejected, BOOKS) as exchange:
        job = make_job(exchange, warehouse, rest=rest(exchange), **changes)
        stream = MarketStream(job, OrderSensitive())
        return stream, asyncio.run(run_until_script_ends(stream, exchange))


@pytest.fixture(scope="module")
def undisturbed(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> StreamResult:
    """The stored rows and the state of a run without faults."""
    warehouse = Warehouse.from_url(shutil.copy(migrated_file, tmp_path_factory.mktemp("undisturbed")))
    with FakeExchange(script(), topics_for(SYMBOLS), (), BOOKS) as exchange:
        stream = MarketStream(make_job(exchange, warehouse), OrderSensitive())
        report = asyncio.run(run_until_script_ends(stream, exchange))
    rows = stored_events(warehouse)
    n_book_changes = LAST_TRADE - 6 - 4  # no change at the trades 20 to 25 and 30 to 33
    # trades of both symbols, the book (its first snapshot is in the slot of its first change, which gives one row),
    # liquidations, one funding rate, open interest
    assert len(rows) == 2 * LAST_TRADE + n_book_changes + 3 + 1 + 4
    assert report.counts["stored"] == report.counts["events"] == len(rows)
    assert not any(report.counts[name] for name in ("late", "duplicates", "gaps", "reconnects", "malformed", "filled"))
    return StreamResult(rows, stream.feed.state())


def assert_same_state(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compares everything except the counts of dropped rows and the instant of receipt."""
    assert state.keys() == expected.keys()
    for name in sorted(state.keys() - {"received", "buffer.counts"}):
        arrays = (state[name], expected[name])
        if name in ("buffer.seen", "buffer.waiting"):  # their order is that of arrival
            arrays = tuple(np.sort(array, order=("t", "key")) for array in arrays)
        np.testing.assert_array_equal(*arrays, err_msg=name)
    assert state["buffer.counts"][-1] == expected["buffer.counts"][-1]  # the number of events handed over


def opening_snapshots(steps: list[str]) -> list[str]:
    """The snapshots that an exchange which has played ``steps`` sends to a new subscriber."""
    tickers = [json.loads(text)["data"] for text in steps if '"tickers.' in text]
    last_book = [text for text in steps if '"orderbook.' in text][-1]
    return [ticker(0, "snapshot", **{**TICKER, "openInterest": tickers[-1]["openInterest"]}), BOOKS[last_book]]


def insert_after(steps: list[str], step: str, *added: str) -> None:
    """Inserts steps after the first step that equals ``step``."""
    position = steps.index(step) + 1
    steps[position:position] = added


def faulty_script() -> list[str]:
    """The script with every kind of fault except a gap in the book."""
    steps = script()
    insert_after(steps, trade(3), trade(3), trade(2))  # one repeated immediately, one after the next trade
    insert_after(steps, trade(12), trade(1))  # repeated so late that the buffer has forgotten it
    for number in (7, 14, 36):  # two trades swapped; the older one is not late
        first = steps.index(trade(number))
        second = steps.index(trade(number + 2))
        steps[first], steps[second] = steps[second], steps[first]
    insert_after(
        steps,
        trade(9),
        "",
        "{",
        '{"topic":"publicTrade.BTCUSDT","data":[{}]}',
        '{"topic":"orderbook.50.BTCUSDT"}',
        "[1]",
    )
    insert_after(steps, trade(16), DISCONNECT)
    insert_after(steps, trade(20), GO_AWAY)
    insert_after(steps, trade(24, "ETHUSDT"), COME_BACK)
    insert_after(steps, trade(30), FALL_SILENT)
    insert_after(steps, trade(33), COME_BACK)
    return steps


def test_after_every_fault_rows_and_state_equal_those_of_an_undisturbed_run(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    stream, report = run_script(faulty_script(), warehouse, rest)
    counts = report.counts
    rows = undisturbed.rows
    state = undisturbed.state
    assert stored_events(warehouse) == rows
    assert_same_state(stream.feed.state(), state)
    assert counts["stored"] == len(rows)
    assert counts["reconnects"] == 3
    assert counts["malformed"] == 5
    assert counts["late"] >= 1
    assert counts["duplicates"] >= 2
    assert counts["filled"] >= 2 * 4 + 2 * 3  # of both symbols, the trades 21 to 24 and 31 to 33
    assert (counts["gaps"], counts["rejected"], counts["unfilled"]) == (0, 0, 0)


def test_without_rest_the_missed_trades_stay_missing(undisturbed: StreamResult, warehouse: Warehouse) -> None:
    _, report = run_script(faulty_script(), warehouse, lambda _: None)
    missing = set(event_ids(undisturbed.rows)) - set(event_ids(stored_events(warehouse)))
    assert report.counts["filled"] == 0
    assert {f"{symbol}-{number}" for symbol in SYMBOLS for number in (22, 23, 24, 31, 32)} <= missing
    assert all("USDT-" in trade_id for trade_id in missing)


def test_a_gap_in_the_book_costs_the_missing_changes_and_nothing_else(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    steps = script()
    lost = next(text for text in steps if "orderbook" in text and '"u": 9,' in text)
    later = next(text for text in steps if "orderbook" in text and '"u": 12,' in text)
    steps.remove(lost)
    insert_after(steps, later, AWAIT_SNAPSHOT_REQUEST)  # the changes 10 to 12 cannot be used without 9
    stream, report = run_script(steps, warehouse, rest)
    rows = undisturbed.rows
    state = undisturbed.state
    stored = stored_events(warehouse)
    missing = {(row.kind, row.event_id) for row in rows if row not in stored}
    assert {("book", "9")} <= missing <= {("book", update) for update in ("9", "10", "11")}  # up to the snapshot
    assert [row for row in stored if row not in rows] == []
    assert report.counts["gaps"] == 1
    book_after = stream.frames.book("BTCUSDT")
    assert (book_after.update_id, max(book_after.bids), len(book_after.bids)) == (31, 1_031, 31)
    assert stream.feed.state()["buffer.newest"] == state["buffer.newest"]


def test_a_rejected_topic_does_not_affect_the_others(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    symbols = (*SYMBOLS, "NOSUCHUSDT")
    stream, report = run_script(script(), warehouse, rest, symbols=symbols, rejected=topics_for(symbols)[8:])
    assert stored_events(warehouse) == undisturbed.rows
    assert report.counts["rejected"] == 4
    assert set(stream.frames.rejected) == set(topics_for(("NOSUCHUSDT",)))


def test_a_stream_whose_topics_are_all_rejected_raises_the_reason(warehouse: Warehouse, rest: Any) -> None:
    with pytest.raises(RefusedError, match=r"none of the topics: Invalid symbol :\[publicTrade\.BTCUSDT\]"):
        run_script([], warehouse, rest, rejected=topics_for(SYMBOLS))


def test_a_trade_that_arrives_too_late_is_stored_but_not_passed_to_the_consumer(
    warehouse: Warehouse, rest: Any
) -> None:
    steps = script()
    insert_after(steps, trade(20), trade(99, ms=TRADE_INTERVAL_MS))  # as old as trade 1
    stream, report = run_script(steps, warehouse, rest)
    assert (report.counts["late"], report.counts["stored"]) == (1, 119)
    assert len(stored_events(warehouse, "event_id = 'BTCUSDT-99'")) == 1
    assert stream.feed.buffer.counts["received"] == 119


def test_a_stream_that_is_stopped_and_started_again_equals_an_uninterrupted_one(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    steps = script()
    half = steps.index(trade(16)) + 1
    run_script(steps[:half], warehouse, rest)
    stream, report = run_script([*opening_snapshots(steps[:half]), *steps[half:]], warehouse, rest)
    assert stored_events(warehouse) == undisturbed.rows
    assert_same_state(stream.feed.state(), undisturbed.state)
    assert report.counts["stored"] < len(undisturbed.rows)


def test_archived_days_fetched_between_two_runs_are_not_passed_to_the_consumer(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    steps = script()
    half = steps.index(trade(16)) + 1
    run_script(steps[:half], warehouse, rest)
    day_before = {
        "kind": "trade",
        "symbol": SYMBOLS[0],
        "event_id": "archived",
        "side": "buy",
        "price": 2.0,
        "size": 1.0,
    }
    rows = event_rows([day_before | {"ts": 1_719_500_000_000_000}])
    stamps = {"source": "recorded", "venue": "bybit", "run_id": archive_run_id("recorded")}
    with warehouse.write("archive") as con:
        assert append_events(con, rows, **stamps, fetched_at=datetime.now(UTC)) == 1
    stream, report = run_script([*opening_snapshots(steps[:half]), *steps[half:]], warehouse, rest)
    assert report.counts["late"] == 0
    assert_same_state(stream.feed.state(), undisturbed.state)


def test_a_state_older_than_the_stored_rows_reads_the_rows_after_it(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    """After a crash between two saves of the state, the rows written since the first save are read again."""
    steps = script()
    quarter = steps.index(trade(11)) + 1
    half = steps.index(trade(16)) + 1
    stream, _ = run_script(steps[:quarter], warehouse, rest)
    state_file = stream.job.state_file
    older_state = state_file.read_bytes()
    run_script([*opening_snapshots(steps[:quarter]), *steps[quarter:half]], warehouse, rest)
    state_file.write_bytes(older_state)
    stream, _ = run_script([*opening_snapshots(steps[:half]), *steps[half:]], warehouse, rest)
    assert stored_events(warehouse) == undisturbed.rows
    assert_same_state(stream.feed.state(), undisturbed.state)


def test_trades_missed_between_two_runs_are_requested_by_rest(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any
) -> None:
    steps = script()
    disconnected = steps.index(trade(20))
    reconnected = steps.index(trade(25, "ETHUSDT"))
    run_script(steps[:disconnected], warehouse, rest)
    missed = [GO_AWAY, *steps[disconnected:reconnected], COME_BACK]
    later_steps = [*opening_snapshots(steps[:disconnected]), *missed, *steps[reconnected:]]
    _, report = run_script(later_steps, warehouse, rest)
    assert stored_events(warehouse) == undisturbed.rows
    assert report.counts["filled"] >= 10  # of both symbols, the trades 20 to 24


def test_a_symbols_first_trade_is_filled_in_when_it_happens_between_two_connections(
    warehouse: Warehouse, rest: Any
) -> None:
    steps = [trade(1), GO_AWAY, trade(2), trade(2, "ETHUSDT"), COME_BACK, trade(3)]
    _, report = run_script(steps, warehouse, rest)
    assert event_ids(stored_events(warehouse)) == ["BTCUSDT-1", "BTCUSDT-2", "BTCUSDT-3", "ETHUSDT-2"]
    assert report.counts["late"] == 0


def test_when_rest_is_down_the_missed_trades_stay_missing_and_are_logged(
    warehouse: Warehouse, rest: Any, caplog: pytest.LogCaptureFixture
) -> None:
    steps = script()
    insert_after(steps, trade(16), DISCONNECT)
    with FakeExchange(steps, topics_for(SYMBOLS), (), BOOKS) as exchange:
        exchange.is_rest_down = True
        stream = MarketStream(make_job(exchange, warehouse, rest=rest(exchange)))
        report = asyncio.run(run_until_script_ends(stream, exchange))
    assert report.counts["unfilled"] == 2
    assert "BTCUSDT: trades since" in caplog.text
    assert "stay missing" in caplog.text


def test_a_stopped_stream_does_not_wait_for_a_rest_service_that_is_down(warehouse: Warehouse) -> None:
    with FakeExchange([trade(1), DISCONNECT, trade(2)], topics_for(SYMBOLS)) as exchange:
        exchange.is_rest_down = True
        slow_retries = RetryPolicy(first_wait_s=60.0)
        client = Bybit(datetime(2100, 1, 1, tzinfo=UTC), retry_policy=slow_retries, url=exchange.rest_url)
        stream = MarketStream(make_job(exchange, warehouse, rest=client, timing=replace(QUICK_TIMING, silence_s=60)))

        async def stop_after_script() -> StreamReport:
            stop = asyncio.Event()
            running = asyncio.create_task(stream.run(stop))
            while not exchange.done.is_set():
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            stop.set()
            return await running

        started_s = time.monotonic()
        report = asyncio.run(stop_after_script())
        assert time.monotonic() - started_s < 10
        client.close()
    assert report.counts["unfilled"] == 2
    assert {"BTCUSDT-1", "BTCUSDT-2"} == set(event_ids(stored_events(warehouse)))


def test_backfills_keep_their_interval_and_request_nothing_once_stopped(rest: Any) -> None:
    async def backfill_repeatedly(exchange: FakeExchange) -> tuple[list[int], float]:
        missed_trades = MissedTrades(rest(exchange), every_s=0.2)
        missed_trades.last_trade_ts["BTCUSDT"] = datetime.fromtimestamp(0, UTC)
        stop = asyncio.Event()
        started_s = time.monotonic()
        rows = [(await missed_trades.backfill(stop)).num_rows for _ in range(3)]
        seconds = time.monotonic() - started_s
        stop.set()
        return [*rows, (await missed_trades.backfill(stop)).num_rows], seconds

    with FakeExchange([], topics_for(SYMBOLS)) as exchange:
        exchange.publish(trade(1))
        rows, seconds = asyncio.run(backfill_repeatedly(exchange))
    assert rows == [1, 1, 1, 0]
    assert 2 * 0.2 <= seconds < 5


def test_a_live_event_far_in_the_future_is_dropped_and_counted(warehouse: Warehouse, rest: Any) -> None:
    ahead_ms = int(time.time() * 1000) + int(MAX_AHEAD.total_seconds() * 1000) + 10_000
    _, report = run_script([trade(1), trade(2, ms=ahead_ms), trade(3)], warehouse, rest, source="live")
    assert report.counts["ahead"] == 1
    assert event_ids(stored_events(warehouse)) == ["BTCUSDT-1", "BTCUSDT-3"]


def test_silence_and_event_storms_are_counted_and_logged(
    warehouse: Warehouse, rest: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """TGN-39."""
    _, report = run_script(script(), warehouse, rest, max_quiet_s=0.05, max_events_per_s=10.0)
    assert report.counts["stale"] >= 1
    assert report.counts["storms"] >= 1
    assert "the forecasts are stale" in caplog.text
    assert "an event storm" in caplog.text


def test_the_stream_continues_while_a_night_holds_the_warehouse(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any, caplog: pytest.LogCaptureFixture
) -> None:
    night_warehouse = warehouse
    warehouse = replace(warehouse, lock_timeout_s=0.05)
    with FakeExchange(script(), topics_for(SYMBOLS), (), BOOKS) as exchange:
        stream = MarketStream(make_job(exchange, warehouse, rest=rest(exchange)), OrderSensitive())
        release = threading.Event()
        stream.resume()

        def hold_warehouse() -> None:
            with night_warehouse.write("a night"):
                release.wait(10)

        async def release_after_script() -> StreamReport:
            holding = asyncio.create_task(asyncio.to_thread(hold_warehouse))
            running = asyncio.create_task(run_until_script_ends(stream, exchange))
            while not exchange.done.is_set():
                await asyncio.sleep(0.02)
            received = stream.feed.buffer.counts["received"]
            release.set()
            await holding
            assert received > 50
            return await running

        stream.resume = lambda: None  # type: ignore[method-assign]  # done above, before the night took the lock
        asyncio.run(release_after_script())
    assert "the received events wait in memory" in caplog.text
    assert stored_events(warehouse) == undisturbed.rows
    assert_same_state(stream.feed.state(), undisturbed.state)


class FailsAtSecondBatch(OrderSensitive):
    """A consumer that raises an error at its second batch."""

    def consume(self, rows: np.ndarray) -> None:
        super().consume(rows)
        _, n_batches, _ = self.value
        if n_batches == 2:
            raise GraphError("no such batch")


def test_rows_that_the_consumer_fails_on_are_stored_and_its_incomplete_state_is_not(
    warehouse: Warehouse, rest: Any
) -> None:
    with FakeExchange(script(), topics_for(SYMBOLS), (), BOOKS) as exchange:
        stream = MarketStream(make_job(exchange, warehouse, save_every_s=60.0), FailsAtSecondBatch())
        with pytest.raises(GraphError, match="no such batch"):
            asyncio.run(run_until_script_ends(stream, exchange))
    assert len(stored_events(warehouse)) == stream.counts["events"] > 0
    assert not stream.job.state_file.exists()


@pytest.mark.parametrize("wrong", [{"openInterest": "0"}, {"openInterest": "1e200"}, {"fundingRate": "1e40"}], ids=str)
def test_a_frame_with_an_impossible_value_is_dropped_alone(
    undisturbed: StreamResult, warehouse: Warehouse, rest: Any, wrong: dict[str, str]
) -> None:
    steps = script()
    insert_after(steps, trade(12), ticker(12, **wrong))
    stream, report = run_script(steps, warehouse, rest)
    assert report.counts["malformed"] == 1
    assert stored_events(warehouse) == undisturbed.rows
    assert_same_state(stream.feed.state(), undisturbed.state)


def test_a_stream_ends_after_its_minutes(warehouse: Warehouse) -> None:
    with FakeExchange([], topics_for(SYMBOLS)) as exchange:
        report = stream_events(make_job(exchange, warehouse, minutes=0.005))
    assert 0.3 <= report.seconds < 5  # 0.005 minutes


def test_a_damaged_state_file_is_refused_by_name(warehouse: Warehouse, rest: Any) -> None:
    stream, _ = run_script([trade(1)], warehouse, rest)
    stream.job.state_file.write_bytes(b"damaged")
    with pytest.raises(GraphError, match=r"recorded-test\.npz: no state of a stream"):
        run_script([trade(2)], warehouse, rest)


def test_the_recorded_frames_are_stored_as_the_reader_returns_them(
    shared_data: Path, warehouse: Warehouse, rest: Any
) -> None:
    """Spot trades and a book of the testnet, tickers of the main net, a published liquidation, over two connections."""
    wire = shared_data / "wire"
    example = (wire / "bybit_doc_examples" / "Subscriptions__V5__Linear__Liquidations.txt").read_text()
    liquidation_text = json.dumps(json.loads(example[example.index("= \n{") + 3 :]))
    spot = (wire / "bybit_ws" / "raw_md_stream.testnet_spot.jsonl").read_text().splitlines()
    tickers = (wire / "bybit_ws" / "tickers_stream.mainnet_linear.excerpt.jsonl").read_text().splitlines()
    spot = [
        text for text in spot if '"topic"' in text
    ]  # without acknowledgements, which the fake exchange sends itself
    tickers = [text for text in tickers if '"topic"' in text]
    reader = FrameReader(SYMBOLS, book_every_us=100_000)
    expected = [row for text in (liquidation_text, *spot, *tickers) for row in reader.read(text)]
    _, report = run_script([liquidation_text, *spot, DISCONNECT, *tickers], warehouse, rest)
    stored = {(row.kind, row.symbol, row.event_id) for row in stored_events(warehouse)}
    assert stored == {(row["kind"], row["symbol"], row["event_id"]) for row in expected}
    assert report.counts["stored"] == len(expected) == 4 + 8 + 4 + 1  # trades, books, tickers, the liquidation
    assert (report.counts["gaps"], report.counts["reconnects"], report.counts["malformed"]) == (0, 1, 0)
