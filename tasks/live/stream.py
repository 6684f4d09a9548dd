"""Streams a market's events from the exchange's websocket into the warehouse and, in order, to an event consumer.

The consumer receives events as they arrive; the warehouse receives them every few seconds (see
tasks/live/event_feed.py). Trades sent while the connection was lost are requested by REST. Faults are counted and
logged, and the stream continues.
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
from tasks.live.job import COUNT_NAMES, WARNING_NAMES, StreamJob, StreamReport
from tasks.live.shutdown import stop_on_sigterm
from tasks.markets.bybit_frames import FrameReader, topics_for
from tasks.markets.bybit_ws import Listener
from tasks.markets.event_rows import event_rows
from warehouse.connect import translate_errors
from warehouse.errors import WarehouseLockedError
from warehouse.events import append_events
from warehouse.forecasts import append_forecasts

logger = logging.getLogger(__name__)

TICK_S = 0.05
# frames that wait while a night (the run for one date) holds the warehouse; above it the websocket is not read
MAX_QUEUED_FRAMES = 100_000
# an event that is further ahead of our clock is dropped: it would make all other events late
MAX_AHEAD = timedelta(minutes=1)
LOOK_BACK = timedelta(days=1)  # a live stream resumes from the last events of this period
Queue = asyncio.Queue[str | bytes | None]


def stream_events(job: StreamJob, consumer: EventConsumer | None = None) -> StreamReport:
    """Runs the job and returns its report; SIGTERM and Ctrl-C end the stream early and gracefully: all rows are saved.

    An outage never ends the stream; it reconnects for as long as the outage lasts. Raises RefusedError if Bybit accepts
    none of the topics, ForbiddenError if Bybit does not serve this address, GraphError for a damaged state file.
    """
    return asyncio.run(_run_until_signal(MarketStream(job, consumer)))


async def _run_until_signal(stream: MarketStream) -> StreamReport:
    stop = asyncio.Event()
    with stop_on_sigterm(stop):
        return await stream.run(stop)


class MarketStream:
    """One run of a job. The stream passes every batch of events to ``consumer`` and saves the consumer's state.

    If the consumer is a Forecaster, the stream also runs it at the closes of bars and writes its forecasts.
    """

    def __init__(self, job: StreamJob, consumer: EventConsumer | None = None) -> None:
        self.job = job
        self.feed = EventFeed(job.symbols, consumer or StoreOnly(), job.bound_ms * 1000)
        self.bar_closer = BarCloser(job.universe, consumer) if isinstance(consumer, Forecaster) else None
        self.frames = FrameReader(job.symbols, job.book_every_ms * 1000)
        self.listener = Listener(job.url, topics_for(job.symbols), job.timing)
        self.counts: Counter[str] = Counter()
        self.missed_trades = MissedTrades(job.rest, job.backfill_every_s)
        self._stop = asyncio.Event()
        self._unsaved: list[pa.Table] = []
        self._last_event_s = self._last_log_s = time.monotonic()
        self._logged_events = 0

    async def run(self, stop: asyncio.Event) -> StreamReport:
        """Streams until ``stop`` is set or the job's minutes are over, and returns the report.

        All received events are saved, also when an error ends the stream.
        """
        started_s = self._last_event_s = self._last_log_s = time.monotonic()
        end_s = started_s + 60 * (float("inf") if self.job.minutes is None else self.job.minutes)
        self._stop = stop
        self.resume()
        queue: Queue = asyncio.Queue(MAX_QUEUED_FRAMES)
        reading = asyncio.create_task(self._read_into(queue))
        saving = asyncio.create_task(self._save())
        try:
            while not stop.is_set() and time.monotonic() < end_s and not reading.done():
                await self._process(queue)
                if self.bar_closer is not None:
                    self.bar_closer.start_due_close(stop)
                if time.monotonic() - self._last_log_s >= self.job.save_every_s and saving.done():
                    _raise_save_error(saving)
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
        """Restores the saved state, and each symbol's last stored trade time, funding rate and open interest."""
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
        """Counts by the names in COUNT_NAMES and WARNING_NAMES."""
        counts = {
            **self.feed.buffer.counts,
            **self.frames.counts,
            **self.counts,
            **self.missed_trades.counts,
            **(self.bar_closer.counts if self.bar_closer is not None else {}),
            "unreadable": self.feed.n_unreadable,
            "reconnects": self.listener.reconnects,
        }
        return {name: counts.get(name, 0) for name in (*COUNT_NAMES, *WARNING_NAMES)}

    async def _read_into(self, queue: Queue) -> None:
        async with contextlib.aclosing(self.listener.frames()) as frames:
            async for frame in frames:
                await queue.put(frame)

    async def _process(self, queue: Queue) -> None:
        """Accepts the events of all queued frames.

        A queue entry of None means that a connection was opened. The events after it are accepted in one table with the
        backfilled trades, because REST may return trades that are newer than frames which arrived during the request.

        Raises RefusedError if Bybit rejected all topics.
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
        """Passes events that have just arrived to the feed, and keeps them in memory until they are written."""
        if self.job.source == "live":
            latest_ts = pa.scalar(datetime.now(UTC) + MAX_AHEAD, TS_TYPE)
            plausible = table.filter(pc.less(table["ts"], latest_ts))
            self.counts["ahead"] += table.num_rows - plausible.num_rows
            table = plausible
        if not table.num_rows:
            return
        self._last_event_s = time.monotonic()
        self.counts["events"] += table.num_rows
        received = self.feed.with_receipt_time(table)
        self._unsaved.append(received)  # before the consumer reads them: rows that it fails on are stored too
        trades = received.filter(pc.equal(received["kind"], "trade"))
        last_trade_ts = self.missed_trades.last_trade_ts
        last_trade_ts.update(zip(trades["symbol"].to_pylist(), trades["ts"].to_pylist(), strict=True))
        for symbol in self.job.symbols:  # a symbol's first trade may happen while the connection is lost
            last_trade_ts.setdefault(symbol, received["ts"][0].as_py())
        self.feed.receive(received)

    async def _save(self) -> None:
        """Writes the rows and forecasts that are not written yet, then the state after exactly these rows.

        After the consumer has failed, no state is written, because it is incomplete.
        """
        bar_closer = self.bar_closer
        if not self._unsaved and not (bar_closer is not None and bar_closer.has_unsaved_state):
            return
        tables = self._unsaved
        self._unsaved = []
        forecasts = bar_closer.take_forecasts() if bar_closer is not None else []
        state = None if self.feed.has_failed else self.feed.state()
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
        """Writes tables of events and of forecasts, then the state file; returns how many rows were new."""
        job = self.job
        n_stored = 0
        n_forecasts = 0
        stamps = {"source": job.source, "run_id": job.run_id}
        with job.warehouse.write(f"stream {job.universe}") as con:
            if tables:
                n_stored = append_events(con, pa.concat_tables(tables), venue=VENUE, **stamps)
            if forecasts:
                keys = {"universe": job.universe, "model": job.model or ""}
                n_forecasts = append_forecasts(con, pa.concat_tables(forecasts), **keys, **stamps)
        if state is not None:
            with translate_errors(job.state_file, OSError):
                save_arrays(job.state_file, state)
        return {"stored": n_stored, "forecasts": n_forecasts}

    def _log_progress(self) -> None:
        """Logs the counts, and warns of a period without events and of an event storm (TGN-39)."""
        now_s = time.monotonic()
        totals = self.totals()
        events_per_s = (totals["events"] - self._logged_events) / max(now_s - self._last_log_s, 1e-3)
        self._last_log_s = now_s
        self._logged_events = totals["events"]
        logger.info("%s: %s", self.job.universe, ", ".join(f"{totals[name]} {name}" for name in COUNT_NAMES))
        quiet_s = now_s - self._last_event_s
        if quiet_s > self.job.max_quiet_s:
            self.counts["stale"] += 1
            logger.warning("%s: no event for %.0f s: the forecasts are stale", self.job.universe, quiet_s)
        if events_per_s > self.job.max_events_per_s:
            self.counts["storms"] += 1
            logger.warning("%s: %.0f events a second: an event storm", self.job.universe, events_per_s)


def _raise_save_error(saving: asyncio.Task[None]) -> None:
    """Raises the error that a save failed with, except for a locked warehouse, which is logged.

    A locked warehouse only delays the save: the rows stay in memory until the next one.
    """
    try:
        saving.result()
    except WarehouseLockedError as error:
        logger.warning("%s; the received events wait in memory", error)
