"""Requests by REST the trades that happened while the websocket was not connected."""

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
    """Fetches the trades after each symbol's last one. ``counts``: filled trades, symbols left unfilled.

    ``last_trade_ts`` holds the time of each symbol's last trade and is updated by the caller. Without ``rest`` nothing
    is fetched. Two backfills are at least ``every_s`` seconds apart.
    """

    def __init__(self, rest: Bybit | None, every_s: float) -> None:
        self.rest = rest
        self.every_s = every_s
        self.last_trade_ts: dict[str, datetime] = {}
        self.counts: Counter[str] = Counter()
        self._next_backfill_s = 0.0

    async def backfill(self, stop: asyncio.Event) -> pa.Table:
        """Rows of EVENT_ROWS: the trades of all symbols since each one's last trade.

        The symbols come in one table, so that no symbol's trades arrive late because another's were pushed first. Once
        ``stop`` is set nothing is requested or waited for any more: those trades stay missing.
        """
        tables = [event_rows([])]
        if self.rest is None or not self.last_trade_ts:
            return tables[0]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, self._next_backfill_s - time.monotonic()))
        for symbol, last in self.last_trade_ts.items():
            tables.append(await self._trades_since(symbol, last, stop))
        self._next_backfill_s = time.monotonic() + self.every_s
        trades = pa.concat_tables(tables)
        self.counts["filled"] += trades.num_rows
        return trades

    async def _trades_since(self, symbol: str, last: datetime, stop: asyncio.Event) -> pa.Table:
        rest = self.rest
        trades = None
        reason = "the stream is ending"
        try:
            if rest is not None and not stop.is_set():
                trades = await run_until_stopped(stop, lambda: rest.recent_trades(symbol))
        except MarketError as error:
            reason = str(error)
        if trades is None:
            self.counts["unfilled"] += 1
            logger.warning("%s: trades since %s stay missing: %s", symbol, last, reason)
            return event_rows([])
        if trades.num_rows >= TRADE_ROWS and trades["ts"][0].as_py() > last:
            self.counts["unfilled"] += 1
            logger.warning("%s: trades from %s to %s stay missing", symbol, last, trades["ts"][0])
        return trades.filter(pc.greater_equal(trades["ts"], pa.scalar(last, TS_TYPE)))
