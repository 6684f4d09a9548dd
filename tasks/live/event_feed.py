"""A stream's state: a buffer that puts the received events in order, the consumer that reads them, and the instant up
to which events were received. All of it is saved in one file.

The warehouse's rows are the log of this state: rows are written first, the state after them. A resumed state is fed
the rows that were received after it was saved, in their order, and is then equal to one that was never interrupted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from models.graphs.market_stream import MARKET_ROW
from models.graphs.stream import EventStream, load_arrays
from models.panel import TS_TYPE
from tasks.event_rows import is_readable, market_rows
from tasks.events import archived_by
from warehouse.connect import Warehouse

logger = logging.getLogger(__name__)

SORT_KEYS = [(name, "ascending") for name in ("ts", "kind", "symbol", "event_id")]
# names of the arrays in a state file: stable, so that an older file still loads
RECEIVED_KEY = "received"
SYMBOLS_KEY = "symbols"
BUFFER_KEY = "buffer"
CONSUMER_KEY = "memory"
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, eq=False)
class DueBars:
    """The bars up to the one that closes at ``close`` have to be processed; ``rows`` of MARKET_ROW (e,) are the events
    up to that close."""

    close: np.datetime64
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class CloseResult:
    """The result of processing bars at a close: the forecaster's ``state`` after it, and the forecasts, ``rows`` of
    store.stream_forecasts without its keys."""

    state: Any
    rows: pa.Table


class EventConsumer(Protocol):
    """Reads a stream's events in order: a network with its state, or anything else."""

    def begin(self) -> np.ndarray:
        """Starts anew; returns the stored rows of MARKET_ROW that it has to consume first."""

    def consume(self, rows: np.ndarray) -> Any:
        """Reads the next rows of MARKET_ROW, sorted by time."""

    def state(self) -> dict[str, np.ndarray]:
        """Its state, as arrays that later calls do not alter."""

    def reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why it cannot continue from these arrays; empty if it can."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores the state that ``state`` returned."""


@runtime_checkable
class Forecaster(EventConsumer, Protocol):
    """A consumer that also forecasts at the closes of bars."""

    def due(self) -> DueBars | None:
        """The bars that have closed by the newest row and are not processed yet; None for none."""

    def close(self, due: DueBars) -> CloseResult:
        """Processes these bars. Changes nothing of the forecaster, so that it may run in a thread."""

    def commit(self, result: CloseResult) -> None:
        """Makes the result's state the current one."""

    def give_up(self, due: DueBars) -> int:
        """How many bars get no forecast because their close failed; they are processed at the next close."""


class StoreOnly:
    """A consumer that ignores the rows: for a stream that only stores events."""

    def begin(self) -> np.ndarray:
        """No rows."""
        return np.empty(0, MARKET_ROW)

    def consume(self, rows: np.ndarray) -> None:
        """Ignores the rows."""

    def state(self) -> dict[str, np.ndarray]:
        """No arrays."""
        return {}

    def reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Empty: it can continue from any arrays."""
        return ""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""


class EventFeed:
    """Receives rows as they arrive and passes them to ``consumer`` in order, each once.

    An event may arrive up to ``bound_us`` after a newer one. ``received``: when the last rows were received, UTC;
    ``unreadable``: how many rows could not be read as events; ``failed``: the consumer raised an error.
    """

    def __init__(self, symbols: Sequence[str], consumer: EventConsumer, bound_us: int) -> None:
        self.symbols = tuple(symbols)
        self.consumer = consumer
        self.buffer: EventStream[Any] = EventStream(consumer.consume, bound_us=bound_us)
        self.received = EPOCH
        self.failed = False
        self.unreadable = 0

    def with_receipt_time(self, table: pa.Table) -> pa.Table:
        """These rows of EVENT_ROWS as they are to be written: sorted by time, with ``fetched_at``."""
        # a clock that was set back must not reorder the log
        self.received = max(datetime.now(UTC), self.received + timedelta(microseconds=1))
        stamps = pa.repeat(pa.scalar(self.received, TS_TYPE), table.num_rows)
        return table.sort_by(SORT_KEYS).append_column("fetched_at", stamps)

    def receive(self, table: pa.Table) -> None:
        """Passes the next rows on. Raises the consumer's error once; its state is then incomplete (``failed``), and
        later rows are ignored."""
        if self.failed:
            return
        try:
            self._push(table)
        except BaseException:
            self.failed = True
            raise

    def state(self) -> dict[str, np.ndarray]:
        """The whole state as arrays that later calls do not alter."""
        parts = {f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.state().items()}
        received_us = np.array((self.received - EPOCH) // timedelta(microseconds=1))
        return parts | {RECEIVED_KEY: received_us, SYMBOLS_KEY: np.array(self.symbols)}

    def resume(self, path: Path, warehouse: Warehouse, keys: Mapping[str, object]) -> None:
        """Restores the state file ``path`` and reads the rows of ``keys`` that streams received after it was saved.

        Starts again from the stored events if there is no file, or one of other symbols or of another consumer. Raises
        GraphError for a damaged file, or one with another ``bound_us``.
        """
        started_s = time.perf_counter()
        arrays = load_arrays(path) if path.exists() else None
        reason = self._reason_to_restart(arrays) if arrays else ""
        if arrays is None or reason:
            if reason:
                logger.warning("%s is not used: %s; starting again from the stored events", path, reason)
            self.received = datetime.now(UTC)
            rows = self.consumer.begin()
            self.buffer.push(rows)
            logger.info("starting with %d stored rows, %.1f s", len(rows), time.perf_counter() - started_s)
            return
        for name, part in self._parts().items():
            part.restore(_arrays_under(name, arrays))
        self.received = EPOCH + timedelta(microseconds=int(arrays[RECEIVED_KEY]))
        archived = archived_by(str(keys["source"]))  # whole days of trades from the archive, which no stream received
        missed = warehouse.query("events_after", received=self.received, archived=archived, **keys)
        self._push(missed)
        if missed.num_rows:
            self.received = missed["fetched_at"][-1].as_py()
        seconds = time.perf_counter() - started_s
        logger.info("continuing from %s and %d rows after it, %.1f s", path, missed.num_rows, seconds)

    def _push(self, table: pa.Table) -> None:
        rows = market_rows(table, self.symbols)
        readable = is_readable(rows)
        self.unreadable += int((~readable).sum())
        self.buffer.push(rows[readable])

    def _reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why this feed cannot continue from these arrays; empty if it can."""
        symbols = arrays[SYMBOLS_KEY].tolist() if SYMBOLS_KEY in arrays else []
        if symbols != list(self.symbols):
            saved = ", ".join(symbols) or "another version"
            return f"it was saved for {saved}, this stream has {', '.join(self.symbols)}"
        return self.consumer.reason_to_restart(_arrays_under(CONSUMER_KEY, arrays))

    def _parts(self) -> dict[str, Any]:
        return {BUFFER_KEY: self.buffer, CONSUMER_KEY: self.consumer}


def _arrays_under(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with ``part`` and a dot, without that prefix."""
    return {key.removeprefix(f"{part}."): array for key, array in arrays.items() if key.startswith(f"{part}.")}
