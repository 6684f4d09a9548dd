"""The data of a market at the close of a bar, equal to the data that the next night will read.

A night is the run for one date; its tables are readable in the published copy of the warehouse. The data are the bars
and funding settlements of the last published night, and those that the exchange has published since.
"""

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
from models.sessions import BAR_LENGTHS
from tasks.errors import MalformedAnswerError, NoBarsError, OutageError, RefusedError, UnknownSymbolError
from tasks.forecasts import utc_datetime
from tasks.markets.bybit import Bybit
from tasks.markets.recording import OHLC
from tasks.night import Night
from tasks.panels import (
    bar_grid,
    column_to_datetime64,
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

STORED_BAR_COLUMNS = ("symbol", "ts", *BAR_COLUMNS[:-1])
# errors that concern one symbol only and that a retry does not mend
SYMBOL_ERRORS = (UnknownSymbolError, RefusedError, MalformedAnswerError)


@dataclass(frozen=True, eq=False)
class MarketData:
    """The bars and funding settlements of a universe from the start of its history, oldest first.

    ``bars``: a panel (t bars, n symbols) with the columns BAR_COLUMNS; ``close_times`` (t,): datetime64[us], UTC;
    ``funding_rows``: all funding settlements up to the last close, an array of dtype MARKET_ROW.
    """

    bars: Panel
    close_times: np.ndarray
    funding_rows: np.ndarray


@dataclass(frozen=True)
class LiveMarket:
    """One universe of a source. ``rest`` serves the bars that no published night has; without it they are missing."""

    warehouse: Warehouse
    universe: Universe
    source: str
    rest: Bybit | None = None

    def published_night(self, clock: datetime) -> Night:
        """A night whose clock is ``clock`` (UTC) and that reads the published copy of the warehouse."""
        copy = PublishedCopy(self.warehouse.path)
        return Night(clock.date(), self.source, self.universe, copy, clock)

    def published_data(self, clock: datetime) -> MarketData:
        """The published bars that had closed by ``clock`` (UTC), up to the last bar of any symbol.

        Raises NoBarsError, NotPublishedError.
        """
        night = self.published_night(clock)
        bars = load_bars(night)
        _, close_times = bar_grid(night)
        stop = int(np.flatnonzero(bars.mask.any(axis=1))[-1]) + 1
        funding_rows = settlement_rows(load_funding(night), self.universe.symbols)
        return MarketData(bars.slice_bars(0, stop), close_times[:stop], funding_rows)

    def data_at_close(self, close: np.datetime64) -> MarketData:
        """The bars up to and including the bar that closed at ``close`` (UTC).

        A bar that no symbol has is a gap, unless it is the last bar: that raises OutageError. Raises OutageError also
        if REST fails; ForbiddenError; NoBarsError if no bar is published; NotPublishedError.
        """
        night = self.published_night(utc_datetime(close))
        symbols = self.universe.symbols
        open_times, close_times = bar_grid(night)
        stored = rows_between(night, "bars_between", symbols, open_times)
        funding = load_funding(night)
        if not stored.num_rows:
            raise NoBarsError(f"no {self.source} bar of {self.universe.name} is published; run a night of it first")
        rows = stored.select(STORED_BAR_COLUMNS)
        newest = column_to_datetime64(stored["ts"]).max()
        if newest < open_times[-1] and self.rest is not None:
            since = open_times[np.searchsorted(open_times, newest) + 1]
            listed = {member.symbol for member in self.universe.members if (member.valid_to or date.max) > night.as_of}
            fetched = [self._fetch_since(symbol, since, close, stored) for symbol in sorted(listed)]
            rows = pa.concat_tables([rows, *(bars for bars, _ in fetched)])
            funding = _merge_funding(funding, [rates for _, rates in fetched])
        if column_to_datetime64(rows["ts"]).max() < open_times[-1]:
            raise OutageError(
                f"no symbol has a bar of {open_times[-1]} yet; the exchange is late, or the stream runs without REST"
            )
        prices = Panel.from_table(rows, BAR_COLUMNS[:-1], symbols, open_times)
        funding_rows = settlement_rows(funding, symbols)
        return MarketData(with_funding(prices, funding, close_times), close_times, funding_rows)

    def snapshots(self, graph: str | None, ts: np.ndarray) -> list[Snapshot] | None:
        """The published snapshots of a graph that apply to any of the bars with open times ``ts`` (t,), oldest first.

        The first is the last snapshot before or at ``ts[0]``, if there is one. Returns None if ``graph`` is None.
        """
        if graph is None:
            return None
        night = self.published_night(utc_datetime(ts[-1] + np.timedelta64(1, "D")))
        bounds = {"start": self.universe.history_start, "end": just_after(ts[0])}
        before = night.warehouse.query("snapshots_before", graph=graph, **night.slice, **bounds)
        first = column_to_datetime64(before["as_of"])[-1] if before.num_rows else ts[0]
        return load_snapshots(night, graph, last=ts[-1], first=first)

    def _fetch_since(
        self, symbol: str, since: np.datetime64, close: np.datetime64, stored: pa.Table
    ) -> tuple[pa.Table, pa.Table]:
        """One symbol's bars and funding settlements from REST: bars that open in [since, close), settlements in
        [since, close].

        The bars have STORED_BAR_COLUMNS; ``total_return`` is the simple return since the symbol's last bar in
        ``stored``, null where that is missing. Invalid bars are left out. A symbol with one of SYMBOL_ERRORS gets two
        empty tables.
        """
        assert self.rest is not None
        start = utc_datetime(since)
        end = utc_datetime(close)
        stored_bars = stored.filter(pc.equal(stored["symbol"], symbol))
        try:
            klines = self.rest.klines(symbol, self.universe.interval, start, end)
            rates = self.rest.funding(symbol, start, end + timedelta(milliseconds=1))
        except SYMBOL_ERRORS as error:
            logger.warning("%s has no bars: %s", symbol, error)
            return stored.select(STORED_BAR_COLUMNS)[:0], pa.table(
                {"symbol": pa.array([], pa.string()), "ts": stored["ts"][:0]}
            )
        offset = column_to_datetime64(klines["ts"]) - since
        is_valid = _has_valid_values(klines) & (offset % BAR_LENGTHS[self.universe.interval] == np.timedelta64(0))
        if not is_valid.all():
            logger.warning("%s: %d invalid bars since %s are left out", symbol, (~is_valid).sum(), since)
        klines = klines.filter(pa.array(is_valid))
        price = klines["close"].to_numpy()
        last_price = stored_bars["close"].to_numpy()[-1:] if stored_bars.num_rows else np.array([np.nan])
        returns = price / np.concatenate([last_price, price])[:-1] - 1
        rows = klines.append_column("total_return", pa.array(returns, from_pandas=True))
        return rows.select(STORED_BAR_COLUMNS), rates


def _has_valid_values(klines: pa.Table) -> np.ndarray:
    """Boolean mask (t,), True for bars with finite positive prices and a finite volume of at least 0."""
    prices = np.stack([klines[name].to_numpy() for name in OHLC])
    volume = klines["volume"].to_numpy()
    return (np.isfinite(prices) & (prices > 0)).all(axis=0) & np.isfinite(volume) & (volume >= 0)


def _merge_funding(stored: pa.Table, fetched: list[pa.Table]) -> pa.Table:
    """Funding settlements (symbol, ts, rate) sorted by symbol and ts.

    If a settlement is both stored and fetched, the stored row is used.
    """
    tables = pa.concat_tables([stored, *(rates.select(stored.column_names) for rates in fetched if rates.num_rows)])
    frame = tables.to_pandas().drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"], kind="stable")
    return pa.Table.from_pandas(frame, stored.schema, preserve_index=False)
