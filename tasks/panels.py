"""The panels, events and graphs that a night computes on, read from the warehouse up to the night's clock.

A night is the run for one as-of date. The grid is the series of all bars of the universe's calendar, see ``bar_grid``.
Glossary: t bars of the grid, n assets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from models.features.indicators import BAR_COLUMNS, FEATURES
from models.graphs.context import BarEvents
from models.graphs.events import EVENT_KINDS
from models.graphs.liquidity import TRADE_COLUMNS, TradeRule
from models.graphs.market_stream import MARKET_ROW, MarketEvents
from models.graphs.snapshot import Snapshot
from models.graphs.windowed import GraphRule
from models.panel import Panel
from models.sessions import BAR_LENGTHS, bar_closes, bar_opens
from tasks.errors import NoBarsError
from tasks.event_rows import readable_rows
from tasks.forecasts import utc_datetime
from tasks.night import Night
from warehouse.tables import read_query

PERPETUAL_CALENDAR = "24/7"  # the calendar of the markets that settle funding
# price × size in the quote currency; bars of an hour or more have too many smaller trades to read them all
LARGE_TRADE_VALUE = 100_000.0
MIN_TRADE_VALUE = {  # by interval: the lowest value of a trade that networks read; book events are read only with 0
    "1d": LARGE_TRADE_VALUE,
    "1h": LARGE_TRADE_VALUE,
    "1s": 0.0,
}


class BarGrid(NamedTuple):
    """Open and close times of successive bars, (t,) each, ascending datetime64[us] in UTC."""

    open_times: np.ndarray
    close_times: np.ndarray


def bar_grid(night: Night, last: np.datetime64 | None = None) -> BarGrid:
    """All bars of the calendar from the universe's history start to the night's clock.

    A bar that closes after the clock is left out; with ``last``, so are bars that open after ``last``. Raises
    NoBarsError when no bar remains.
    """
    universe = night.universe
    day_after = night.as_of + timedelta(days=1)
    open_times = bar_opens(universe.calendar, universe.interval, universe.history_start.date(), day_after)
    open_times = open_times[open_times >= to_datetime64(universe.history_start)]
    close_times = bar_closes(universe.calendar, universe.interval, open_times)
    is_in_grid = close_times <= to_datetime64(night.clock)
    if last is not None:
        is_in_grid &= open_times <= last
    if not is_in_grid.any():
        raise NoBarsError(
            f"{universe.name} has no closed bar up to {night.as_of if last is None else last}: its history starts on "
            f"{universe.history_start}; choose a later night"
        )
    return BarGrid(open_times[is_in_grid], close_times[is_in_grid])


def load_bars(night: Night, last: np.datetime64 | None = None) -> Panel:
    """BAR_COLUMNS of the universe's members on the grid of ``bar_grid(night, last)``; mask False where none is stored.

    ``funding_rate`` is the rate last settled at or before a bar's close: 0 for stocks, NaN before the first settlement.
    Raises NoBarsError when the warehouse has no bar of the members, or has a bar at a time where the calendar has none.
    """
    return _load_bars_of(night, night.universe.symbols, last)


def load_benchmark(night: Night, last: np.datetime64 | None = None) -> Panel:
    """The bars of the universe's benchmark: a panel of one asset, otherwise like ``load_bars``."""
    return _load_bars_of(night, (night.universe.benchmark,), last)


def load_funding(night: Night, symbols: Sequence[str] | None = None) -> pa.Table:
    """Funding settled up to and including the night's clock, of ``symbols`` (default: the members).

    The columns are symbol, ts and rate; the rows are ordered by symbol and ts. A rate is the fraction of a position's
    value that longs pay to shorts.
    """
    if symbols is None:
        symbols = night.universe.symbols
    end = night.clock + timedelta(microseconds=1)
    return night.warehouse.query("funding_before", **night.slice, symbols=list(symbols), end=end)


def load_features(night: Night, last: np.datetime64 | None = None) -> Panel:
    """The stored FEATURES of the members on the grid of ``load_bars``; mask False where no row is stored."""
    open_times = bar_grid(night, last).open_times
    symbols = night.universe.symbols
    rows = rows_between(night, "features_between", symbols, open_times)
    return Panel.from_table(rows, FEATURES, symbols, open_times)


def load_snapshots(
    night: Night, graph: str, last: np.datetime64 | None = None, first: np.datetime64 | None = None
) -> list[Snapshot]:
    """The stored snapshots of one graph with ``first`` ≤ as_of ≤ ``last``, oldest first; their nodes are the members.

    The default is all snapshots from the first to the last bar of the night's grid.
    """
    open_times = bar_grid(night, last).open_times
    start = utc_datetime(open_times[0] if first is None else first)
    keys = {**night.slice, "graph": graph, "start": start, "end": just_after(open_times[-1])}
    with night.warehouse.read() as con:
        rows = read_query(con, "snapshots_before", **keys)
        edges = read_query(con, "edges_before", **keys)
    nodes = night.universe.symbols
    position = {symbol: k for k, symbol in enumerate(nodes)}
    src = np.array([position[symbol] for symbol in edges["src"].to_pylist()], dtype=np.int64)
    dst = np.array([position[symbol] for symbol in edges["dst"].to_pylist()], dtype=np.int64)
    weight = edges["weight"].to_numpy()
    is_directed = rows["directed"].to_pylist()
    as_of = column_to_datetime64(rows["as_of"])
    window_start = column_to_datetime64(rows["window_start"])
    edge_as_of = column_to_datetime64(edges["as_of"])
    edge_starts = np.searchsorted(edge_as_of, as_of, side="left")
    edge_stops = np.searchsorted(edge_as_of, as_of, side="right")
    return [
        Snapshot(graph, as_of[k], window_start[k], src[i:j], dst[i:j], weight[i:j], nodes, is_directed[k])
        for k, (i, j) in enumerate(zip(edge_starts, edge_stops, strict=True))
    ]


def load_trade_bars(night: Night, last: np.datetime64 | None = None) -> Panel:
    """TRADE_COLUMNS of all trades received up to the night's clock, on the grid of ``load_bars``.

    A bar has the trades in (open, close]. The mask is False where nothing was traded.
    """
    open_times, close_times = bar_grid(night, last)
    bounds = {"start": just_after(open_times[0]), "end": just_after(close_times[-1])}
    bar_us = int(BAR_LENGTHS[night.universe.interval].astype(np.int64))
    rows = night.warehouse.query("trade_bars_between", **_received_event_keys(night), **bounds, bar_us=bar_us)
    return Panel.from_table(rows, TRADE_COLUMNS, night.universe.symbols, open_times)


def windowed_panels(night: Night, rules: Mapping[str, GraphRule], bars: Panel) -> dict[str, Panel]:
    """By graph, the panel from which its windows are cut: ``bars``, or for a TradeRule the trades of the same bars."""
    trade_graphs = {name for name, rule in rules.items() if isinstance(rule, TradeRule)}
    trade_bars = load_trade_bars(night, bars.ts[-1]) if trade_graphs else bars
    return {name: trade_bars if name in trade_graphs else bars for name in rules}


def load_bar_events(night: Night, last: np.datetime64 | None = None) -> BarEvents | None:
    """The events of the bars of ``load_bars``; None if there is no event.

    The events are the settlements of funding, and the rows of the SQL view ``events`` received up to the night's clock.
    Trades below the interval's MIN_TRADE_VALUE are left out. Book events are left out unless that value is 0.

    An event received after its bar was forecast acts like a restated bar: later nights read it, and forecast the bars
    from its bar on again; see ``first_unseen_bar``.
    """
    open_times, close_times = bar_grid(night, last)
    symbols = night.universe.symbols
    events = event_rows_for_bars(night, open_times[0], just_after(close_times[-1]))
    settlements = settlement_rows(load_funding(night), symbols)
    settlements = settlements[settlements["t"] <= close_times[-1].astype(np.int64)]
    rows = merge_by_time(events, settlements)
    return BarEvents.from_events(MarketEvents(symbols)(rows), open_times, close_times) if len(rows) else None


def event_rows_for_bars(night: Night, start: np.datetime64, end: datetime) -> np.ndarray:
    """The rows of the SQL view ``events`` in [start, end) that a night's networks read: MARKET_ROW (e,), by time."""
    table = night.warehouse.query("bar_events_between", **_bar_event_keys(night), start=utc_datetime(start), end=end)
    return readable_rows(table, night.universe.symbols)


def settlement_rows(settlements: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Settlements of funding (columns symbol, ts, rate) as events, MARKET_ROW (e,), in the order of the table."""
    rows = np.zeros(settlements.num_rows, MARKET_ROW)
    ts_us = column_to_datetime64(settlements["ts"]).astype(np.int64)
    rows["t"] = ts_us
    rows["next_t"] = ts_us
    rows["kind"] = EVENT_KINDS.index("funding")
    rows["rate"] = settlements["rate"].to_numpy()
    rows["symbol"] = [symbols.index(symbol) for symbol in settlements["symbol"].to_pylist()]
    return rows


def merge_by_time(events: np.ndarray, settlements: np.ndarray) -> np.ndarray:
    """The rows of both arrays of MARKET_ROW, by time; simultaneous rows by key. The stream uses the same order."""
    rows = np.concatenate([events, settlements])
    return rows[np.lexsort((rows["key"], rows["t"]))]


def first_unseen_bar(night: Night, events: BarEvents) -> int:
    """Position of the first bar with an event that no published night has read; the number of bars if none has one."""
    unseen = night.warehouse.query("first_unseen_event", **_bar_event_keys(night), universe=night.universe.name)["ts"]
    first_ts = column_to_datetime64(unseen)[0]  # NaT without an unseen event
    return len(events.open_times) if np.isnat(first_ts) else int(np.searchsorted(events.close_times[1:], first_ts))


def _received_event_keys(night: Night) -> dict[str, object]:
    """Query parameters for the rows of the SQL view ``events`` that were received up to the night's clock."""
    universe = night.universe
    keys = {"source": night.source, "venue": universe.provider, "symbols": list(universe.symbols)}
    return {**keys, "received": night.clock}


def _bar_event_keys(night: Night) -> dict[str, object]:
    """Query parameters for the received events that the night's networks read: without trades below ``least_value``."""
    return {**_received_event_keys(night), "least_value": MIN_TRADE_VALUE[night.universe.interval]}


def _load_bars_of(night: Night, symbols: tuple[str, ...], last: np.datetime64 | None) -> Panel:
    """The panel of ``load_bars`` for ``symbols``."""
    open_times, close_times = bar_grid(night, last)
    rows = rows_between(night, "bars_between", symbols, open_times)
    if not rows.num_rows:
        raise NoBarsError(
            f"no {night.source} bar of {night.universe.name} ({len(symbols)} symbols) from {open_times[0]} to "
            f"{open_times[-1]} in {night.warehouse.path}; ingest and validate the night first"
        )
    is_off_grid = ~np.isin(column_to_datetime64(rows["ts"]), open_times)
    if is_off_grid.any():
        first = int(is_off_grid.argmax())
        raise NoBarsError(
            f"{rows['symbol'][first]} has a bar at {rows['ts'][first]}, where {night.universe.calendar} has none, and "
            f"{is_off_grid.sum() - 1} more such bars are stored; validate the night again, it quarantines them"
        )
    prices = Panel.from_table(rows, BAR_COLUMNS[:-1], symbols, open_times)
    settlements = load_funding(night, symbols) if night.universe.calendar == PERPETUAL_CALENDAR else None
    return with_funding(prices, settlements, close_times)


def with_funding(prices: Panel, settlements: pa.Table | None, close_times: np.ndarray) -> Panel:
    """``prices`` with ``funding_rate``, the last of BAR_COLUMNS: the rate last settled at or before each bar's close.

    ``prices`` has the other BAR_COLUMNS, and its bars close at ``close_times`` (t,). ``settlements`` has the columns
    symbol, ts and rate, oldest first for each symbol; with None, every rate is 0.
    """
    funding = np.where(prices.mask, _funding_at_closes(settlements, prices.symbols, close_times), np.nan)
    values = np.concatenate((prices.values, funding[:, :, None]), axis=2)
    return Panel(prices.ts, prices.symbols, BAR_COLUMNS, values, prices.mask)


def _funding_at_closes(settlements: pa.Table | None, symbols: tuple[str, ...], close_times: np.ndarray) -> np.ndarray:
    """Funding rate last settled at or before each close, (t, n); NaN before the first settlement."""
    rates = np.zeros((len(close_times), len(symbols)))
    if settlements is None:
        return rates
    settled_symbol = np.array(settlements["symbol"].to_pylist())
    settled_at = column_to_datetime64(settlements["ts"])
    rate = settlements["rate"].to_numpy()
    for j, symbol in enumerate(symbols):
        is_symbol = settled_symbol == symbol
        last_rate = np.concatenate(([np.nan], rate[is_symbol]))
        rates[:, j] = last_rate[np.searchsorted(settled_at[is_symbol], close_times, side="right")]
    return rates


def rows_between(night: Night, query: str, symbols: tuple[str, ...], open_times: np.ndarray) -> pa.Table:
    """The rows of ``query`` for ``symbols`` whose ts lies between the first and the last open time, both included."""
    return night.warehouse.query(
        query,
        **night.slice,
        interval=night.universe.interval,
        symbols=list(symbols),
        start=open_times[0].astype(datetime).replace(tzinfo=UTC),
        end=just_after(open_times[-1]),
    )


def to_datetime64(moment: datetime) -> np.datetime64:
    """An aware datetime as datetime64[us] in UTC."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def just_after(ts: np.datetime64) -> datetime:
    """One microsecond after ``ts``, as an aware datetime in UTC: the exclusive end of a query that includes ``ts``."""
    return ts.astype(datetime).replace(tzinfo=UTC) + timedelta(microseconds=1)


def column_to_datetime64(column: pa.ChunkedArray) -> np.ndarray:
    """A timestamp column as datetime64[us] in UTC; NaT where null."""
    return column.cast(pa.timestamp("us", tz="UTC")).to_numpy().astype("datetime64[us]")
