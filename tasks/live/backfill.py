"""Backfill: requests by REST the trades that happened while the websocket was not connected."""

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
from tasks.markets.bybit import MAX_TRADE_ROWS, Bybit
from tasks.markets.event_rows import event_rows

logger = logging.getLogger(__name__)


class MissedTrades:
    """Fetches the trades that each symbol had since the last trade that the stream received.

    ``last_trade_ts`` maps each symbol to the time (UTC) of its last trade; the caller updates it. ``counts`` has two
    keys: ``filled`` counts the fetched trades, ``unfilled`` the symbols whose missed trades could not all be fetched.
    Without ``rest`` nothing is fetched. Two backfills are at least ``every_s`` seconds apart.
    """

    def __init__(self, rest: Bybit | None, every_s: float) -> None:
        self.rest = rest
        self.every_s = every_s
        self.last_trade_ts: dict[str, datetime] = {}
        self.counts: Counter[str] = Counter()
        self._next_backfill_s = 0.0

    async def backfill(self, stop: asyncio.Event) -> pa.Table:
        """A table of EVENT_SCHEMA with the trades of each symbol at or after the time of its last trade.

        The last trade itself is fetched again; the buffer of the stream drops the duplicate. The table has the trades
        of all symbols: if one symbol's newer trades were pushed first, another symbol's older trades would be late.
        Once ``stop`` is set, nothing is requested any more and the remaining trades stay missing.
        """
        tables = [event_rows([])]
        if self.rest is None or not self.last_trade_ts:
            return tables[0]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, self._next_backfill_s - time.monotonic()))
        for symbol, last_ts in self.last_trade_ts.items():
            tables.append(await self._trades_since(symbol, last_ts, stop))
        self._next_backfill_s = time.monotonic() + self.every_s
        trades = pa.concat_tables(tables)
        self.counts["filled"] += trades.num_rows
        return trades

    async def _trades_since(self, symbol: str, last_ts: datetime, stop: asyncio.Event) -> pa.Table:
        """One symbol's trades with ts ≥ ``last_ts``, or no rows if they could not be fetched."""
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
            logger.warning("%s: trades since %s stay missing: %s", symbol, last_ts, reason)
            return event_rows([])
        if trades.num_rows >= MAX_TRADE_ROWS and trades["ts"][0].as_py() > last_ts:  # Bybit serves no older trades
            self.counts["unfilled"] += 1
            logger.warning("%s: trades from %s to %s stay missing", symbol, last_ts, trades["ts"][0])
        return trades.filter(pc.greater_equal(trades["ts"], pa.scalar(last_ts, TS_TYPE)))
