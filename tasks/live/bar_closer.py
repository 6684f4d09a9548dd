"""Runs the forecaster at each bar's close, in a thread beside the stream, and collects the forecasts.

A "close" is one run of the forecaster over all bars that have closed since its last run.
"""

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

RETRYABLE = (TaskError, WarehouseError, FeatureError, GraphError)  # errors that may be gone at the next close


class BarCloser:
    """Runs ``forecaster.close`` on the due bars, one close at a time, in a thread because it calls REST.

    ``forecasts`` holds the forecast tables that are not written yet. ``has_unsaved_state`` is True once a close has
    changed the forecaster's state after the last save. A bar whose close fails gets no forecast, but the forecaster
    processes it at the next close; ``counts["unforecast"]`` counts these bars.
    """

    def __init__(self, universe: str, forecaster: Forecaster) -> None:
        self.universe = universe
        self.forecaster = forecaster
        self.forecasts: list[pa.Table] = []
        self.has_unsaved_state = False
        self.counts: Counter[str] = Counter()
        self._closing: asyncio.Task[None] | None = None

    def start_due_close(self, stop: asyncio.Event) -> None:
        """Starts a close if bars are due and no close is running.

        Raises the error that the last close failed with, unless it was one of RETRYABLE.
        """
        if self._closing is not None:
            if not self._closing.done():
                return
            self._closing.result()
            self._closing = None
        due = self.forecaster.due()
        if due is not None:
            self._closing = asyncio.create_task(self._close(due, stop))

    def take_forecasts(self) -> list[pa.Table]:
        """Returns the forecast tables that are not written yet and removes them from this object.

        The caller returns them with ``put_back`` if the write fails.
        """
        forecasts = self.forecasts
        self.forecasts = []
        self.has_unsaved_state = False
        return forecasts

    def put_back(self, forecasts: list[pa.Table]) -> None:
        """Adds forecast tables that could not be written, before the newer ones."""
        self.forecasts[:0] = forecasts
        self.has_unsaved_state = True

    async def wait(self) -> None:
        """Waits until no close is running. The close ends early if the ``stop`` event it was started with is set."""
        if self._closing is not None:
            await asyncio.gather(self._closing, return_exceptions=True)

    async def _close(self, due: DueBars, stop: asyncio.Event) -> None:
        """Runs one close, commits its result and collects its forecasts; a RETRYABLE error is counted and logged."""
        started_s = time.perf_counter()
        try:
            result = await run_until_stopped(stop, partial(self.forecaster.close, due))
        except RETRYABLE as error:
            self.counts["unforecast"] += self.forecaster.give_up(due)
            self.has_unsaved_state = True
            logger.warning("%s: no forecast at %s: %s", self.universe, _close_text(due), error)
            return
        if result is None:
            return  # the stream is ending: these bars are due again in the next run
        self.forecaster.commit(result)  # from here on the close is in the state, so its rows must be saved with it
        self.forecasts.append(result.rows)
        self.has_unsaved_state = True
        n_stale = sum(result.rows["stale"].to_pylist())
        seconds = time.perf_counter() - started_s
        logger.info(
            "%s: at %s %d forecasts, %d of them stale, %.1f s",
            self.universe,
            _close_text(due),
            result.rows.num_rows,
            n_stale,
            seconds,
        )


def _close_text(due: DueBars) -> str:
    """The close time of the last due bar, to the second, for log messages."""
    return str(due.close.astype("datetime64[s]"))
