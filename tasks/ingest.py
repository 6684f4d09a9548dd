"""Ingest: the rows that the markets published since the last night, as versions; no stored version is overwritten.

Each symbol is pulled from a few bars before its watermark, so that restated bars are noticed. ``raw.fetches`` has the
pull status of each symbol and night: a symbol's bars, actions, funding and status are written in one transaction, and a
night run again pulls only the symbols whose status is missing or failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import MarketDownError, MarketError, NightOutOfRangeError, OutageError, TooManyBadSymbolsError
from tasks.fetch import PullRequest, PullResult, pull, pull_requests
from tasks.markets.provider import Provider
from tasks.markets.session import open_provider
from tasks.night import Night
from warehouse.events import append_events
from warehouse.tables import append, read_query, upsert

logger = logging.getLogger(__name__)

BATCH_SYMBOLS = 32  # in one transaction: a kill loses at most so many
BATCH_ROWS = 100_000  # in one transaction: they are held in memory
OK = "ok"
FAILED = "failed"
PULL_STATUS = pa.schema(  # raw.fetches without its keys
    [("symbol", pa.string()), ("status", pa.string()), ("error", pa.string())]
    + [(name, pa.int32()) for name in ("bars", "restated", "actions", "funding")]
    + [(name, pa.timestamp("us", "UTC")) for name in ("first_ts", "last_ts")]
)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PullOptions:
    """How a night pulls: ``overlap_bars`` before the watermark, the fraction of symbols that may fail, and threads."""

    overlap_bars: int
    max_bad_fraction: float
    threads: int


@dataclass(frozen=True)
class IngestReport:
    """Result of a night's pull: symbols fetched, error by failed symbol, bars written, and of these restated."""

    fetched: int
    failed: dict[str, str]
    bars: int
    restated: int


def is_outage(task: object, run: object, state: Any) -> bool:
    """True when a step failed for an outage, which is worth another try."""
    return isinstance(state.result(raise_on_failure=False), OutageError)


@task(
    name="ingest_bars",
    retries=2,
    retry_delay_seconds=[30, 120],
    retry_condition_fn=is_outage,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def ingest_bars(
    night: Night, overlap_bars: int, max_bad_fraction: float, threads: int, on_progress: Progress | None = None
) -> IngestReport:
    """Writes the night's raw bars, corporate actions, funding, instruments and events; retried only after an outage."""
    return ingest_universe(night, PullOptions(overlap_bars, max_bad_fraction, threads), on_progress)


def check_market(night: Night) -> None:
    """Raises the error that makes a night impossible (its date, tape or network), before anything is written for it."""
    _check_history_start(night)
    with _open_provider(night):
        logger.debug("the market of %s is open for %s", night.universe.name, night.as_of)


def _check_history_start(night: Night) -> None:
    begins = night.universe.history_start.date()
    if night.as_of < begins:
        raise NightOutOfRangeError(f"{night.universe.name} begins on {begins}: it has no night {night.as_of}")


def _open_provider(night: Night) -> AbstractContextManager[Provider]:
    return open_provider(night.universe.provider, night.source, night.as_of, night.tape, night.clock)


def ingest_universe(night: Night, options: PullOptions, on_progress: Progress | None = None) -> IngestReport:
    """Counts of all rows that the run has written; symbols that it has fetched already are not pulled again.

    A failing symbol is recorded and skipped. Raises TooManyBadSymbolsError when more than ``max_bad_fraction`` of the
    symbols failed, MarketDownError when all of these failures were outages, and ForbiddenError at once.
    """
    _check_history_start(night)
    fetched = {row["symbol"] for row in _statuses(night) if _is_fetched(row, night.clock)}
    if fetched.issuperset(night.universe.symbols_to_fetch):  # a night that has its data needs no market and no network
        return _report(night)
    with _open_provider(night) as provider:
        writer = Writer(night)
        requests = pull_requests(night.universe, night.as_of, writer.last_bars(options.overlap_bars + 1))
        pending = [request for request in requests if request.symbol not in fetched]
        instruments = provider.instruments([request.symbol for request in pending]) if pending else None
        if instruments is not None:
            writer.write_instruments(instruments)
        total = len(fetched | {request.symbol for request in requests})
        _pull_all(provider, writer, pending, total, options, on_progress)
    return _report(night)


def _pull_all(
    provider: Provider,
    writer: Writer,
    pending: list[PullRequest],
    total: int,
    options: PullOptions,
    on_progress: Progress | None,
) -> None:
    """Pulls and writes every pending symbol, a few at a time; stops as soon as too many of ``total`` have failed."""
    failed: dict[str, MarketError] = {}
    batch: list[PullResult] = []
    done = total - len(pending)
    with ThreadPoolExecutor(options.threads, thread_name_prefix="ingest") as pool:
        for result in _as_pulled(pool, provider, writer.night.universe.interval, pending, ahead=2 * options.threads):
            done += 1
            batch.append(result)
            if result.error is not None:
                failed[result.symbol] = result.error
                logger.warning("%s skipped: %s", result.symbol, result.error)
            too_many = len(failed) > options.max_bad_fraction * total
            if too_many or len(batch) >= BATCH_SYMBOLS or sum(pulled.rows for pulled in batch) >= BATCH_ROWS:
                writer.write(batch)
                batch = []
            if on_progress is not None:
                on_progress(done, total, result.symbol)
            if too_many:
                raise _too_many(failed, total, options.max_bad_fraction)
    if batch:
        writer.write(batch)


def _as_pulled(
    pool: ThreadPoolExecutor, provider: Provider, interval: str, pending: list[PullRequest], ahead: int
) -> Iterator[PullResult]:
    """Results as they arrive; at most ``ahead`` are running or not consumed yet, which bounds memory."""
    queue = iter(pending)
    running = {pool.submit(pull, provider, interval, request) for request in islice(queue, ahead)}
    try:
        while running:
            arrived, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(pull, provider, interval, request) for request in islice(queue, len(arrived))}
            for future in arrived:
                yield future.result()
    finally:  # a consumer that stops early leaves no request behind
        pool.shutdown(wait=False, cancel_futures=True)


class Writer:
    """Writes a night's results into the raw tables: only new or changed rows, with the pull status of their symbols."""

    def __init__(self, night: Night) -> None:
        self.night = night
        self._universe = night.universe
        self._stamps: dict[str, object] = {**night.slice, **night.stamp}

    def last_bars(self, bars: int) -> pa.Table:
        """The last bars of every symbol, oldest first, as received up to the night's clock."""
        span = {"bars": bars, "interval": self._universe.interval, "clock": self.night.clock}
        return self.night.warehouse.query("ingest_overlap", **span, **self.night.slice)

    def write(self, results: list[PullResult]) -> None:
        """Writes these symbols in one transaction."""
        with self.night.warehouse.write(f"ingest {self._universe.name} {self.night.as_of}") as con:
            written = {
                name: self._append_changed(con, name, [r.tables[name] for r in results if name in r.tables])
                for name in ("bars", "corporate_actions", "funding_rates")
            }
            for result in results:
                if "events" in result.tables:
                    self._append_events(con, result.tables["events"])
            statuses = pa.Table.from_pylist([_status_row(result, written) for result in results], schema=PULL_STATUS)
            upsert(con, "raw.fetches", statuses, by=("run_id", "symbol"), night=self.night.as_of, **self._stamps)

    def _append_events(self, con: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
        """Writes the events that are not stored yet: an event never changes."""
        append_events(con, rows, source=self.night.source, venue=self._universe.provider, **self.night.stamp)

    def write_instruments(self, rows: pa.Table) -> None:
        """Writes the instruments that are new or changed."""
        with self.night.warehouse.write(f"ingest instruments of {self._universe.name}") as con:
            self._append_changed(con, "instruments", [rows])

    def _append_changed(self, con: duckdb.DuckDBPyConnection, name: str, tables: list[pa.Table]) -> pa.Table | None:
        """The rows that were written, with a column ``restated`` in bars; None when ``tables`` is empty."""
        if not tables:
            return None
        interval = {"interval": self._universe.interval} if name == "bars" else {}
        con.register("pulled", pa.concat_tables(tables))
        changed = read_query(con, f"changed_{name}", clock=self.night.clock, **self.night.slice, **interval)
        con.unregister("pulled")
        rows = changed.drop_columns(["restated"]) if name == "bars" else changed
        append(con, f"raw.{name}", rows, provider=self._universe.provider, **self._stamps)
        return changed


def _is_fetched(status: dict[str, Any], clock: datetime) -> bool:
    """True for a symbol fetched at this very clock: a live night run again later pulls the bars closed since."""
    return status["status"] == OK and status["fetched_at"] == clock


def _status_row(result: PullResult, written: dict[str, pa.Table | None]) -> dict[str, object]:
    """The pull status of one symbol: the rows written of it, and the span of the bars that the market returned."""
    tables = {
        name: table.filter(pc.equal(table["symbol"], result.symbol))
        for name, table in written.items()
        if table is not None
    }
    bars = tables.get("bars")
    span = pc.min_max(result.tables["bars"]["ts"]).as_py() if result.error is None else {"min": None, "max": None}
    return {
        "symbol": result.symbol,
        "status": OK if result.error is None else FAILED,
        "error": None if result.error is None else f"{type(result.error).__name__}: {result.error}",
        "bars": 0 if bars is None else len(bars),
        "restated": 0 if bars is None else pc.sum(bars["restated"]).as_py() or 0,
        "actions": len(tables.get("corporate_actions", ())),
        "funding": len(tables.get("funding_rates", ())),
        "first_ts": span["min"],
        "last_ts": span["max"],
    }


def _too_many(failed: dict[str, MarketError], total: int, max_bad_fraction: float) -> Exception:
    symbol, first = next(iter(failed.items()))
    text = f"{len(failed)} of {total} symbols failed, more than {max_bad_fraction:.0%}; the first, {symbol}: {first}"
    if all(isinstance(error, OutageError) for error in failed.values()):
        return MarketDownError(f"{text}; all are outages: run the night again later, it goes on where it stopped")
    return TooManyBadSymbolsError(f"{text}; raw.fetches has the others: correct the universe, run the night again")


def _statuses(night: Night) -> list[dict[str, Any]]:
    """The rows of raw.fetches that this night's run has written."""
    return night.warehouse.query("fetches_of_run", run_id=night.run_id).to_pylist()


def _report(night: Night) -> IngestReport:
    rows = _statuses(night)
    report = IngestReport(
        fetched=sum(row["status"] == OK for row in rows),
        failed={row["symbol"]: row["error"] for row in rows if row["status"] == FAILED},
        bars=sum(row["bars"] for row in rows),
        restated=sum(row["restated"] for row in rows),
    )
    counts = (report.fetched, len(report.failed), report.bars, report.restated)
    logger.info("%d symbols fetched, %d failed; %d bars written, of which %d restated", *counts)
    return report
