"""A market at the close of a bar, as the night that comes will know it: what the last published night stored, and the
bars and settlements that the exchange has published since."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.features.indicators import BAR_COLUMNS
from models.graphs.snapshot import Snapshot
from models.panel import Panel
from models.sessions import INTERVALS
from tasks.errors import MalformedAnswerError, NoBarsError, OutageError, RefusedError, UnknownSymbolError
from tasks.forecasts import aware
from tasks.markets.bybit import Bybit
from tasks.night import Night
from tasks.panels import (
    bar_grid,
    instants,
    just_after,
    load_bars,
    load_funding,
    load_snapshots,
    rows_between,
    settlements,
    with_funding,
)
from warehouse.connect import Warehouse
from warehouse.publish import PublishedCopy
from warehouse.universes import Universe

logger = logging.getLogger(__name__)

BAR_ROWS = ("symbol", "ts", *BAR_COLUMNS[:-1])
OHLC = ("open", "high", "low", "close")
NOT_HERE = (UnknownSymbolError, RefusedError, MalformedAnswerError)  # errors about one symbol that will not pass


@dataclass(frozen=True, eq=False)
class MarketData:
    """The ``bars`` of a universe (BAR_COLUMNS) on its whole grid, their ``closes`` (t,), and the settlements of funding
    so far as rows of MARKET_ROW."""

    bars: Panel
    closes: np.ndarray
    settled: np.ndarray


@dataclass(frozen=True)
class LiveMarket:
    """One universe of a source; ``rest`` answers for the bars that are not published, without it they are missing."""

    warehouse: Warehouse
    universe: Universe
    source: str
    rest: Bybit | None = None

    def night(self, clock: datetime) -> Night:
        """What is published, as the night of this instant reads it."""
        copy = PublishedCopy(self.warehouse.path)
        return Night(clock.date(), self.source, self.universe, copy, clock)

    def stored(self, clock: datetime) -> MarketData:
        """The published bars that had closed by ``clock``. Raises NoBarsError, NotPublishedError."""
        night = self.night(clock)
        bars, (_, closes) = load_bars(night), bar_grid(night)
        stop = int(np.flatnonzero(bars.mask.any(axis=1))[-1]) + 1
        return MarketData(bars.rows(0, stop), closes[:stop], settlements(load_funding(night), self.universe.symbols))

    def at(self, close: np.datetime64) -> MarketData:
        """The bars up to the one that closed at ``close``; those that nobody has are gaps, but for that one.

        Raises OutageError and ForbiddenError, NoBarsError where nothing is stored, NotPublishedError.
        """
        night, symbols = self.night(aware(close)), self.universe.symbols
        opens, closes = bar_grid(night)
        stored, settled = rows_between(night, "bars_between", symbols, opens), load_funding(night)
        if not stored.num_rows:
            raise NoBarsError(f"no {self.source} bar of {self.universe.name} is published; run a night of it first")
        rows = stored.select(BAR_ROWS)
        newest = instants(stored["ts"]).max()
        if newest < opens[-1] and self.rest is not None:
            since = opens[np.searchsorted(opens, newest) + 1]
            listed = {one.symbol for one in self.universe.members if (one.valid_to or date.max) > night.as_of}
            answers = [self._since(symbol, since, close, stored) for symbol in sorted(listed)]
            rows = pa.concat_tables([rows, *(bars for bars, _ in answers)])
            settled = _joined(settled, [rates for _, rates in answers])
        if instants(rows["ts"]).max() < opens[-1]:
            raise OutageError(f"nobody has a bar of {opens[-1]} yet; the exchange is late, or there is no REST to ask")
        prices = Panel.from_table(rows, BAR_COLUMNS[:-1], symbols, opens)
        return MarketData(with_funding(prices, settled, closes), closes, settlements(settled, symbols))

    def snapshots(self, graph: str | None, ts: np.ndarray) -> list[Snapshot] | None:
        """The published snapshots of a graph that are in force at some of the bars ``ts``; None for no graph."""
        if graph is None:
            return None
        night = self.night(aware(ts[-1] + np.timedelta64(1, "D")))
        span = {"start": self.universe.history_start, "end": just_after(ts[0])}
        found = night.warehouse.query("snapshots_before", graph=graph, **night.slice, **span)
        first = instants(found["as_of"])[-1] if found.num_rows else ts[0]
        return load_snapshots(night, graph, last=ts[-1], first=first)

    def _since(
        self, symbol: str, since: np.datetime64, close: np.datetime64, stored: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        """One symbol's bars (BAR_ROWS) that opened at ``since`` or later, and its settlements, up to ``close``."""
        assert self.rest is not None
        start, end = aware(since), aware(close)
        own = stored.filter(pc.equal(stored["symbol"], symbol))
        try:
            klines = self.rest.klines(symbol, self.universe.interval, start, end)
            rates = self.rest.funding(symbol, start, end + timedelta(milliseconds=1))
        except NOT_HERE as error:
            logger.warning("%s has no bars: %s", symbol, error)
            return stored.select(BAR_ROWS)[:0], pa.table({"symbol": pa.array([], pa.string()), "ts": stored["ts"][:0]})
        after = instants(klines["ts"]) - since
        possible = _possible(klines) & (after % INTERVALS[self.universe.interval] == np.timedelta64(0))
        if not possible.all():
            logger.warning("%s: %d impossible bars since %s are left out", symbol, (~possible).sum(), since)
        klines = klines.filter(pa.array(possible))
        price = klines["close"].to_numpy()
        last = own["close"].to_numpy()[-1:] if own.num_rows else np.array([np.nan])
        returns = price / np.concatenate([last, price])[:-1] - 1
        rows = klines.append_column("total_return", pa.array(returns, from_pandas=True))
        return rows.select(BAR_ROWS), rates


def _possible(klines: pa.Table) -> np.ndarray:
    """True (t,) for bars that a market could print."""
    prices = np.stack([klines[name].to_numpy() for name in OHLC])
    volume = klines["volume"].to_numpy()
    return (np.isfinite(prices) & (prices > 0)).all(axis=0) & np.isfinite(volume) & (volume >= 0)


def _joined(settled: pa.Table, later: list[pa.Table]) -> pa.Table:
    """Settlements (symbol, ts, rate) by symbol and ts, of one that is stored the stored one."""
    every = pa.concat_tables([settled, *(rates.select(settled.column_names) for rates in later if rates.num_rows)])
    frame = every.to_pandas().drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"], kind="stable")
    return pa.Table.from_pandas(frame, settled.schema, preserve_index=False)
