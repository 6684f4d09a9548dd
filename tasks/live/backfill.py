"""Trades that were sent while nobody listened, asked for by REST."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from models.panel import TS_TYPE
from tasks.errors import MarketError
from tasks.live.shutdown import run_until_stopped
from tasks.markets.bybit import TRADE_ROWS, Bybit
from tasks.markets.event_rows import event_rows

logger = logging.getLogger(__name__)


class MissedTrades:
    """What REST knows after each symbol's ``last`` trade. ``counts``: filled trades, symbols left unfilled.

    Without ``rest`` there is nothing to know. Between two sweeps of all symbols ``every_s`` seconds pass.
    """

    def __init__(self, rest: Bybit | None, every_s: float) -> None:
        self.rest, self.every_s = rest, every_s
        self.last: dict[str, datetime] = {}
        self.counts: Counter[str] = Counter()
        self._next = 0.0

    async def backfill(self, stop: asyncio.Event) -> pa.Table:
        """Trades since each symbol's last one, or the beginning; of all symbols together, so that none is late.

        Once ``stop`` is set no more is asked for, nor waited for: those trades stay missing.
        """
        found = [event_rows([])]
        if self.rest is None or not self.last:
            return found[0]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, self._next - time.monotonic()))
        for symbol, last in self.last.items():
            found.append(await self._since(symbol, last, stop))
        self._next = time.monotonic() + self.every_s
        missed = pa.concat_tables(found)
        self.counts["filled"] += missed.num_rows
        return missed

    async def _since(self, symbol: str, last: datetime, stop: asyncio.Event) -> pa.Table:
        rest, trades, why = self.rest, None, "the stream is ending"
        try:
            if rest is not None and not stop.is_set():
                trades = await run_until_stopped(stop, lambda: rest.recent_trades(symbol))
        except MarketError as error:
            why = str(error)
        if trades is None:
            self.counts["unfilled"] += 1
            logger.warning("%s: trades since %s stay missing: %s", symbol, last, why)
            return event_rows([])
        if trades.num_rows >= TRADE_ROWS and trades["ts"][0].as_py() > last:
            self.counts["unfilled"] += 1
            logger.warning("%s: trades from %s to %s stay missing", symbol, last, trades["ts"][0])
        return trades.filter(pc.greater_equal(trades["ts"], pa.scalar(last, TS_TYPE)))
