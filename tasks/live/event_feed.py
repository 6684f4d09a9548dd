"""The feed of a stream: a buffer that sorts the received events by time, and the consumer that reads them in order.

The feed's state (the buffer, the consumer, the time of the last receipt) is saved in one file. The rows in the
warehouse are the log of this state: rows are written first, the state after them. A resumed feed reads the rows that
were received after its state was saved, in the order of their receipt. Its state is then equal to that of an
uninterrupted feed.
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
from tasks.events import archive_run_id
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
    """The closed bars that a forecaster has not processed yet.

    ``close``: the close time (UTC) of the last of these bars; ``rows``: the events with t ≤ ``close``, an array (e,) of
    dtype MARKET_ROW.
    """

    close: np.datetime64
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class CloseResult:
    """The result of processing due bars.

    ``state``: the forecaster's state after these bars; ``rows``: the forecasts, a table with the columns of
    store.stream_forecasts without its keys.
    """

    state: Any
    rows: pa.Table


class EventConsumer(Protocol):
    """An object with a state that reads a stream's events in order, such as a network.

    Events are arrays (e,) of dtype MARKET_ROW, sorted by time.
    """

    def begin(self) -> np.ndarray:
        """Resets the state and returns the stored events (e,) that have to be consumed first."""

    def consume(self, rows: np.ndarray) -> Any:
        """Reads the next events (e,), sorted by time; they are later than all events consumed before."""

    def state(self) -> dict[str, np.ndarray]:
        """The consumer's state as copies, which later calls do not alter."""

    def reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """The reason why the consumer cannot continue from these arrays; empty if it can."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets the state to one that ``state`` returned earlier."""


@runtime_checkable
class Forecaster(EventConsumer, Protocol):
    """A consumer that also forecasts at the closes of bars."""

    def due(self) -> DueBars | None:
        """The bars that have closed by the newest event and are not processed yet; None if there is no such bar."""

    def close(self, due: DueBars) -> CloseResult:
        """Processes these bars and returns the result; does not change the forecaster, so a thread can run it."""

    def commit(self, result: CloseResult) -> None:
        """Makes the result's state the current one."""

    def give_up(self, due: DueBars) -> int:
        """Records that this close failed and returns how many bars get no forecast because of it.

        These bars are processed at the next close.
        """


class StoreOnly:
    """A consumer without a state that ignores all events: for a stream that only stores them."""

    def begin(self) -> np.ndarray:
        """Returns an empty array."""
        return np.empty(0, MARKET_ROW)

    def consume(self, rows: np.ndarray) -> None:
        """Does nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """Returns an empty dict."""
        return {}

    def reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Returns an empty text: a consumer without a state can continue from any arrays."""
        return ""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""


class EventFeed:
    """Receives tables of events as they arrive and passes each event to ``consumer`` once, sorted by time.

    An event may be up to ``bound_us`` (microseconds) older than the newest event received before it; an older one is
    late and is dropped. ``received_at``: when the last table was received (UTC). ``n_unreadable``: how many rows could
    not be read as events. ``has_failed``: the consumer has raised an error.
    """

    def __init__(self, symbols: Sequence[str], consumer: EventConsumer, bound_us: int) -> None:
        self.symbols = tuple(symbols)
        self.consumer = consumer
        self.buffer: EventStream[Any] = EventStream(consumer.consume, bound_us=bound_us)
        self.received_at = EPOCH
        self.has_failed = False
        self.n_unreadable = 0

    def with_receipt_time(self, table: pa.Table) -> pa.Table:
        """The table (of EVENT_SCHEMA) sorted by SORT_KEYS, with the column ``fetched_at``: the time of its receipt.

        ``fetched_at`` increases from call to call even if the machine's clock was set back, because the order of the
        log depends on it.
        """
        self.received_at = max(datetime.now(UTC), self.received_at + timedelta(microseconds=1))
        fetched_at = pa.repeat(pa.scalar(self.received_at, TS_TYPE), table.num_rows)
        return table.sort_by(SORT_KEYS).append_column("fetched_at", fetched_at)

    def receive(self, table: pa.Table) -> None:
        """Passes the rows of the table to the buffer, which passes the events that are in order to the consumer.

        Raises the consumer's error the first time; its state is then incomplete, and later tables are ignored.
        """
        if self.has_failed:
            return
        try:
            self._push(table)
        except BaseException:
            self.has_failed = True
            raise

    def state(self) -> dict[str, np.ndarray]:
        """The feed's state as arrays that later calls do not alter."""
        arrays = {f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.state().items()}
        received_us = np.array((self.received_at - EPOCH) // timedelta(microseconds=1))
        return arrays | {RECEIVED_KEY: received_us, SYMBOLS_KEY: np.array(self.symbols)}

    def resume(self, path: Path, warehouse: Warehouse, keys: Mapping[str, object]) -> None:
        """Restores the state file ``path``, then reads the stored rows that streams received after it was saved.

        ``keys`` selects this stream's rows in the warehouse. If there is no file, or if it was saved for other symbols
        or for another consumer, the feed starts again from the stored events. Raises GraphError for a damaged file and
        for a file with another ``bound_us``.
        """
        started_s = time.perf_counter()
        arrays = load_arrays(path) if path.exists() else None
        reason = self._reason_to_restart(arrays) if arrays else ""
        if arrays is None or reason:
            if reason:
                logger.warning("%s is not used: %s; starting again from the stored events", path, reason)
            self.received_at = datetime.now(UTC)
            rows = self.consumer.begin()
            self.buffer.push(rows)
            logger.info("starting with %d stored rows, %.1f s", len(rows), time.perf_counter() - started_s)
            return
        for name, part in self._parts().items():
            part.restore(_arrays_under(name, arrays))
        self.received_at = EPOCH + timedelta(microseconds=int(arrays[RECEIVED_KEY]))
        # excludes whole days of trades that were fetched from the archive and that no stream received
        archived = archive_run_id(str(keys["source"]))
        missed = warehouse.query("events_after", received=self.received_at, archived=archived, **keys)
        self._push(missed)
        if missed.num_rows:
            self.received_at = missed["fetched_at"][-1].as_py()
        seconds = time.perf_counter() - started_s
        logger.info("continuing from %s and %d rows after it, %.1f s", path, missed.num_rows, seconds)

    def _push(self, table: pa.Table) -> None:
        """Pushes the readable rows of a table of events into the buffer and counts the others."""
        rows = market_rows(table, self.symbols)
        is_valid = is_readable(rows)
        self.n_unreadable += int((~is_valid).sum())
        self.buffer.push(rows[is_valid])

    def _reason_to_restart(self, arrays: Mapping[str, np.ndarray]) -> str:
        """The reason why this feed cannot continue from these arrays; empty if it can."""
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
