"""The bars that close while a stream runs: each is taken in beside the stream, and what it comes to handed back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from functools import partial

import pyarrow as pa

from models.features.indicators import FeatureError
from models.graphs.snapshot import GraphError
from tasks.errors import TaskError
from tasks.live.event_feed import DueBars, Forecaster
from tasks.live.shutdown import run_until_stopped
from warehouse.errors import WarehouseError

logger = logging.getLogger(__name__)

RETRYABLE = (TaskError, WarehouseError, FeatureError, GraphError)  # what may be otherwise at the next close


class BarCloser:
    """Has ``memory`` take in what is due, one after the other, in a thread: the exchange is asked for the bars there.

    ``forecasts``: tables that have not been written yet. A close that fails costs its bar's forecasts: that bar is
    taken in at the next close. ``counts``: unforecast bars.
    """

    def __init__(self, universe: str, memory: Forecaster) -> None:
        self.universe, self.memory = universe, memory
        self.forecasts: list[pa.Table] = []
        self.moved = False  # the memory's state is another than the one saved
        self.counts: Counter[str] = Counter()
        self._closing: asyncio.Task[None] | None = None

    def begin_due(self, stop: asyncio.Event) -> None:
        """Begins the close that is due, unless one is under way. Raises what made the last one fail for good."""
        if self._closing is not None:
            if not self._closing.done():
                return
            self._closing.result()
            self._closing = None
        due = self.memory.due()
        if due is not None:
            self._closing = asyncio.create_task(self._close(due, stop))

    def take(self) -> list[pa.Table]:
        """The forecasts that have not been written; ``put_back`` them if that fails."""
        taken, self.forecasts, self.moved = self.forecasts, [], False
        return taken

    def put_back(self, forecasts: list[pa.Table]) -> None:
        """They were not written."""
        self.forecasts[:0], self.moved = forecasts, True

    async def end(self) -> None:
        """Returns once nothing is under way, which ``stop`` makes soon."""
        if self._closing is not None:
            await asyncio.gather(self._closing, return_exceptions=True)

    async def _close(self, due: DueBars, stop: asyncio.Event) -> None:
        began = time.perf_counter()
        try:
            closed = await run_until_stopped(stop, partial(self.memory.close, due))
        except RETRYABLE as error:
            self.counts["unforecast"] += self.memory.give_up(due)
            self.moved = True
            logger.warning("%s: no forecast at %s: %s", self.universe, _said(due), error)
            return
        if closed is None:
            return  # the stream is ending: the next one finds it due
        self.memory.commit(closed)  # from here on it is in the state, and its rows have to be written with that
        self.forecasts.append(closed.rows)
        self.moved = True
        told = (closed.rows.num_rows, sum(closed.rows["stale"].to_pylist()), time.perf_counter() - began)
        logger.info("%s: at %s %d forecasts, %d of them stale, %.1f s", self.universe, _said(due), *told)


def _said(due: DueBars) -> str:
    return str(due.close.astype("datetime64[s]"))
