"""A whole stream against an exchange of our own: whatever goes wrong, it ends where an undisturbed one does."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.graphs.events import Events
from tasks.errors import RefusedError
from tasks.feed import Feed
from tasks.markets.bybit import Bybit
from tasks.markets.bybit_frames import topics_of
from tasks.markets.bybit_ws import Timing
from tasks.markets.patience import ON_TAPE
from tasks.stream import AHEAD, MarketStream, StreamJob, StreamReport
from tests.exchange import AWAY, BACK, CLOSE, SILENCE, SNAPSHOT, Exchange
from warehouse.connect import Warehouse
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


class Chain:
    """A memory that depends on every event, their order and where the batches were cut."""

    def __init__(self) -> None:
        self.value = np.array([1.0, 0.0, 0.0])

    def consume(self, events: Events) -> None:
        self.value = np.array(
            [self.value[0] * 0.9 + events.features.sum(), self.value[1] + 1, self.value[2] + len(events)]
        )

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
        from datetime import UTC, datetime

        clients.append(Bybit(datetime(2100, 1, 1, tzinfo=UTC), patience=ON_TAPE, url=exchange.rest_url))
        return clients[-1]

    yield build
    for client in clients:
        client.close()


def job_of(exchange: Exchange, warehouse: Warehouse, **changes: Any) -> StreamJob:
    job = StreamJob(warehouse, "test", SYMBOLS, "recorded", exchange.url, save_every_s=0.1, timing=QUICK)
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
        one, two = (np.sort(each[name]) if name == "buffer.seen" else each[name] for each in (state, other))
        np.testing.assert_array_equal(one, two, err_msg=name)
    assert state["buffer.counts"][-1] == other["buffer.counts"][-1]


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
