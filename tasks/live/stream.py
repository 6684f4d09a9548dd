"""Streams a market's events from the exchange's websocket into the warehouse and, in order, to an event consumer.

The consumer receives events at once; they are written every few seconds (see tasks/live/event_feed.py). Trades sent
while the connection was lost are requested by REST. Anything unusual is counted and logged, and the stream continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.graphs.stream import save_arrays
from models.panel import TS_TYPE
from tasks.errors import RefusedError
from tasks.events import VENUE
from tasks.live.backfill import MissedTrades
from tasks.live.bar_closer import BarCloser
from tasks.live.event_feed import EPOCH, EventConsumer, EventFeed, Forecaster, StoreOnly
from tasks.live.job import BREAKERS, COUNTED, StreamJob, StreamReport
from tasks.live.shutdown import stop_on_sigterm
from tasks.markets.bybit_frames import FrameReader, topics_for
from tasks.markets.bybit_ws import Listener
from tasks.markets.event_rows import event_rows
from warehouse.connect import domain_errors
from warehouse.errors import WarehouseLockedError
from warehouse.events import append_events
from warehouse.forecasts import append_forecasts

logger = logging.getLogger(__name__)

TICK_S = 0.05
MAX_QUEUED_FRAMES = 100_000  # frames that wait while a night holds the warehouse; above it the websocket is not read
MAX_AHEAD = timedelta(minutes=1)  # an event later than our clock by more is dropped: it would make all others late
LOOK_BACK = timedelta(days=1)
Queue = asyncio.Queue[str | bytes | None]


def stream_events(job: StreamJob, consumer: EventConsumer | None = None) -> StreamReport:
    """Runs the job and returns its report; SIGTERM and Ctrl-C end it early with everything saved.

    Raises RefusedError when Bybit accepts none of its topics, ForbiddenError where it does not serve this address,
    GraphError for a damaged state. An outage never ends it: it reconnects for as long as the outage lasts.
    """
    return asyncio.run(_run_until_signal(MarketStream(job, consumer)))


async def _run_until_signal(stream: MarketStream) -> StreamReport:
    stop = asyncio.Event()
    with stop_on_sigterm(stop):
        return await stream.run(stop)


class MarketStream:
    """One run of a job. ``consumer`` receives every batch of events, and its state is saved with the stream's; if it is
    a Forecaster, its forecasts are written too."""

    def __init__(self, job: StreamJob, consumer: EventConsumer | None = None) -> None:
        self.job = job
        self.feed = EventFeed(job.symbols, consumer or StoreOnly(), job.bound_ms * 1000)
        self.bar_closer = BarCloser(job.universe, consumer) if isinstance(consumer, Forecaster) else None
        self.frames = FrameReader(job.symbols, job.book_every_ms * 1000)
        self.listener = Listener(job.url, topics_for(job.symbols), job.timing)
        self.counts: Counter[str] = Counter()
        self.missed_trades = MissedTrades(job.rest, job.sweep_every_s)
        self._stop = asyncio.Event()
        self._unsaved: list[pa.Table] = []
        self._last_event_s = self._last_log_s = time.monotonic()
        self._logged_events = 0

    async def run(self, stop: asyncio.Event) -> StreamReport:
        """Streams until ``stop`` is set or the job's minutes are over; saves everything received, however it ends."""
        started_s = self._last_event_s = self._last_log_s = time.monotonic()
        ends_s = started_s + 60 * (float("inf") if self.job.minutes is None else self.job.minutes)
        self._stop = stop
        self.resume()
        queue: Queue = asyncio.Queue(MAX_QUEUED_FRAMES)
        reading = asyncio.create_task(self._read_into(queue))
        saving = asyncio.create_task(self._save())
        try:
            while not stop.is_set() and time.monotonic() < ends_s and not reading.done():
                await self._process(queue)
                if self.bar_closer is not None:
                    self.bar_closer.start_due_close(stop)
                if time.monotonic() - self._last_log_s >= self.job.save_every_s and saving.done():
                    _check(saving)
                    self._log_progress()
                    saving = asyncio.create_task(self._save())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), TICK_S)
        finally:
            stop.set()  # no more REST requests: REST may be down, and the user waits for the stream to end
            reading.cancel()
            await asyncio.gather(reading, saving, return_exceptions=True)
            if self.bar_closer is not None:
                await self.bar_closer.wait()
            try:
                await self._process(queue)
            finally:
                await self._save()
                self._log_progress()
        if not reading.cancelled():
            reading.result()
        return StreamReport(self.job.universe, self.job.source, time.monotonic() - started_s, self.totals())

    def resume(self) -> None:
        """Restores the saved state, and the last values of each symbol that the warehouse stores."""
        self.feed.resume(self.job.state_file, self.job.warehouse, self.job.keys)
        since = datetime.now(UTC) - LOOK_BACK if self.job.source == "live" else EPOCH
        for row in self.job.warehouse.query("last_events", since=since, **self.job.keys).to_pylist():
            if row["kind"] == "trade":
                self.missed_trades.last_trade_ts[row["symbol"]] = row["ts"]
            elif row["kind"] == "funding":
                settles_us = row["next_ts"] and (row["next_ts"] - EPOCH) // timedelta(microseconds=1)
                self.frames.update_value("funding", row["symbol"], row["rate"], settles_us)
            elif row["kind"] == "open_interest":
                self.frames.update_value("open_interest", row["symbol"], row["open_interest"])

    def totals(self) -> dict[str, int]:
        """Counts by the names in COUNTED and BREAKERS."""
        counts = {
            **self.feed.buffer.counts,
            **self.frames.counts,
            **self.counts,
            **self.missed_trades.counts,
            **(self.bar_closer.counts if self.bar_closer is not None else {}),
            "unreadable": self.feed.unreadable,
            "reconnects": self.listener.reconnects,
        }
        return {name: counts.get(name, 0) for name in (*COUNTED, *BREAKERS)}

    async def _read_into(self, queue: Queue) -> None:
        async with contextlib.aclosing(self.listener.frames()) as frames:
            async for frame in frames:
                await queue.put(frame)

    async def _process(self, queue: Queue) -> None:
        """Accepts the events of all queued frames; after a reconnection, in one table with the trades missed before it.

        In one table, because REST may return trades that are newer than frames which arrived during the request.
        """
        rows: list[dict[str, Any]] = []
        missed = event_rows([])
        for _ in range(MAX_QUEUED_FRAMES):
            if queue.empty():
                break
            frame = queue.get_nowait()
            if frame is not None:
                rows += self.frames.read(frame)
                continue
            self._accept(pa.concat_tables([missed, event_rows(rows)]))
            self.frames.forget_snapshots()
            rows = []
            missed = await self.missed_trades.backfill(self._stop)
        self._accept(pa.concat_tables([missed, event_rows(rows)]))
        await self.listener.resubscribe(self.frames.take_gaps())
        if len(self.frames.rejected) == len(self.listener.topics):
            raise RefusedError(f"Bybit accepts none of the topics: {next(iter(self.frames.rejected.values()))}")

    def _accept(self, table: pa.Table) -> None:
        """Passes rows that have just arrived to the feed, and keeps them until they are written."""
        if self.job.source == "live":
            latest = pa.scalar(datetime.now(UTC) + MAX_AHEAD, TS_TYPE)
            plausible = table.filter(pc.less(table["ts"], latest))
            self.counts["ahead"] += table.num_rows - plausible.num_rows
            table = plausible
        if not table.num_rows:
            return
        self._last_event_s = time.monotonic()
        self.counts["events"] += table.num_rows
        received = self.feed.with_receipt_time(table)
        self._unsaved.append(received)  # before the feed reads it, so that rows it fails on are stored too
        trades = received.filter(pc.equal(received["kind"], "trade"))
        last_trade_ts = self.missed_trades.last_trade_ts
        last_trade_ts.update(zip(trades["symbol"].to_pylist(), trades["ts"].to_pylist(), strict=True))
        for symbol in self.job.symbols:  # a symbol's first trade may happen while the connection is lost
            last_trade_ts.setdefault(symbol, received["ts"][0].as_py())
        self.feed.receive(received)

    async def _save(self) -> None:
        """Writes the rows and forecasts that are not written yet, then the state after exactly these rows. Writes no
        state once the consumer has failed, because it is incomplete then."""
        bar_closer = self.bar_closer
        if not self._unsaved and not (bar_closer is not None and bar_closer.has_unsaved_state):
            return
        tables = self._unsaved
        self._unsaved = []
        forecasts = bar_closer.take_forecasts() if bar_closer is not None else []
        state = None if self.feed.failed else self.feed.state()
        try:
            self.counts.update(await asyncio.to_thread(self._write, tables, forecasts, state))
        except BaseException:
            self._unsaved[:0] = tables
            if bar_closer is not None:
                bar_closer.put_back(forecasts)
            raise

    def _write(
        self, tables: list[pa.Table], forecasts: list[pa.Table], state: dict[str, np.ndarray] | None
    ) -> dict[str, int]:
        job = self.job
        stored = 0
        forecast_rows = 0
        stamps = {"source": job.source, "run_id": job.run_id}
        with job.warehouse.write(f"stream {job.universe}") as con:
            if tables:
                stored = append_events(con, pa.concat_tables(tables), venue=VENUE, **stamps)
            if forecasts:
                keys = {"universe": job.universe, "model": job.model or ""}
                forecast_rows = append_forecasts(con, pa.concat_tables(forecasts), **keys, **stamps)
        if state is not None:
            with domain_errors(job.state_file, OSError):
                save_arrays(job.state_file, state)
        return {"stored": stored, "forecasts": forecast_rows}

    def _log_progress(self) -> None:
        """Logs the counts, and a warning for each condition that the circuit breakers of TGN-39 would act on."""
        now_s = time.monotonic()
        totals = self.totals()
        per_s = (totals["events"] - self._logged_events) / max(now_s - self._last_log_s, 1e-3)
        self._last_log_s = now_s
        self._logged_events = totals["events"]
        logger.info("%s: %s", self.job.universe, ", ".join(f"{totals[name]} {name}" for name in COUNTED))
        quiet_s = now_s - self._last_event_s
        if quiet_s > self.job.stale_s:
            self.counts["stale"] += 1
            logger.warning("%s: no event for %.0f s: what is forecast is stale", self.job.universe, quiet_s)
        if per_s > self.job.storm_per_s:
            self.counts["storms"] += 1
            logger.warning("%s: %.0f events a second: an event storm", self.job.universe, per_s)


def _check(saving: asyncio.Task[None]) -> None:
    """Raises the error that a save failed with; a locked warehouse only delays the save and is logged."""
    try:
        saving.result()
    except WarehouseLockedError as error:
        logger.warning("%s; what has arrived waits in memory", error)
