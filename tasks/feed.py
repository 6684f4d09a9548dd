"""What a stream has received, in three parts that are one: the buffer that orders it, the rows that its features look
back to, and the network that reads it; with the instant up to which they have received.

The warehouse's rows are the log of this state. Rows are written first, then the state in one file; one that is taken up
again is given the rows received after it, in their order, and is where it would be had it never been put down.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from models.graphs.events import Events
from models.graphs.market_stream import MarketEvents
from models.graphs.stream import EventStream, load_arrays
from models.panel import TS_TYPE
from tasks.events import market_rows
from warehouse.connect import Warehouse

logger = logging.getLogger(__name__)

ORDER = [(name, "ascending") for name in ("ts", "kind", "symbol", "event_id")]
RECEIVED = "received"
EPOCH = datetime.fromtimestamp(0, UTC)


class Memory(Protocol):
    """What a stream feeds: a network with its state, or anything else that reads events in order."""

    def consume(self, events: Events) -> Any:
        """What it makes of the next batch."""

    def state(self) -> dict[str, np.ndarray]:
        """Its state, as arrays that later calls do not alter."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from where ``state`` was taken."""


class NoMemory:
    """Reads events and keeps nothing of them: for a stream that only stores."""

    def consume(self, events: Events) -> None:
        """Nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing to go on from."""


class Feed:
    """Takes rows as they arrive and gives them to ``memory`` in order, each once."""

    def __init__(self, symbols: Sequence[str], memory: Memory, bound_us: int) -> None:
        self.symbols, self.memory = tuple(symbols), memory
        self.rows = MarketEvents(symbols)
        self.buffer: EventStream[Any] = EventStream(self.rows, memory.consume, bound_us=bound_us)
        self.received = EPOCH
        self.failed = False

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
            self.buffer.push(market_rows(table, self.symbols))
        except BaseException:
            self.failed = True
            raise

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays that later calls do not alter."""
        parts = {f"{name}.{key}": array for name, part in self._parts().items() for key, array in part.state().items()}
        return parts | {RECEIVED: np.array((self.received - EPOCH) // timedelta(microseconds=1))}

    def resume(self, path: Path, warehouse: Warehouse, keys: Mapping[str, object]) -> None:
        """Takes up the state at ``path``, if there is one, and the rows of ``keys`` that were received after it.

        Raises GraphError for a damaged file, or one of other symbols or bounds.
        """
        if not path.exists():
            return
        began, arrays = time.perf_counter(), load_arrays(path)
        for name, part in self._parts().items():
            own = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
            part.restore(own)
        self.received = EPOCH + timedelta(microseconds=int(arrays[RECEIVED]))
        missed = warehouse.query("events_after", received=self.received, **keys)
        self.buffer.push(market_rows(missed, self.symbols))
        if missed.num_rows:
            self.received = missed["fetched_at"][-1].as_py()
        seconds = time.perf_counter() - began
        logger.info("going on from %s and %d rows after it, %.1f s", path, missed.num_rows, seconds)

    def _parts(self) -> dict[str, Any]:
        return {"buffer": self.buffer, "rows": self.rows, "memory": self.memory}
