"""The data of a market at the close of a bar: what the last published night stored, and the bars and funding
settlements that the exchange has published since. It equals what the next night will read."""

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
from tasks.forecasts import utc_datetime
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
    settlement_rows,
    with_funding,
)
from warehouse.connect import Warehouse
from warehouse.publish import PublishedCopy
from warehouse.universes import Universe

logger = logging.getLogger(__name__)

BAR_ROWS = ("symbol", "ts", *BAR_COLUMNS[:-1])
OHLC = ("open", "high", "low", "close")
SYMBOL_ERRORS = (UnknownSymbolError, RefusedError, MalformedAnswerError)  # concern one symbol; a retry does not help


@dataclass(frozen=True, eq=False)
class MarketData:
    """The ``bars`` of a universe (BAR_COLUMNS) on its whole grid, their ``closes`` (t,), and all funding settlements
    up to the last close as ``funding_rows`` of MARKET_ROW."""

    bars: Panel
    closes: np.ndarray
    funding_rows: np.ndarray


@dataclass(frozen=True)
class LiveMarket:
    """One universe of a source; ``rest`` serves the bars that are not published yet, without it they are missing."""

    warehouse: Warehouse
    universe: Universe
    source: str
    rest: Bybit | None = None

    def published_night(self, clock: datetime) -> Night:
        """A night at ``clock`` that reads the published copy of the warehouse."""
        copy = PublishedCopy(self.warehouse.path)
        return Night(clock.date(), self.source, self.universe, copy, clock)

    def published_data(self, clock: datetime) -> MarketData:
        """The published bars that had closed by ``clock``. Raises NoBarsError, NotPublishedError."""
        night = self.published_night(clock)
        bars = load_bars(night)
        _, closes = bar_grid(night)
        stop = int(np.flatnonzero(bars.mask.any(axis=1))[-1]) + 1
        funding_rows = settlement_rows(load_funding(night), self.universe.symbols)
        return MarketData(bars.rows(0, stop), closes[:stop], funding_rows)

    def data_at_close(self, close: np.datetime64) -> MarketData:
        """The bars up to the one that closed at ``close``. Bars without any data are gaps, except for the last one.

        Raises OutageError when no symbol has the last bar yet or REST fails, ForbiddenError, NoBarsError where nothing
        is stored, NotPublishedError.
        """
        night = self.published_night(utc_datetime(close))
        symbols = self.universe.symbols
        opens, closes = bar_grid(night)
        stored = rows_between(night, "bars_between", symbols, opens)
        funding = load_funding(night)
        if not stored.num_rows:
            raise NoBarsError(f"no {self.source} bar of {self.universe.name} is published; run a night of it first")
        rows = stored.select(BAR_ROWS)
        newest = instants(stored["ts"]).max()
        if newest < opens[-1] and self.rest is not None:
            since = opens[np.searchsorted(opens, newest) + 1]
            listed = {member.symbol for member in self.universe.members if (member.valid_to or date.max) > night.as_of}
            fetched = [self._fetch_since(symbol, since, close, stored) for symbol in sorted(listed)]
            rows = pa.concat_tables([rows, *(bars for bars, _ in fetched)])
            funding = _merge_funding(funding, [rates for _, rates in fetched])
        if instants(rows["ts"]).max() < opens[-1]:
            raise OutageError(
                f"no symbol has a bar of {opens[-1]} yet; the exchange is late, or the stream runs without REST"
            )
        prices = Panel.from_table(rows, BAR_COLUMNS[:-1], symbols, opens)
        return MarketData(with_funding(prices, funding, closes), closes, settlement_rows(funding, symbols))

    def snapshots(self, graph: str | None, ts: np.ndarray) -> list[Snapshot] | None:
        """The published snapshots of a graph that apply to any of the bars ``ts``; None for no graph."""
        if graph is None:
            return None
        night = self.published_night(utc_datetime(ts[-1] + np.timedelta64(1, "D")))
        span = {"start": self.universe.history_start, "end": just_after(ts[0])}
        before = night.warehouse.query("snapshots_before", graph=graph, **night.slice, **span)
        first = instants(before["as_of"])[-1] if before.num_rows else ts[0]
        return load_snapshots(night, graph, last=ts[-1], first=first)

    def _fetch_since(
        self, symbol: str, since: np.datetime64, close: np.datetime64, stored: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        """One symbol's bars (BAR_ROWS) that opened at ``since`` or later, and its settlements, up to ``close``."""
        assert self.rest is not None
        start = utc_datetime(since)
        end = utc_datetime(close)
        stored_bars = stored.filter(pc.equal(stored["symbol"], symbol))
        try:
            klines = self.rest.klines(symbol, self.universe.interval, start, end)
            rates = self.rest.funding(symbol, start, end + timedelta(milliseconds=1))
        except SYMBOL_ERRORS as error:
            logger.warning("%s has no bars: %s", symbol, error)
            return stored.select(BAR_ROWS)[:0], pa.table({"symbol": pa.array([], pa.string()), "ts": stored["ts"][:0]})
        offset = instants(klines["ts"]) - since
        possible = _is_possible(klines) & (offset % INTERVALS[self.universe.interval] == np.timedelta64(0))
        if not possible.all():
            logger.warning("%s: %d impossible bars since %s are left out", symbol, (~possible).sum(), since)
        klines = klines.filter(pa.array(possible))
        price = klines["close"].to_numpy()
        last_price = stored_bars["close"].to_numpy()[-1:] if stored_bars.num_rows else np.array([np.nan])
        returns = price / np.concatenate([last_price, price])[:-1] - 1
        rows = klines.append_column("total_return", pa.array(returns, from_pandas=True))
        return rows.select(BAR_ROWS), rates


def _is_possible(klines: pa.Table) -> np.ndarray:
    """True (t,) for bars with finite positive prices and a finite volume of at least 0."""
    prices = np.stack([klines[name].to_numpy() for name in OHLC])
    volume = klines["volume"].to_numpy()
    return (np.isfinite(prices) & (prices > 0)).all(axis=0) & np.isfinite(volume) & (volume >= 0)


def _merge_funding(stored: pa.Table, fetched: list[pa.Table]) -> pa.Table:
    """Settlements (symbol, ts, rate) sorted by symbol and ts; a stored one takes precedence over a fetched one."""
    tables = pa.concat_tables([stored, *(rates.select(stored.column_names) for rates in fetched if rates.num_rows)])
    frame = tables.to_pandas().drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"], kind="stable")
    return pa.Table.from_pandas(frame, stored.schema, preserve_index=False)
