"""A whole stream against an exchange of our own: whatever goes wrong, it ends where an undisturbed one does."""

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
from typing import Any

import numpy as np
import pytest

from models.graphs.market_stream import EVENT_VALUES
from models.graphs.snapshot import GraphError
from tasks.errors import RefusedError
from tasks.events import archived_by
from tasks.live.backfill import MissedTrades
from tasks.live.event_feed import NoConsumer
from tasks.live.job import StreamJob, StreamReport
from tasks.live.stream import AHEAD, MarketStream, stream_events
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_frames import Frames, topics_of
from tasks.markets.bybit_ws import Timing
from tasks.markets.event_rows import event_rows
from tasks.markets.retry_policy import NO_RETRY, RetryPolicy
from tests.exchange import AWAY, BACK, CLOSE, SILENCE, SNAPSHOT, Exchange
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.migrate import migrate

SYMBOLS = ("BTCUSDT", "ETHUSDT")
QUICK = Timing(heartbeat_s=0.05, silence_s=0.3, open_s=5, first_wait_s=0.01, longest_wait_s=0.05)
BEGAN_MS = 1_789_299_660_000
LAST = 40  # of the trades of a script


def trade(number: int, symbol: str = "BTCUSDT", ms: int | None = None) -> str:
    """A trade, a quarter of a second after the one with the number before."""
    stamp = BEGAN_MS + (250 * number if ms is None else ms)
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
    data = {"T": BEGAN_MS + 250 * number, "s": "ETHUSDT", "S": "Sell", "v": f"{number}", "p": "2500"}
    return json.dumps({"topic": "allLiquidation.ETHUSDT", "type": "snapshot", "ts": data["T"], "data": [data]})


def book(update: int, kind: str = "delta") -> str:
    """A book whose best bid is the number of its last change; a change comes with the trade of its number."""
    stamp = BEGAN_MS + 250 * update + 20
    levels = {"b": [[str(1_000 + update), "1"]], "a": [["5000", str(update)]]}
    if kind == "snapshot":
        levels = {"b": [[str(1_000 + u), "1"] for u in range(1, update + 1)], "a": levels["a"]}
    data = {"s": "BTCUSDT", **levels, "u": update, "seq": 1}
    return json.dumps({"topic": "orderbook.50.BTCUSDT", "type": kind, "ts": stamp + 5, "cts": stamp, "data": data})


def ticker(number: int, kind: str = "delta", **data: str) -> str:
    stamp = BEGAN_MS + 250 * number + 40
    data = {"symbol": "BTCUSDT", **data}
    return json.dumps({"topic": "tickers.BTCUSDT", "type": kind, "cs": number, "ts": stamp, "data": data})


BOOKS = {book(update): book(update, "snapshot") for update in range(2, LAST + 1)}
TICKER = {"fundingRate": "0.0001", "nextFundingTime": "1789315200000", "openInterest": "5000"}


def script() -> list[str]:
    """Ten seconds: trades of both symbols, a book, a ticker, liquidations; 20 to 25 and 30 to 33 are trades alone."""
    steps = [ticker(0, "snapshot", **TICKER), book(1, "snapshot")]
    update = 1
    for number in range(1, LAST + 1):
        steps += [trade(number), trade(number, "ETHUSDT")]
        if not (20 <= number <= 25 or 30 <= number <= 33):
            update += 1
            steps += [book_at(update, number)]
        if number % 10 == 5 and number != 25:
            steps += [liquidation(number), ticker(number, openInterest=str(5000 + number))]
    return steps


def book_at(update: int, number: int) -> str:
    """The change ``update`` of the book, at the time of the trade ``number``."""
    frame = json.loads(book(update))
    frame["cts"] = BEGAN_MS + 250 * number + 20
    text = json.dumps(frame)
    whole = json.loads(book(update, "snapshot"))
    whole["cts"] = frame["cts"]
    BOOKS[text] = json.dumps(whole)
    return text


class Chain(NoConsumer):
    """A memory that depends on every row, their order and where the batches were cut."""

    def __init__(self) -> None:
        self.value = np.array([1.0, 0.0, 0.0])

    def consume(self, rows: np.ndarray) -> None:
        said = sum(rows[name].sum() for name in ("kind", "symbol", *EVENT_VALUES)) + rows["t"].sum() % 997
        self.value = np.array([self.value[0] * 0.9 + said, self.value[1] + 1, self.value[2] + len(rows)])

    def state(self) -> dict[str, np.ndarray]:
        return {"value": self.value}

    def restore(self, arrays: Any) -> None:
        self.value = arrays["value"]


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "warehouse.duckdb"
    migrate(Warehouse.at(path))
    return path


@pytest.fixture
def warehouse(migrated_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse.at(shutil.copy(migrated_file, tmp_path))


@pytest.fixture
def rest() -> Iterator[Any]:
    """rest(exchange): a client of its REST service."""
    clients = []

    def build(exchange: Exchange) -> Bybit:
        clients.append(Bybit(datetime(2100, 1, 1, tzinfo=UTC), patience=NO_RETRY, url=exchange.rest_url))
        return clients[-1]

    yield build
    for client in clients:
        client.close()


def job_of(exchange: Exchange, warehouse: Warehouse, **changes: Any) -> StreamJob:
    job = StreamJob(
        warehouse,
        "test",
        SYMBOLS,
        "recorded",
        exchange.url,
        save_every_s=0.1,
        book_every_ms=100,
        timing=QUICK,
        sweep_every_s=0.02,
    )
    return replace(job, **changes)


async def until_played(stream: MarketStream, exchange: Exchange) -> StreamReport:
    """Runs the stream until the script is at its end and nothing has come for a while."""
    stop = asyncio.Event()
    running = asyncio.create_task(stream.run(stop))
    frames, quiet = -1, 0
    async with asyncio.timeout(20):
        while not running.done() and quiet < 4:
            await asyncio.sleep(0.05)
            now = sum(stream.frames.counts[name] for name in ("frames", "malformed")) - stream.frames.counts["pongs"]
            quiet = quiet + 1 if exchange.done.is_set() and now == frames else 0
            frames = now
    stop.set()
    return await running


def rows_of(warehouse: Warehouse, where: str = "true") -> list[tuple]:
    with warehouse.read() as con:
        return con.execute(f"SELECT * EXCLUDE (fetched_at) FROM events WHERE {where} ORDER BY ALL").fetchall()


def played(steps: list[str], warehouse: Warehouse, rest: Any, **changes: Any) -> tuple[MarketStream, StreamReport]:
    """A stream that has gone through the script, and its report."""
    rejected = changes.pop("rejected", ())
    topics = topics_of(changes.get("symbols", SYMBOLS))
    with Exchange(steps, topics, rejected, BOOKS) as exchange:
        job = job_of(exchange, warehouse, rest=rest(exchange), **changes)
        stream = MarketStream(job, Chain())
        return stream, asyncio.run(until_played(stream, exchange))


@pytest.fixture(scope="module")
def clean(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple], dict[str, np.ndarray]]:
    """Rows and state of an undisturbed run."""
    warehouse = Warehouse.at(shutil.copy(migrated_file, tmp_path_factory.mktemp("clean")))
    with Exchange(script(), topics_of(SYMBOLS), (), BOOKS) as exchange:
        stream = MarketStream(job_of(exchange, warehouse), Chain())
        report = asyncio.run(until_played(stream, exchange))
    rows = rows_of(warehouse)
    assert report.counts["stored"] == report.counts["events"] == len(rows) == 2 * LAST + 30 + 3 + 1 + 4
    assert not any(report.counts[name] for name in ("late", "duplicates", "gaps", "reconnects", "malformed", "filled"))
    return rows, stream.feed.state()


def same_state(state: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Everything but the counts of what was dropped and the instant of receipt."""
    assert state.keys() == other.keys()
    for name in sorted(state.keys() - {"received", "buffer.counts"}):
        unordered = name in ("buffer.seen", "buffer.waiting")
        one, two = (np.sort(each[name], order=("t", "key")) if unordered else each[name] for each in (state, other))
        np.testing.assert_array_equal(one, two, err_msg=name)
    assert state["buffer.counts"][-1] == other["buffer.counts"][-1]


def opening(steps: list[str]) -> list[str]:
    """The snapshots with which an exchange that has played ``steps`` answers who subscribes then."""
    ticks = [json.loads(text)["data"] for text in steps if '"tickers.' in text]
    last_book = [text for text in steps if '"orderbook.' in text][-1]
    return [ticker(0, "snapshot", **{**TICKER, "openInterest": ticks[-1]["openInterest"]}), BOOKS[last_book]]


def put(steps: list[str], after: str, *added: str) -> None:
    at = steps.index(after) + 1
    steps[at:at] = added


def faulty() -> list[str]:
    """The same ten seconds with everything that the issue names, but a gap in the book."""
    steps = script()
    put(steps, trade(3), trade(3), trade(2))  # twice, and again later
    put(steps, trade(12), trade(1))  # so late that the buffer does not know it any more
    for number in (7, 14, 36):  # out of order, within the bound
        here, there = steps.index(trade(number)), steps.index(trade(number + 2))
        steps[here], steps[there] = steps[there], steps[here]
    put(
        steps,
        trade(9),
        "",
        "{",
        '{"topic":"publicTrade.BTCUSDT","data":[{}]}',
        '{"topic":"orderbook.50.BTCUSDT"}',
        "[1]",
    )
    put(steps, trade(16), CLOSE)
    put(steps, trade(20), AWAY)
    put(steps, trade(24, "ETHUSDT"), BACK)
    put(steps, trade(30), SILENCE)
    put(steps, trade(33), BACK)
    return steps


def test_after_every_fault_rows_and_state_are_those_of_an_undisturbed_run(clean, warehouse, rest) -> None:
    stream, report = played(faulty(), warehouse, rest)
    counts = report.counts
    rows, state = clean
    assert rows_of(warehouse) == rows
    same_state(stream.feed.state(), state)
    assert counts["stored"] == len(rows)
    assert counts["reconnects"] == 3
    assert counts["malformed"] == 5
    assert counts["late"] >= 1
    assert counts["duplicates"] >= 2
    assert counts["filled"] >= 2 * 4 + 2 * 3
    assert (counts["gaps"], counts["rejected"], counts["unfilled"]) == (0, 0, 0)


def test_without_rest_the_missed_trades_stay_missing(clean, warehouse) -> None:
    _, report = played(faulty(), warehouse, lambda _: None)
    missing = {row[5] for row in clean[0]} - {row[5] for row in rows_of(warehouse)}
    assert report.counts["filled"] == 0
    assert {f"{symbol}-{number}" for symbol in SYMBOLS for number in (22, 23, 24, 31, 32)} <= missing
    assert all("USDT-" in trade_id for trade_id in missing)


def test_a_gap_in_the_book_costs_the_missing_changes_and_nothing_else(clean, warehouse, rest) -> None:
    steps = script()
    lost = next(text for text in steps if "orderbook" in text and '"u": 9,' in text)
    before = next(text for text in steps if "orderbook" in text and '"u": 12,' in text)
    steps.remove(lost)
    put(steps, before, SNAPSHOT)  # the changes 10 to 12 cannot be used without 9
    stream, report = played(steps, warehouse, rest)
    rows, state = clean
    stored = rows_of(warehouse)
    gone = {(row[2], row[5]) for row in rows if row not in stored}
    assert {("book", "9")} <= gone <= {("book", update) for update in ("9", "10", "11")}  # up to the snapshot
    assert [row for row in stored if row not in rows] == []
    assert report.counts["gaps"] == 1
    book_now = stream.frames.book("BTCUSDT")
    assert (book_now.update, max(book_now.bids), len(book_now.bids)) == (31, 1_031, 31)
    assert stream.feed.state()["buffer.newest"] == state["buffer.newest"]


def test_a_topic_that_is_rejected_takes_no_other_with_it(clean, warehouse, rest) -> None:
    symbols = (*SYMBOLS, "NOSUCHUSDT")
    stream, report = played(script(), warehouse, rest, symbols=symbols, rejected=topics_of(symbols)[8:])
    assert rows_of(warehouse) == clean[0]
    assert report.counts["rejected"] == 4
    assert set(stream.frames.rejected) == set(topics_of(("NOSUCHUSDT",)))


def test_a_stream_none_of_whose_topics_is_accepted_fails_and_says_why(warehouse, rest) -> None:
    with pytest.raises(RefusedError, match=r"none of the topics: Invalid symbol :\[publicTrade\.BTCUSDT\]"):
        played([], warehouse, rest, rejected=topics_of(SYMBOLS))


def test_a_new_trade_that_comes_too_late_is_stored_but_not_fed(warehouse, rest) -> None:
    steps = script()
    put(steps, trade(20), trade(99, ms=250))
    stream, report = played(steps, warehouse, rest)
    assert (report.counts["late"], report.counts["stored"]) == (1, 119)
    assert len(rows_of(warehouse, "event_id = 'BTCUSDT-99'")) == 1
    assert stream.feed.buffer.counts["received"] == 119


def test_a_stream_stopped_in_order_and_started_again_is_as_one_that_was_not(clean, warehouse, rest) -> None:
    steps = script()
    half = steps.index(trade(16)) + 1
    played(steps[:half], warehouse, rest)
    stream, report = played([*opening(steps[:half]), *steps[half:]], warehouse, rest)
    assert rows_of(warehouse) == clean[0]
    same_state(stream.feed.state(), clean[1])
    assert report.counts["stored"] < len(clean[0])


def test_days_of_the_archive_that_are_fetched_between_two_runs_are_not_fed(clean, warehouse, rest) -> None:
    steps = script()
    half = steps.index(trade(16)) + 1
    played(steps[:half], warehouse, rest)
    day_before = {
        "kind": "trade",
        "symbol": SYMBOLS[0],
        "event_id": "archived",
        "side": "buy",
        "price": 2.0,
        "size": 1.0,
    }
    rows = event_rows([day_before | {"ts": 1_719_500_000_000_000}])
    stamps = {"source": "recorded", "venue": "bybit", "run_id": archived_by("recorded")}
    with warehouse.write("archive") as con:
        assert append_events(con, rows, **stamps, fetched_at=datetime.now(UTC)) == 1
    stream, report = played([*opening(steps[:half]), *steps[half:]], warehouse, rest)
    assert report.counts["late"] == 0
    same_state(stream.feed.state(), clean[1])


def test_a_state_older_than_the_rows_is_brought_up_to_them(clean, warehouse, rest) -> None:
    """A crash between two saves of the state: what was written meanwhile is the log that it is replayed from."""
    steps = script()
    third, half = steps.index(trade(11)) + 1, steps.index(trade(16)) + 1
    stream, _ = played(steps[:third], warehouse, rest)
    state_file = stream.job.state_file
    older = state_file.read_bytes()
    played([*opening(steps[:third]), *steps[third:half]], warehouse, rest)
    state_file.write_bytes(older)
    stream, _ = played([*opening(steps[:half]), *steps[half:]], warehouse, rest)
    assert rows_of(warehouse) == clean[0]
    same_state(stream.feed.state(), clean[1])


def test_trades_missed_between_two_runs_are_asked_for(clean, warehouse, rest) -> None:
    steps = script()
    away, back = steps.index(trade(20)), steps.index(trade(25, "ETHUSDT"))
    played(steps[:away], warehouse, rest)
    lost = [AWAY, *steps[away:back], BACK]
    _, report = played([*opening(steps[:away]), *lost, *steps[back:]], warehouse, rest)
    assert rows_of(warehouse) == clean[0]
    assert report.counts["filled"] >= 10


def test_a_symbol_s_first_trade_is_not_missed_when_it_falls_between_two_connections(warehouse, rest) -> None:
    steps = [trade(1), AWAY, trade(2), trade(2, "ETHUSDT"), BACK, trade(3)]
    _, report = played(steps, warehouse, rest)
    assert [row[5] for row in rows_of(warehouse)] == ["BTCUSDT-1", "BTCUSDT-2", "BTCUSDT-3", "ETHUSDT-2"]
    assert report.counts["late"] == 0


def test_a_rest_service_that_is_out_of_order_costs_the_missed_trades_and_is_told(
    warehouse, rest, caplog: pytest.LogCaptureFixture
) -> None:
    steps = script()
    put(steps, trade(16), CLOSE)
    with Exchange(steps, topics_of(SYMBOLS), (), BOOKS) as exchange:
        exchange.rest_down = True
        stream = MarketStream(job_of(exchange, warehouse, rest=rest(exchange)))
        report = asyncio.run(until_played(stream, exchange))
    assert report.counts["unfilled"] == 2
    assert "BTCUSDT: trades since" in caplog.text
    assert "stay missing" in caplog.text


def test_a_stream_told_to_end_does_not_wait_for_a_rest_service_that_is_down(warehouse) -> None:
    with Exchange([trade(1), CLOSE, trade(2)], topics_of(SYMBOLS)) as exchange:
        exchange.rest_down = True
        patient = Bybit(
            datetime(2100, 1, 1, tzinfo=UTC), patience=RetryPolicy(first_wait_s=60.0), url=exchange.rest_url
        )
        stream = MarketStream(job_of(exchange, warehouse, rest=patient, timing=replace(QUICK, silence_s=60)))

        async def go() -> StreamReport:
            stop = asyncio.Event()
            running = asyncio.create_task(stream.run(stop))
            while not exchange.done.is_set():
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
            stop.set()
            return await running

        began = time.monotonic()
        report = asyncio.run(go())
        assert time.monotonic() - began < 10
        patient.close()
    assert report.counts["unfilled"] == 2
    assert {"BTCUSDT-1", "BTCUSDT-2"} == {row[5] for row in rows_of(warehouse)}


def test_rest_is_asked_at_most_so_often_and_not_at_all_once_told_to_stop(rest) -> None:
    async def sweeps(exchange: Exchange) -> tuple[list[int], float]:
        missed, stop = MissedTrades(rest(exchange), every_s=0.2), asyncio.Event()
        missed.last["BTCUSDT"] = datetime.fromtimestamp(0, UTC)
        began = time.monotonic()
        found = [(await missed.backfill(stop)).num_rows for _ in range(3)]
        seconds = time.monotonic() - began
        stop.set()
        return [*found, (await missed.backfill(stop)).num_rows], seconds

    with Exchange([], topics_of(SYMBOLS)) as exchange:
        exchange._know(trade(1))
        found, seconds = asyncio.run(sweeps(exchange))
    assert found == [1, 1, 1, 0]
    assert 2 * 0.2 <= seconds < 5


def test_a_live_event_from_the_future_is_not_believed(warehouse, rest) -> None:
    ahead = int(time.time() * 1000) + int(AHEAD.total_seconds() * 1000) + 10_000
    _, report = played([trade(1), trade(2, ms=ahead), trade(3)], warehouse, rest, source="live")
    assert report.counts["ahead"] == 1
    assert [row[5] for row in rows_of(warehouse)] == ["BTCUSDT-1", "BTCUSDT-3"]


def test_silence_and_storms_are_counted_and_told(warehouse, rest, caplog: pytest.LogCaptureFixture) -> None:
    _, report = played(script(), warehouse, rest, stale_s=0.05, storm_per_s=10.0)
    assert report.counts["stale"] >= 1
    assert report.counts["storms"] >= 1
    assert "what is forecast is stale" in caplog.text
    assert "an event storm" in caplog.text


def test_while_a_night_holds_the_warehouse_the_stream_goes_on(
    clean, warehouse, rest, caplog: pytest.LogCaptureFixture
) -> None:
    patient, warehouse = warehouse, replace(warehouse, lock_timeout_s=0.05)
    with Exchange(script(), topics_of(SYMBOLS), (), BOOKS) as exchange:
        stream = MarketStream(job_of(exchange, warehouse, rest=rest(exchange)), Chain())
        release = threading.Event()
        stream.resume()

        def night() -> None:
            with patient.write("a night"):
                release.wait(10)

        async def go() -> StreamReport:
            other = asyncio.create_task(asyncio.to_thread(night))
            running = asyncio.create_task(until_played(stream, exchange))
            while not exchange.done.is_set():
                await asyncio.sleep(0.02)
            fed = stream.feed.buffer.counts["received"]
            release.set()
            await other
            assert fed > 50
            return await running

        stream.resume = lambda: None  # type: ignore[method-assign]  # done above, before the night took the lock
        asyncio.run(go())
    assert "what has arrived waits in memory" in caplog.text
    assert rows_of(warehouse) == clean[0]
    same_state(stream.feed.state(), clean[1])


class Breaks(Chain):
    """A memory that cannot read its second batch."""

    def consume(self, rows: np.ndarray) -> None:
        super().consume(rows)
        if self.value[1] == 2:
            raise GraphError("no such batch")


def test_what_the_memory_cannot_read_is_stored_and_its_half_state_is_not(warehouse, rest) -> None:
    with Exchange(script(), topics_of(SYMBOLS), (), BOOKS) as exchange:
        stream = MarketStream(job_of(exchange, warehouse, save_every_s=60.0), Breaks())
        with pytest.raises(GraphError, match="no such batch"):
            asyncio.run(until_played(stream, exchange))
    assert len(rows_of(warehouse)) == stream.counts["events"] > 0
    assert not stream.job.state_file.exists()


@pytest.mark.parametrize("wrong", [{"openInterest": "0"}, {"openInterest": "1e200"}, {"fundingRate": "1e40"}], ids=str)
def test_one_odd_value_costs_its_frame_and_no_other(clean, warehouse, rest, wrong: dict[str, str]) -> None:
    steps = script()
    put(steps, trade(12), ticker(12, **wrong))
    stream, report = played(steps, warehouse, rest)
    assert report.counts["malformed"] == 1
    assert rows_of(warehouse) == clean[0]
    same_state(stream.feed.state(), clean[1])


def test_minutes_end_a_stream(warehouse) -> None:
    with Exchange([], topics_of(SYMBOLS)) as exchange:
        report = stream_events(job_of(exchange, warehouse, minutes=0.005))
    assert 0.3 <= report.seconds < 5


def test_a_damaged_state_is_refused_by_name(warehouse, rest) -> None:
    stream, _ = played([trade(1)], warehouse, rest)
    stream.job.state_file.write_bytes(b"damaged")
    with pytest.raises(GraphError, match=r"recorded-test\.npz: no state of a stream"):
        played([trade(2)], warehouse, rest)


def test_the_recorded_frames_are_stored_as_they_are_read(shared_data: Path, warehouse, rest) -> None:
    """Spot trades and a book of the testnet, tickers of the main net, a published liquidation; two connections."""
    wire = shared_data / "wire"
    published = (wire / "bybit_doc_examples" / "Subscriptions__V5__Linear__Liquidations.txt").read_text()
    first = json.dumps(json.loads(published[published.index("= \n{") + 3 :]))
    spot = (wire / "bybit_ws" / "raw_md_stream.testnet_spot.jsonl").read_text().splitlines()
    tickers = (wire / "bybit_ws" / "tickers_stream.mainnet_linear.excerpt.jsonl").read_text().splitlines()
    spot = [text for text in spot if '"topic"' in text]  # the exchange answers for itself
    tickers = [text for text in tickers if '"topic"' in text]
    reader = Frames(SYMBOLS, book_every_us=100_000)
    expected = [row for text in (first, *spot, *tickers) for row in reader.read(text)]
    _, report = played([first, *spot, CLOSE, *tickers], warehouse, rest)
    stored = {(row[2], row[3], row[5]) for row in rows_of(warehouse)}
    assert stored == {(row["kind"], row["symbol"], row["event_id"]) for row in expected}
    assert report.counts["stored"] == len(expected) == 4 + 8 + 4 + 1
    assert (report.counts["gaps"], report.counts["reconnects"], report.counts["malformed"]) == (0, 1, 0)
