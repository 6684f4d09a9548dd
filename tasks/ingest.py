"""Ingest: writes the rows that the markets published since the last night (the run for one as-of date) to raw tables.

Every row is stored as a new version; no stored version is overwritten. Each symbol is pulled from a few bars before its
watermark (its last stored bar), so that restated bars are noticed. ``raw.fetches`` has the pull status, ok or failed,
of each symbol and night. A symbol's bars, actions, funding, events and status are written in one transaction. A night
that is run again at the same clock pulls only the symbols whose status is missing or failed.
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

# A batch is written in one transaction as soon as it reaches one of these sizes. A killed run loses at most one batch,
# and the rows of a batch are held in memory.
MAX_BATCH_SYMBOLS = 32
MAX_BATCH_ROWS = 100_000
OK = "ok"
FAILED = "failed"
PULL_STATUS_SCHEMA = pa.schema(  # the columns of raw.fetches without source, universe, night, run_id and fetched_at
    [("symbol", pa.string()), ("status", pa.string()), ("error", pa.string())]
    + [(name, pa.int32()) for name in ("bars", "restated", "actions", "funding")]
    + [(name, pa.timestamp("us", "UTC")) for name in ("first_ts", "last_ts")]
)
Progress = Callable[[int, int, str], None]  # receives the number of symbols done, the number in all, and the symbol


@dataclass(frozen=True)
class PullOptions:
    """How a night pulls its symbols.

    ``overlap_bars`` is the number of bars pulled again before the watermark; ``max_bad_fraction`` is the largest
    fraction of symbols that may fail; ``threads`` symbols are pulled in parallel.
    """

    overlap_bars: int
    max_bad_fraction: float
    threads: int


@dataclass(frozen=True)
class IngestReport:
    """Result of a night's pull.

    ``fetched`` counts symbols; ``failed`` maps a symbol to its error text; ``bars`` counts the bars written, of which
    ``restated`` replace an earlier version.
    """

    fetched: int
    failed: dict[str, str]
    bars: int
    restated: int


def is_outage(task: object, run: object, state: Any) -> bool:
    """True when a task run failed with an OutageError: Prefect's condition for a retry."""
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
    """Writes the night's raw bars, corporate actions, funding, instruments and events; see ``ingest_universe``.

    Prefect retries the task only after an outage.
    """
    return ingest_universe(night, PullOptions(overlap_bars, max_bad_fraction, threads), on_progress)


def check_market(night: Night) -> None:
    """Raises the error that makes a night impossible (its date, tape or network); writes nothing."""
    _check_history_start(night)
    with _open_night_provider(night):
        logger.debug("the market of %s is open for %s", night.universe.name, night.as_of)


def _check_history_start(night: Night) -> None:
    """Raises NightOutOfRangeError for a night before the universe's history start."""
    start = night.universe.history_start.date()
    if night.as_of < start:
        raise NightOutOfRangeError(f"{night.universe.name} begins on {start}: it has no night {night.as_of}")


def _open_night_provider(night: Night) -> AbstractContextManager[Provider]:
    return open_provider(night.universe.provider, night.source, night.as_of, night.tape, night.clock)


def ingest_universe(night: Night, options: PullOptions, on_progress: Progress | None = None) -> IngestReport:
    """Pulls and writes all symbols of the night; returns the counts over all runs of the night.

    Symbols that an earlier run has fetched at the same clock are not pulled again. A failing symbol is recorded and
    skipped. When more than ``max_bad_fraction`` of the symbols failed, TooManyBadSymbolsError is raised, or
    MarketDownError if all of these failures are outages. A ForbiddenError is raised at once.
    """
    _check_history_start(night)
    fetched = {row["symbol"] for row in _statuses(night) if _is_fetched(row, night.clock)}
    if fetched.issuperset(night.universe.symbols_to_fetch):  # a complete night needs neither market nor network
        return _count_pulls(night)
    with _open_night_provider(night) as provider:
        writer = RawWriter(night)
        requests = pull_requests(night.universe, night.as_of, writer.last_bars(options.overlap_bars + 1))
        pending = [request for request in requests if request.symbol not in fetched]
        instruments = provider.instruments([request.symbol for request in pending]) if pending else None
        if instruments is not None:
            writer.write_instruments(instruments)
        n_symbols = len(fetched | {request.symbol for request in requests})
        _pull_all(provider, writer, pending, n_symbols, options, on_progress)
    return _count_pulls(night)


def _pull_all(
    provider: Provider,
    writer: RawWriter,
    pending: list[PullRequest],
    n_symbols: int,
    options: PullOptions,
    on_progress: Progress | None,
) -> None:
    """Pulls the pending symbols in parallel and writes the results in batches.

    As soon as more than ``max_bad_fraction`` of ``n_symbols`` have failed, writes the last batch and raises
    TooManyBadSymbolsError or MarketDownError.
    """
    failed: dict[str, MarketError] = {}
    batch: list[PullResult] = []
    n_done = n_symbols - len(pending)
    with ThreadPoolExecutor(options.threads, thread_name_prefix="ingest") as pool:
        for result in _pull_in_parallel(
            pool, provider, writer.night.universe.interval, pending, ahead=2 * options.threads
        ):
            n_done += 1
            batch.append(result)
            if result.error is not None:
                failed[result.symbol] = result.error
                logger.warning("%s skipped: %s", result.symbol, result.error)
            has_too_many_failures = len(failed) > options.max_bad_fraction * n_symbols
            is_batch_full = len(batch) >= MAX_BATCH_SYMBOLS or sum(pulled.n_rows for pulled in batch) >= MAX_BATCH_ROWS
            if has_too_many_failures or is_batch_full:
                writer.write(batch)
                batch = []
            if on_progress is not None:
                on_progress(n_done, n_symbols, result.symbol)
            if has_too_many_failures:
                raise _bad_symbols_error(failed, n_symbols, options.max_bad_fraction)
    if batch:
        writer.write(batch)


def _pull_in_parallel(
    pool: ThreadPoolExecutor, provider: Provider, interval: str, pending: list[PullRequest], ahead: int
) -> Iterator[PullResult]:
    """Yields the results in the order in which they arrive.

    At most ``ahead`` pulls are running or not consumed yet, which bounds the memory.
    """
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


class RawWriter:
    """Writes a night's results into the raw tables: the new and changed rows, and the pull status of their symbols."""

    def __init__(self, night: Night) -> None:
        self.night = night
        self._universe = night.universe
        self._constant_columns: dict[str, object] = {**night.slice, **night.stamp}

    def last_bars(self, n_bars: int) -> pa.Table:
        """The last ``n_bars`` bars of every symbol, by symbol and ts, each in the newest version up to the clock."""
        return self.night.warehouse.query(
            "ingest_overlap",
            bars=n_bars,
            interval=self._universe.interval,
            clock=self.night.clock,
            **self.night.slice,
        )

    def write(self, results: list[PullResult]) -> None:
        """Writes the rows and pull statuses of these symbols in one transaction."""
        with self.night.warehouse.write(f"ingest {self._universe.name} {self.night.as_of}") as con:
            written = {
                name: self._append_changed(con, name, [r.tables[name] for r in results if name in r.tables])
                for name in ("bars", "corporate_actions", "funding_rates")
            }
            for result in results:
                if "events" in result.tables:
                    self._append_events(con, result.tables["events"])
            statuses = pa.Table.from_pylist(
                [_status_row(result, written) for result in results], schema=PULL_STATUS_SCHEMA
            )
            keys = {"night": self.night.as_of, **self._constant_columns}
            upsert(con, "raw.fetches", statuses, by=("run_id", "symbol"), **keys)

    def _append_events(self, con: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
        """Writes the events that are not stored yet; a stored event never changes, so it needs no second version."""
        append_events(con, rows, source=self.night.source, venue=self._universe.provider, **self.night.stamp)

    def write_instruments(self, rows: pa.Table) -> None:
        """Writes the instruments that are new or changed."""
        with self.night.warehouse.write(f"ingest instruments of {self._universe.name}") as con:
            self._append_changed(con, "instruments", [rows])

    def _append_changed(self, con: duckdb.DuckDBPyConnection, name: str, tables: list[pa.Table]) -> pa.Table | None:
        """Writes the new and changed rows of ``tables`` and returns them; None when ``tables`` is empty.

        The returned bars have a further column ``restated``, True for a bar with an earlier version.
        """
        if not tables:
            return None
        interval = {"interval": self._universe.interval} if name == "bars" else {}
        con.register("pulled", pa.concat_tables(tables))
        changed = read_query(con, f"changed_{name}", clock=self.night.clock, **self.night.slice, **interval)
        con.unregister("pulled")
        rows = changed.drop_columns(["restated"]) if name == "bars" else changed
        append(con, f"raw.{name}", rows, provider=self._universe.provider, **self._constant_columns)
        return changed


def _is_fetched(status: dict[str, Any], clock: datetime) -> bool:
    """True for the status of a symbol fetched at this clock.

    A live night that is run again has a later clock, so it pulls all symbols again.
    """
    return status["status"] == OK and status["fetched_at"] == clock


def _status_row(result: PullResult, written: dict[str, pa.Table | None]) -> dict[str, object]:
    """The row of raw.fetches of one symbol.

    It has counts of the rows written, and the open times of the first and last bar that the market returned.
    """
    symbol_tables = {
        name: table.filter(pc.equal(table["symbol"], result.symbol))
        for name, table in written.items()
        if table is not None
    }
    bars = symbol_tables.get("bars")
    received = {"min": None, "max": None} if result.error else pc.min_max(result.tables["bars"]["ts"]).as_py()
    return {
        "symbol": result.symbol,
        "status": OK if result.error is None else FAILED,
        "error": None if result.error is None else f"{type(result.error).__name__}: {result.error}",
        "bars": 0 if bars is None else len(bars),
        "restated": 0 if bars is None else pc.sum(bars["restated"]).as_py() or 0,
        "actions": len(symbol_tables.get("corporate_actions", ())),
        "funding": len(symbol_tables.get("funding_rates", ())),
        "first_ts": received["min"],
        "last_ts": received["max"],
    }


def _bad_symbols_error(failed: dict[str, MarketError], n_symbols: int, max_bad_fraction: float) -> Exception:
    """MarketDownError if every failure is an outage, otherwise TooManyBadSymbolsError."""
    symbol, first_error = next(iter(failed.items()))
    text = (
        f"{len(failed)} of {n_symbols} symbols failed, more than {max_bad_fraction:.0%}; "
        f"the first, {symbol}: {first_error}"
    )
    if all(isinstance(error, OutageError) for error in failed.values()):
        return MarketDownError(f"{text}; all are outages: run the night again later, it goes on where it stopped")
    return TooManyBadSymbolsError(f"{text}; raw.fetches has the others: correct the universe, run the night again")


def _statuses(night: Night) -> list[dict[str, Any]]:
    """The rows of raw.fetches that this night's run has written."""
    return night.warehouse.query("fetches_of_run", run_id=night.run_id).to_pylist()


def _count_pulls(night: Night) -> IngestReport:
    """The counts over all pull statuses of the night's runs, which are also logged."""
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
