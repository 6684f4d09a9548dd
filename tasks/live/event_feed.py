"""What a stream has received, in two parts that are one: the buffer that orders it, and the network that reads it; with
the instant up to which they have received.

The warehouse's rows are the log of this state. Rows are written first, then the state in one file; one that is taken up
again is given the rows that streams received after it, in their order, and is where it would be had it never been put
down.
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
from tasks.events import archived_by, market_rows, readable
from warehouse.connect import Warehouse

logger = logging.getLogger(__name__)

ORDER = [(name, "ascending") for name in ("ts", "kind", "symbol", "event_id")]
RECEIVED, SYMBOLS = "received", "symbols"
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, eq=False)
class DueBars:
    """Bars up to the one that closes at ``close`` are due, with these ``rows`` of MARKET_ROW (e,) of before."""

    close: np.datetime64
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class CloseResult:
    """What taking in the bars came to: where the memory then is, and forecasts, ``rows`` of store.stream_forecasts
    without its keys."""

    memory: Any
    rows: pa.Table


class EventConsumer(Protocol):
    """What a stream feeds: a network with its state, or anything else that reads rows in order."""

    def begin(self) -> np.ndarray:
        """The stored rows of MARKET_ROW that it has to be told first, having begun anew."""

    def consume(self, rows: np.ndarray) -> Any:
        """Takes the next rows of MARKET_ROW, by time."""

    def state(self) -> dict[str, np.ndarray]:
        """Its state, as arrays that later calls do not alter."""

    def unfit(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why it cannot go on from these arrays; empty if it can."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken."""


@runtime_checkable
class Forecaster(EventConsumer, Protocol):
    """A memory that forecasts at the closes of bars."""

    def due(self) -> DueBars | None:
        """The bars whose close the rows so far have passed, None for none; asked again once they are closed."""

    def close(self, due: DueBars) -> CloseResult:
        """What they come to; changes nothing, so that it may run beside all else."""

    def commit(self, closed: CloseResult) -> None:
        """Goes on from there."""

    def give_up(self, due: DueBars) -> int:
        """How many bars will have no forecast; they are taken in at the next close."""


class NoConsumer:
    """Reads rows and keeps nothing of them: for a stream that only stores."""

    def begin(self) -> np.ndarray:
        """Nothing."""
        return np.empty(0, MARKET_ROW)

    def consume(self, rows: np.ndarray) -> None:
        """Nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def unfit(self, arrays: Mapping[str, np.ndarray]) -> str:
        """It goes on from anything."""
        return ""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing to go on from."""


class EventFeed:
    """Takes rows as they arrive and gives them to ``memory`` in order, each once. ``unreadable``: how many
    no event could be made of."""

    def __init__(self, symbols: Sequence[str], memory: EventConsumer, bound_us: int) -> None:
        self.symbols, self.memory = tuple(symbols), memory
        self.buffer: EventStream[Any] = EventStream(memory.consume, bound_us=bound_us)
        self.received = EPOCH
        self.failed = False
        self.unreadable = 0

    def stamped(self, table: pa.Table) -> pa.Table:
        """These rows of EVENT_ROWS as they are to be written: in the order of time, with ``fetched_at``."""
        # a clock that was set back must not reorder the log
        self.received = max(datetime.now(UTC), self.received + timedelta(microseconds=1))
        stamps = pa.repeat(pa.scalar(self.received, TS_TYPE), table.num_rows)
        return table.sort_by(ORDER).append_column("fetched_at", stamps)

    def receive(self, table: pa.Table) -> None:
        """Takes in the next rows. What fails in it is raised once; the state is then a half one, ``failed``, and what
        follows is not taken in."""
        if self.failed:
            return
        try:
            self._push(table)
        except BaseException:
            self.failed = True
            raise

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays that later calls do not alter."""
        parts = {f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.state().items()}
        received = np.array((self.received - EPOCH) // timedelta(microseconds=1))
        return parts | {RECEIVED: received, SYMBOLS: np.array(self.symbols)}

    def resume(self, path: Path, warehouse: Warehouse, keys: Mapping[str, object]) -> None:
        """Takes up the state at ``path`` and the rows of ``keys`` that streams received after it; where there is none,
        or one of other symbols or of another memory, begins anew from what is stored.

        Raises GraphError for a damaged file, or one of other bounds.
        """
        began, arrays = time.perf_counter(), load_arrays(path) if path.exists() else None
        why = self._unfit(arrays) if arrays else ""
        if arrays is None or why:
            if why:
                logger.warning("%s is put aside: %s; beginning anew from what is stored", path, why)
            self.received = datetime.now(UTC)
            rows = self.memory.begin()
            self.buffer.push(rows)
            logger.info("beginning with %d stored rows, %.1f s", len(rows), time.perf_counter() - began)
            return
        for name, part in self._parts().items():
            part.restore(_of(name, arrays))
        self.received = EPOCH + timedelta(microseconds=int(arrays[RECEIVED]))
        archived = archived_by(str(keys["source"]))  # whole days of trades that came by no stream
        missed = warehouse.query("events_after", received=self.received, archived=archived, **keys)
        self._push(missed)
        if missed.num_rows:
            self.received = missed["fetched_at"][-1].as_py()
        seconds = time.perf_counter() - began
        logger.info("going on from %s and %d rows after it, %.1f s", path, missed.num_rows, seconds)

    def _push(self, table: pa.Table) -> None:
        rows = market_rows(table, self.symbols)
        known = readable(rows)
        self.unreadable += int((~known).sum())
        self.buffer.push(rows[known])

    def _unfit(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Why these arrays are no state of this feed; empty if they are."""
        saved = arrays[SYMBOLS].tolist() if SYMBOLS in arrays else []
        if saved != list(self.symbols):
            return f"it is of {', '.join(saved) or 'another version'}, this stream of {', '.join(self.symbols)}"
        return self.memory.unfit(_of("memory", arrays))

    def _parts(self) -> dict[str, Any]:
        return {"buffer": self.buffer, "memory": self.memory}


def _of(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one part, under its own names."""
    return {key.removeprefix(f"{part}."): array for key, array in arrays.items() if key.startswith(f"{part}.")}
