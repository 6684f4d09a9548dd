"""Ingest: what the markets printed since the last night, as versions of rows; nothing received is ever overwritten.

Each symbol is pulled from a few bars before its watermark, so that restated bars are seen. ``raw.fetches`` is the
night's ledger: a symbol's bars, actions, funding and ledger row come in one transaction, and a night run again asks
only for what the ledger lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import MarketDownError, MarketError, NightOutOfRangeError, OutageError, TooManyBadSymbolsError
from tasks.fetch import Pull, PullRequest, pull, symbols_due
from tasks.markets.session import Market, open_market
from tasks.night import Night
from warehouse.connect import Warehouse
from warehouse.events import append_events
from warehouse.tables import append, read_query, upsert
from warehouse.universes import Universe

logger = logging.getLogger(__name__)

BATCH_SYMBOLS, BATCH_ROWS = 32, 100_000  # a transaction's size: what a kill can cost, and what memory must hold
OK, FAILED = "ok", "failed"
LEDGER = pa.schema(
    [("symbol", pa.string()), ("status", pa.string()), ("error", pa.string())]
    + [(name, pa.int32()) for name in ("bars", "restated", "actions", "funding")]
    + [(name, pa.timestamp("us", "UTC")) for name in ("first_ts", "last_ts")]
)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class IngestReport:
    """How a night's pull went: symbols fetched, error by failed symbol, bars written, those of them restated."""

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
    """The night's raw bars, corporate actions, funding, instruments and events; tried again only for an outage."""
    return ingest_universe(
        night.warehouse,
        night.universe,
        night.source,
        night.as_of,
        night.run_id,
        night.tape,
        overlap_bars=overlap_bars,
        max_bad_fraction=max_bad_fraction,
        threads=threads,
        clock=night.clock,
        on_progress=on_progress,
    )


def check_market(night: Night) -> None:
    """Raises what makes a night impossible (its date, tape or network), before anything is written for it."""
    _refuse_before_history(night.universe, night.as_of)
    with open_market(night.source, night.as_of, night.tape, providers=(night.universe.provider,), clock=night.clock):
        logger.debug("the market of %s can be asked for %s", night.universe.name, night.as_of)


def _refuse_before_history(universe: Universe, night: date) -> None:
    begins = universe.history_start.date()
    if night < begins:
        raise NightOutOfRangeError(f"{universe.name} begins on {begins}: it has no night {night}")


def ingest_universe(
    warehouse: Warehouse,
    universe: Universe,
    source: str,
    night: date,
    run_id: str,
    tape: Path | None,
    *,
    overlap_bars: int,
    max_bad_fraction: float,
    threads: int,
    clock: datetime | None = None,
    on_progress: Progress | None = None,
) -> IngestReport:
    """What the run has written of one universe; symbols that its ledger has already are not asked for again.

    A failing symbol is recorded and skipped. TooManyBadSymbolsError when more than ``max_bad_fraction`` of the symbols
    failed, MarketDownError when all of those were outages; an error that concerns every symbol is raised as it is.
    """
    _refuse_before_history(universe, night)
    done = {row["symbol"] for row in _fetches(warehouse, run_id) if _is_done(row, clock)}
    if done.issuperset(universe.fetched):  # a night that has its data needs no market, nor a network, to go on
        return _report(warehouse, run_id)
    with open_market(source, night, tape, providers=(universe.provider,), clock=clock) as market:
        writer = Writer(warehouse, universe, source, night, market.clock, run_id)
        due = symbols_due(universe, night, writer.last_bars(overlap_bars + 1))
        waiting = [one for one in due if one.symbol not in done]
        if waiting and universe.provider == "bybit":
            writer.write_instruments(market.bybit.instruments([one.symbol for one in waiting]))
        total = len(done | {one.symbol for one in due})
        _pull_all(market, universe, waiting, writer, threads, max_bad_fraction, total, on_progress)
    return _report(warehouse, run_id)


def _pull_all(
    market: Market,
    universe: Universe,
    due: list[PullRequest],
    writer: Writer,
    threads: int,
    max_bad_fraction: float,
    total: int,
    on_progress: Progress | None,
) -> None:
    """Pulls and writes every due symbol, a few at a time; stops as soon as too many have failed."""
    failed: dict[str, MarketError] = {}
    batch: list[Pull] = []
    done = total - len(due)
    with ThreadPoolExecutor(threads, thread_name_prefix="ingest") as pool:
        for pulled in _as_pulled(pool, market, universe, due, ahead=2 * threads):
            done += 1
            batch.append(pulled)
            if pulled.error is not None:
                failed[pulled.symbol] = pulled.error
                logger.warning("%s skipped: %s", pulled.symbol, pulled.error)
            too_many = len(failed) > max_bad_fraction * total
            if too_many or len(batch) >= BATCH_SYMBOLS or sum(one.rows for one in batch) >= BATCH_ROWS:
                writer.write(batch)
                batch = []
            if on_progress is not None:
                on_progress(done, total, pulled.symbol)
            if too_many:
                raise _too_many(failed, total, max_bad_fraction)
    if batch:
        writer.write(batch)


def _as_pulled(
    pool: ThreadPoolExecutor, market: Market, universe: Universe, due: list[PullRequest], ahead: int
) -> Iterator[Pull]:
    """Pulls as they arrive; at most ``ahead`` are under way or wait to be taken, which bounds memory."""
    waiting = iter(due)
    running = {pool.submit(pull, market, universe, one) for one in islice(waiting, ahead)}
    try:
        while running:
            arrived, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(pull, market, universe, one) for one in islice(waiting, len(arrived))}
            for future in arrived:
                yield future.result()
    finally:  # whoever stops taking leaves nothing to be asked for
        pool.shutdown(wait=False, cancel_futures=True)


class Writer:
    """Puts pulls into the raw tables: only rows that are new or changed, and the ledger's row with them."""

    def __init__(
        self, warehouse: Warehouse, universe: Universe, source: str, night: date, clock: datetime, run_id: str
    ) -> None:
        self._warehouse, self._universe, self._night, self._clock = warehouse, universe, night, clock
        self._source, self._run_id = source, run_id
        self._slice: dict[str, object] = {"source": source, "universe": universe.name}
        self._stamps: dict[str, object] = {**self._slice, "fetched_at": clock, "run_id": run_id}

    def last_bars(self, bars: int) -> pa.Table:
        """The last bars of every symbol as they are known at the clock, oldest first."""
        interval = self._universe.interval
        return self._warehouse.query("ingest_overlap", bars=bars, interval=interval, clock=self._clock, **self._slice)

    def write(self, pulls: list[Pull]) -> None:
        """Writes these symbols in one transaction."""
        with self._warehouse.write(f"ingest {self._universe.name} {self._night}") as con:
            written = {
                name: self._append_changed(con, name, [one.tables[name] for one in pulls if name in one.tables])
                for name in ("bars", "corporate_actions", "funding_rates")
            }
            for one in pulls:
                if "events" in one.tables:
                    self._append_events(con, one.tables["events"])
            ledger = pa.Table.from_pylist([_ledger_row(one, written) for one in pulls], schema=LEDGER)
            upsert(con, "raw.fetches", ledger, by=("run_id", "symbol"), night=self._night, **self._stamps)

    def _append_events(self, con: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
        """Writes those that are new: an event never changes."""
        of = {"source": self._source, "venue": self._universe.provider}
        append_events(con, rows, **of, fetched_at=self._clock, run_id=self._run_id)

    def write_instruments(self, rows: pa.Table) -> None:
        """Writes what has changed of the instruments."""
        with self._warehouse.write(f"ingest instruments of {self._universe.name}") as con:
            self._append_changed(con, "instruments", [rows])

    def _append_changed(self, con: duckdb.DuckDBPyConnection, name: str, tables: list[pa.Table]) -> pa.Table | None:
        """The rows that were written, with a column ``restated`` in bars; None when there was nothing to look at."""
        if not tables:
            return None
        interval = {"interval": self._universe.interval} if name == "bars" else {}
        con.register("pulled", pa.concat_tables(tables))
        changed = read_query(con, f"changed_{name}", clock=self._clock, **self._slice, **interval)
        con.unregister("pulled")
        rows = changed.drop_columns(["restated"]) if name == "bars" else changed
        append(con, f"raw.{name}", rows, provider=self._universe.provider, **self._stamps)
        return changed


def _is_done(fetch: dict[str, Any], clock: datetime | None) -> bool:
    """True for a symbol fetched at this very clock: a live night run again later asks for what has closed since."""
    return fetch["status"] == OK and clock in (None, fetch["fetched_at"])


def _ledger_row(pulled: Pull, written: dict[str, pa.Table | None]) -> dict[str, object]:
    """The ledger's row of one symbol: what was written of it, and the span of the bars that it answered."""
    own = {
        name: table.filter(pc.equal(table["symbol"], pulled.symbol))
        for name, table in written.items()
        if table is not None
    }
    bars = own.get("bars")
    span = pc.min_max(pulled.tables["bars"]["ts"]).as_py() if pulled.error is None else {"min": None, "max": None}
    return {
        "symbol": pulled.symbol,
        "status": OK if pulled.error is None else FAILED,
        "error": None if pulled.error is None else f"{type(pulled.error).__name__}: {pulled.error}",
        "bars": 0 if bars is None else len(bars),
        "restated": 0 if bars is None else pc.sum(bars["restated"]).as_py() or 0,
        "actions": len(own.get("corporate_actions", ())),
        "funding": len(own.get("funding_rates", ())),
        "first_ts": span["min"],
        "last_ts": span["max"],
    }


def _too_many(failed: dict[str, MarketError], total: int, max_bad_fraction: float) -> Exception:
    symbol, first = next(iter(failed.items()))
    text = f"{len(failed)} of {total} symbols failed, more than {max_bad_fraction:.0%}; the first, {symbol}: {first}"
    if all(isinstance(error, OutageError) for error in failed.values()):
        return MarketDownError(f"{text}; all are outages: run the night again later, it goes on where it stopped")
    return TooManyBadSymbolsError(f"{text}; raw.fetches has the others: correct the universe, run the night again")


def _fetches(warehouse: Warehouse, run_id: str) -> list[dict[str, Any]]:
    return warehouse.query("fetches_of_run", run_id=run_id).to_pylist()


def _report(warehouse: Warehouse, run_id: str) -> IngestReport:
    rows = _fetches(warehouse, run_id)
    report = IngestReport(
        fetched=sum(row["status"] == OK for row in rows),
        failed={row["symbol"]: row["error"] for row in rows if row["status"] == FAILED},
        bars=sum(row["bars"] for row in rows),
        restated=sum(row["restated"] for row in rows),
    )
    counts = (report.fetched, len(report.failed), report.bars, report.restated)
    logger.info("%d symbols fetched, %d failed; %d bars written, of which %d restated", *counts)
    return report
