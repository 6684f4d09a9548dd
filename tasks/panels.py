"""The panels, events and graphs that a night computes on, read from the warehouse up to the night's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

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
from models.sessions import INTERVALS, bar_closes, bar_opens
from tasks.errors import NoBarsError
from tasks.event_rows import readable_rows
from tasks.forecasts import utc_datetime
from tasks.night import Night
from warehouse.tables import read_query

PERPETUALS = "24/7"  # the calendar of the markets that settle funding
LARGE_VALUE = 100_000.0  # least value of a trade that a forecast reads; an hour has too many smaller ones
LEAST_VALUE = {"1d": LARGE_VALUE, "1h": LARGE_VALUE, "1s": 0.0}  # by interval; with 0, books are read too


def bar_grid(night: Night, last: np.datetime64 | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Opens and closes, (t,) each, of each bar a full market prints from the universe's start to the night's clock.

    Bars still open at the clock are left out, and those that opened after ``last``, if given. Raises NoBarsError when
    no bar remains.
    """
    universe = night.universe
    day_after = night.as_of + timedelta(days=1)
    opens = bar_opens(universe.calendar, universe.interval, universe.history_start.date(), day_after)
    opens = opens[opens >= instant(universe.history_start)]
    closes = bar_closes(universe.calendar, universe.interval, opens)
    in_grid = closes <= instant(night.clock)
    if last is not None:
        in_grid &= opens <= last
    if not in_grid.any():
        raise NoBarsError(
            f"{universe.name} has no closed bar up to {night.as_of if last is None else last}: its history starts on "
            f"{universe.history_start}; choose a later night"
        )
    return opens[in_grid], closes[in_grid]


def load_bars(night: Night, last: np.datetime64 | None = None) -> Panel:
    """BAR_COLUMNS of the universe's members on the whole calendar grid, up to the bar that opened at ``last`` if given.

    ``funding_rate`` is the rate last settled at or before a bar's close: 0 for stocks, NaN before the first settlement.
    Raises NoBarsError when the warehouse has no bar of them, or one where the calendar has none.
    """
    return _load_bars(night, night.universe.symbols, last)


def load_benchmark(night: Night, last: np.datetime64 | None = None) -> Panel:
    """The bars of the universe's benchmark: a panel of one asset on the grid of ``load_bars``."""
    return _load_bars(night, (night.universe.benchmark,), last)


def load_funding(night: Night, symbols: Sequence[str] | None = None) -> pa.Table:
    """Funding settled up to the night's clock, of the members or of ``symbols``: symbol, ts, rate, by symbol and ts.

    A rate is the fraction of a position's value that longs pay to shorts.
    """
    symbol_list = list(night.universe.symbols if symbols is None else symbols)
    end = night.clock + timedelta(microseconds=1)
    return night.warehouse.query("funding_before", **night.slice, symbols=symbol_list, end=end)


def load_features(night: Night, last: np.datetime64 | None = None) -> Panel:
    """The stored FEATURES of the members on the grid of ``load_bars``, masked where no row is stored."""
    opens, _ = bar_grid(night, last)
    symbols = night.universe.symbols
    return Panel.from_table(rows_between(night, "features_between", symbols, opens), FEATURES, symbols, opens)


def load_snapshots(
    night: Night, graph: str, last: np.datetime64 | None = None, first: np.datetime64 | None = None
) -> list[Snapshot]:
    """The stored snapshots of one graph from ``first`` to ``last``, by default all up to the night's last bar.

    Oldest first; nodes are the members.
    """
    opens, _ = bar_grid(night, last)
    start = utc_datetime(opens[0] if first is None else first)
    span = {**night.slice, "graph": graph, "start": start, "end": just_after(opens[-1])}
    with night.warehouse.read() as con:
        rows = read_query(con, "snapshots_before", **span)
        edges = read_query(con, "edges_before", **span)
    nodes = night.universe.symbols
    position = {symbol: k for k, symbol in enumerate(nodes)}
    src, dst = (np.array([position[s] for s in edges[side].to_pylist()], dtype=np.int64) for side in ("src", "dst"))
    weight = edges["weight"].to_numpy()
    directed = rows["directed"].to_pylist()
    as_of, window_start, edge_as_of = (instants(c) for c in (rows["as_of"], rows["window_start"], edges["as_of"]))
    begins, ends = (np.searchsorted(edge_as_of, as_of, side=side) for side in ("left", "right"))
    return [
        Snapshot(graph, as_of[k], window_start[k], src[i:j], dst[i:j], weight[i:j], nodes, directed[k])
        for k, (i, j) in enumerate(zip(begins, ends, strict=True))
    ]


def load_trade_bars(night: Night, last: np.datetime64 | None = None) -> Panel:
    """TRADE_COLUMNS of all trades received up to the night's clock, on the grid of ``load_bars``.

    Masked where nothing was traded.
    """
    opens, closes = bar_grid(night, last)
    span = {"start": just_after(opens[0]), "end": just_after(closes[-1])}  # a bar's trades come after its open
    bar_us = int(INTERVALS[night.universe.interval].astype(np.int64))
    rows = night.warehouse.query("trade_bars_between", **_received_events(night), **span, bar_us=bar_us)
    return Panel.from_table(rows, TRADE_COLUMNS, night.universe.symbols, opens)


def windowed_panels(night: Night, rules: Mapping[str, GraphRule], bars: Panel) -> dict[str, Panel]:
    """The panel that the windows of each graph are cut from: ``bars``, or the trades of the same bars."""
    traded = {name for name, rule in rules.items() if isinstance(rule, TradeRule)}
    trades = load_trade_bars(night, bars.ts[-1]) if traded else bars
    return {name: trades if name in traded else bars for name in rules}


def load_bar_events(night: Night, last: np.datetime64 | None = None) -> BarEvents | None:
    """The events between the bars of ``load_bars``, None without any.

    They are the settlements of funding, and the rows of the view ``events`` received up to the night's clock. Trades
    under the interval's LEAST_VALUE are left out, and books too unless that is 0.

    An event received after its bar was forecast acts like a restated bar: it is read from then on, and the forecasts
    from that bar on are made again, see ``first_unseen_bar``.
    """
    opens, closes = bar_grid(night, last)
    symbols = night.universe.symbols
    events = event_rows_for_bars(night, opens[0], just_after(closes[-1]))
    rates = settlement_rows(load_funding(night), symbols)
    rows = merge_by_time(events, rates[rates["t"] <= closes[-1].astype(np.int64)])
    return BarEvents.from_events(MarketEvents(symbols)(rows), opens, closes) if len(rows) else None


def event_rows_for_bars(night: Night, start: np.datetime64, end: datetime) -> np.ndarray:
    """The rows of the view ``events`` in [start, end) that a night's networks read: rows of MARKET_ROW, by time."""
    table = night.warehouse.query("bar_events_between", **_bar_events(night), start=utc_datetime(start), end=end)
    return readable_rows(table, night.universe.symbols)


def settlement_rows(settled: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Settlements of funding (symbol, ts, rate), by symbol and ts, as rows of MARKET_ROW."""
    rates = np.zeros(settled.num_rows, MARKET_ROW)
    rates["t"] = rates["next_t"] = instants(settled["ts"]).astype(np.int64)
    rates["kind"] = EVENT_KINDS.index("funding")
    rates["rate"] = settled["rate"].to_numpy()
    rates["symbol"] = [symbols.index(symbol) for symbol in settled["symbol"].to_pylist()]
    return rates


def merge_by_time(rows: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Rows of both, by time and simultaneous ones by key: the order in which a stream processes them too."""
    both = np.concatenate([rows, rates])
    return both[np.lexsort((both["key"], both["t"]))]


def first_unseen_bar(night: Night, events: BarEvents) -> int:
    """Position of the first bar with an event that no published night has read; the number of bars without one."""
    unseen = night.warehouse.query("first_unseen_event", **_bar_events(night), universe=night.universe.name)["ts"]
    first = instants(unseen)[0]
    return len(events.opens) if np.isnat(first) else int(np.searchsorted(events.closes[1:], first))


def _received_events(night: Night) -> dict[str, object]:
    """Query parameters for the rows of the view ``events`` that were received up to the night's clock."""
    universe = night.universe
    keys = {"source": night.source, "venue": universe.provider, "symbols": list(universe.symbols)}
    return {**keys, "received": night.clock}


def _bar_events(night: Night) -> dict[str, object]:
    """Query parameters for those of ``_received_events`` that the night's networks read."""
    return {**_received_events(night), "least_value": LEAST_VALUE[night.universe.interval]}


def _load_bars(night: Night, symbols: tuple[str, ...], last: np.datetime64 | None) -> Panel:
    opens, closes = bar_grid(night, last)
    rows = rows_between(night, "bars_between", symbols, opens)
    if not rows.num_rows:
        raise NoBarsError(
            f"no {night.source} bar of {night.universe.name} ({len(symbols)} symbols) from {opens[0]} to {opens[-1]} "
            f"in {night.warehouse.path}; ingest and validate the night first"
        )
    off_grid = ~np.isin(instants(rows["ts"]), opens)
    if off_grid.any():
        first = int(off_grid.argmax())
        raise NoBarsError(
            f"{rows['symbol'][first]} has a bar at {rows['ts'][first]}, where {night.universe.calendar} has none, and "
            f"{off_grid.sum() - 1} more such bars are stored; validate the night again, it quarantines them"
        )
    prices = Panel.from_table(rows, BAR_COLUMNS[:-1], symbols, opens)
    settled = load_funding(night, symbols) if night.universe.calendar == PERPETUALS else None
    return with_funding(prices, settled, closes)


def with_funding(prices: Panel, settled: pa.Table | None, closes: np.ndarray) -> Panel:
    """``prices`` with the last of BAR_COLUMNS added: the funding rate last settled at or before each close.

    ``settled`` has columns symbol, ts and rate; without it the rate is 0.
    """
    funding = np.where(prices.mask, _funding_at(settled, prices.symbols, closes), np.nan)
    values = np.concatenate((prices.values, funding[:, :, None]), axis=2)
    return Panel(prices.ts, prices.symbols, BAR_COLUMNS, values, prices.mask)


def _funding_at(settled: pa.Table | None, symbols: tuple[str, ...], closes: np.ndarray) -> np.ndarray:
    """Funding rate last settled at or before each close, (t, n); NaN before the first settlement."""
    rates = np.zeros((len(closes), len(symbols)))
    if settled is None:
        return rates
    settled_symbol = np.array(settled["symbol"].to_pylist())
    ts = instants(settled["ts"])
    rate = settled["rate"].to_numpy()
    for j, symbol in enumerate(symbols):
        rows = settled_symbol == symbol
        last_rate = np.concatenate(([np.nan], rate[rows]))
        rates[:, j] = last_rate[np.searchsorted(ts[rows], closes, side="right")]
    return rates


def rows_between(night: Night, query: str, symbols: tuple[str, ...], opens: np.ndarray) -> pa.Table:
    """The rows of ``query`` for ``symbols``, from the first to the last of ``opens``."""
    return night.warehouse.query(
        query,
        **night.slice,
        interval=night.universe.interval,
        symbols=list(symbols),
        start=opens[0].astype(datetime).replace(tzinfo=UTC),
        end=just_after(opens[-1]),
    )


def instant(moment: datetime) -> np.datetime64:
    """An aware datetime as datetime64[us] in UTC."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def just_after(ts: np.datetime64) -> datetime:
    """The first instant after ``ts``, as an aware datetime."""
    return ts.astype(datetime).replace(tzinfo=UTC) + timedelta(microseconds=1)


def instants(column: pa.ChunkedArray) -> np.ndarray:
    """A timestamp column as datetime64[us]; NaT where null."""
    return column.cast(pa.timestamp("us", tz="UTC")).to_numpy().astype("datetime64[us]")
