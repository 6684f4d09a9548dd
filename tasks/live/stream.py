"""A market's events as they happen: from the exchange's websocket into the warehouse and, in order, to a network.

What arrives is given to the network at once and written every few seconds (see tasks/live/event_feed.py). Trades sent while the
connection was lost are asked for by REST. What is unusual is counted and told, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.graphs.stream import save_arrays
from models.panel import TS_TYPE
from tasks.errors import RefusedError
from tasks.events import VENUE
from tasks.live.backfill import MissedTrades
from tasks.live.bar_closer import BarCloser
from tasks.live.event_feed import EPOCH, EventConsumer, EventFeed, Forecaster, NoConsumer
from tasks.live.job import BREAKERS, COUNTED, StreamJob, StreamReport
from tasks.live.shutdown import stop_on_sigterm
from tasks.markets.bybit_frames import Frames, topics_of
from tasks.markets.bybit_ws import Listener
from tasks.markets.event_rows import event_rows
from warehouse.connect import domain_errors
from warehouse.errors import WarehouseLockedError
from warehouse.events import append_events
from warehouse.forecasts import append_forecasts

logger = logging.getLogger(__name__)

TICK_S = 0.05
QUEUED_FRAMES = 100_000  # what waits while a night holds the warehouse; beyond it the exchange has to
AHEAD = timedelta(minutes=1)  # an event so much later than our clock is not believed: it would make all others late
LOOK_BACK = timedelta(days=1)
Queue = asyncio.Queue[str | bytes | None]


def stream_events(job: StreamJob, memory: EventConsumer | None = None) -> StreamReport:
    """What came of one run of the job; SIGTERM and Ctrl-C end it early and in order.

    Raises RefusedError when Bybit accepts none of its topics, ForbiddenError where it does not serve this address,
    GraphError for a damaged state; an outage is waited out, however long it lasts.
    """
    return asyncio.run(_until_told(MarketStream(job, memory)))


async def _until_told(stream: MarketStream) -> StreamReport:
    stop = asyncio.Event()
    with stop_on_sigterm(stop):
        return await stream.run(stop)


class MarketStream:
    """One run of a job. ``memory`` is fed with every batch and its state saved with the stream's, and its forecasts."""

    def __init__(self, job: StreamJob, memory: EventConsumer | None = None) -> None:
        self.job = job
        self.feed = EventFeed(job.symbols, memory or NoConsumer(), job.bound_ms * 1000)
        self.closes = BarCloser(job.universe, memory) if isinstance(memory, Forecaster) else None
        self.frames = Frames(job.symbols, job.book_every_ms * 1000)
        self.listener = Listener(job.url, topics_of(job.symbols), job.timing)
        self.counts: Counter[str] = Counter()
        self.missed = MissedTrades(job.rest, job.sweep_every_s)
        self._stop = asyncio.Event()
        self._unsaved: list[pa.Table] = []
        self._heard = self._said = time.monotonic()
        self._said_events = 0

    async def run(self, stop: asyncio.Event) -> StreamReport:
        """Streams until ``stop`` is set or the minutes are over; whatever ends it, what has arrived is saved."""
        began = self._heard = self._said = time.monotonic()
        ends = began + 60 * (float("inf") if self.job.minutes is None else self.job.minutes)
        self._stop = stop
        self.resume()
        queue: Queue = asyncio.Queue(QUEUED_FRAMES)
        reading = asyncio.create_task(self._read_into(queue))
        saving = asyncio.create_task(self._save())
        try:
            while not stop.is_set() and time.monotonic() < ends and not reading.done():
                await self._take(queue)
                if self.closes is not None:
                    self.closes.begin_due(stop)
                if time.monotonic() - self._said >= self.job.save_every_s and saving.done():
                    _check(saving)
                    self._say()
                    saving = asyncio.create_task(self._save())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), TICK_S)
        finally:
            stop.set()  # what is missing now stays missing: REST may be down, and who ended this waits
            reading.cancel()
            await asyncio.gather(reading, saving, return_exceptions=True)
            if self.closes is not None:
                await self.closes.end()
            try:
                await self._take(queue)
            finally:
                await self._save()
                self._say()
        if not reading.cancelled():
            reading.result()
        return StreamReport(self.job.universe, self.job.source, time.monotonic() - began, self.totals())

    def resume(self) -> None:
        """Takes up the saved state and what the warehouse was told last."""
        self.feed.resume(self.job.state_file, self.job.warehouse, self.job.keys)
        since = datetime.now(UTC) - LOOK_BACK if self.job.source == "live" else EPOCH
        for row in self.job.warehouse.query("last_events", since=since, **self.job.keys).to_pylist():
            if row["kind"] == "trade":
                self.missed.last[row["symbol"]] = row["ts"]
            elif row["kind"] == "funding":
                settles = row["next_ts"] and (row["next_ts"] - EPOCH) // timedelta(microseconds=1)
                self.frames.tell("funding", row["symbol"], row["rate"], settles)
            elif row["kind"] == "open_interest":
                self.frames.tell("open_interest", row["symbol"], row["open_interest"])

    def totals(self) -> dict[str, int]:
        """Counts by the names COUNTED and BREAKERS."""
        known = {
            **self.feed.buffer.counts,
            **self.frames.counts,
            **self.counts,
            **self.missed.counts,
            **(self.closes.counts if self.closes is not None else {}),
            "unreadable": self.feed.unreadable,
            "reconnects": self.listener.reconnects,
        }
        return {name: known.get(name, 0) for name in (*COUNTED, *BREAKERS)}

    async def _read_into(self, queue: Queue) -> None:
        async with contextlib.aclosing(self.listener.frames()) as frames:
            async for frame in frames:
                await queue.put(frame)

    async def _take(self, queue: Queue) -> None:
        """Accepts what waits in the queue; after a new connection, together with what was missed before it.

        Together, because REST knows trades that are newer than frames which arrived while it was asked.
        """
        rows, missed = [], event_rows([])
        for _ in range(QUEUED_FRAMES):
            if queue.empty():
                break
            frame = queue.get_nowait()
            if frame is not None:
                rows += self.frames.read(frame)
                continue
            self._accept(pa.concat_tables([missed, event_rows(rows)]))
            self.frames.connected()
            rows, missed = [], await self.missed.backfill(self._stop)
        self._accept(pa.concat_tables([missed, event_rows(rows)]))
        await self.listener.snapshot_again(self.frames.take_gaps())
        if len(self.frames.rejected) == len(self.listener.topics):
            raise RefusedError(f"Bybit accepts none of the topics: {next(iter(self.frames.rejected.values()))}")

    def _accept(self, table: pa.Table) -> None:
        """Gives rows that have just arrived to the feed, and keeps them to be written."""
        if self.job.source == "live":
            latest = pa.scalar(datetime.now(UTC) + AHEAD, TS_TYPE)
            believed = table.filter(pc.less(table["ts"], latest))
            self.counts["ahead"] += table.num_rows - believed.num_rows
            table = believed
        if not table.num_rows:
            return
        self._heard = time.monotonic()
        self.counts["events"] += table.num_rows
        received = self.feed.stamped(table)
        self._unsaved.append(received)  # before it is fed: what the feed fails at is stored all the same
        trades = received.filter(pc.equal(received["kind"], "trade"))
        self.missed.last.update(zip(trades["symbol"].to_pylist(), trades["ts"].to_pylist(), strict=True))
        for symbol in self.job.symbols:  # one that has not traded yet may do so while the connection is lost
            self.missed.last.setdefault(symbol, received["ts"][0].as_py())
        self.feed.receive(received)

    async def _save(self) -> None:
        """Writes what has not been written yet, then the state that has received just that, unless it is half a one."""
        closes = self.closes
        if not self._unsaved and not (closes is not None and closes.moved):
            return
        tables, self._unsaved = self._unsaved, []
        forecasts = closes.take() if closes is not None else []
        state = None if self.feed.failed else self.feed.state()
        try:
            self.counts.update(await asyncio.to_thread(self._write, tables, forecasts, state))
        except BaseException:
            self._unsaved[:0] = tables
            if closes is not None:
                closes.put_back(forecasts)
            raise

    def _write(
        self, tables: list[pa.Table], forecasts: list[pa.Table], state: dict[str, np.ndarray] | None
    ) -> dict[str, int]:
        job, stored, made = self.job, 0, 0
        stamps = {"source": job.source, "run_id": job.run_id}
        with job.warehouse.write(f"stream {job.universe}") as con:
            if tables:
                stored = append_events(con, pa.concat_tables(tables), venue=VENUE, **stamps)
            if forecasts:
                keys = {"universe": job.universe, "model": job.model or ""}
                made = append_forecasts(con, pa.concat_tables(forecasts), **keys, **stamps)
        if state is not None:
            with domain_errors(job.state_file, OSError):
                save_arrays(job.state_file, state)
        return {"stored": stored, "forecasts": made}

    def _say(self) -> None:
        """Logs how far it has got, and what the circuit breakers of TGN-39 would act on."""
        now, totals = time.monotonic(), self.totals()
        per_s = (totals["events"] - self._said_events) / max(now - self._said, 1e-3)
        self._said, self._said_events = now, totals["events"]
        logger.info("%s: %s", self.job.universe, ", ".join(f"{totals[name]} {name}" for name in COUNTED))
        if now - self._heard > self.job.stale_s:
            self.counts["stale"] += 1
            logger.warning("%s: no event for %.0f s: what is forecast is stale", self.job.universe, now - self._heard)
        if per_s > self.job.storm_per_s:
            self.counts["storms"] += 1
            logger.warning("%s: %.0f events a second: an event storm", self.job.universe, per_s)


def _check(saving: asyncio.Task[None]) -> None:
    """Raises what made a save fail; a warehouse that somebody holds for too long only delays it."""
    try:
        saving.result()
    except WarehouseLockedError as error:
        logger.warning("%s; what has arrived waits in memory", error)
