"""What a night computes on, read from the warehouse: bars, funding, features and graphs up to its clock."""

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
from tasks.events import readable_rows
from tasks.forecasts import aware
from tasks.night import Night
from warehouse.tables import read_query

PERPETUALS = "24/7"  # the calendar of the markets that settle funding
LARGE_VALUE = 100_000.0  # of a trade that a bar's forecast reads; an hour has too many smaller ones
LEAST_VALUE = {"1d": LARGE_VALUE, "1h": LARGE_VALUE, "1s": 0.0}  # by interval; where it is 0, books are read too


def bar_grid(night: Night, last: np.datetime64 | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Opens and closes, (t,) each, of each bar a full market prints from the universe's start to the night's clock.

    Bars still open at the clock are left out, and those that opened after ``last``, if given. Raises NoBarsError when
    none is left.
    """
    universe, day_after = night.universe, night.as_of + timedelta(days=1)
    opens = bar_opens(universe.calendar, universe.interval, universe.history_start.date(), day_after)
    opens = opens[opens >= instant(universe.history_start)]
    closes = bar_closes(universe.calendar, universe.interval, opens)
    due = closes <= instant(night.clock)
    if last is not None:
        due &= opens <= last
    if not due.any():
        raise NoBarsError(
            f"{universe.name} has no closed bar up to {night.as_of if last is None else last}: its history starts on "
            f"{universe.history_start}; choose a later night"
        )
    return opens[due], closes[due]


def load_bars(night: Night, last: np.datetime64 | None = None) -> Panel:
    """BAR_COLUMNS of the universe's members on the whole calendar grid, up to the bar that opened at ``last`` if given.

    ``funding_rate`` is the rate last settled at or before a bar's close: 0 for stocks, NaN before the first known.
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
    wanted = list(night.universe.symbols if symbols is None else symbols)
    end = night.clock + timedelta(microseconds=1)
    return night.warehouse.query("funding_before", **night.slice, symbols=wanted, end=end)


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
    start = aware(opens[0] if first is None else first)
    span = {**night.slice, "graph": graph, "start": start, "end": just_after(opens[-1])}
    with night.warehouse.read() as con:
        found, edges = read_query(con, "snapshots_before", **span), read_query(con, "edges_before", **span)
    nodes = night.universe.symbols
    position = {symbol: k for k, symbol in enumerate(nodes)}
    src, dst = (np.array([position[s] for s in edges[side].to_pylist()], dtype=np.int64) for side in ("src", "dst"))
    weight, directed = edges["weight"].to_numpy(), found["directed"].to_pylist()
    as_of, window_start, edge_as_of = (instants(c) for c in (found["as_of"], found["window_start"], edges["as_of"]))
    begins, ends = (np.searchsorted(edge_as_of, as_of, side=side) for side in ("left", "right"))
    return [
        Snapshot(graph, as_of[k], window_start[k], src[i:j], dst[i:j], weight[i:j], nodes, directed[k])
        for k, (i, j) in enumerate(zip(begins, ends, strict=True))
    ]


def load_trade_bars(night: Night, last: np.datetime64 | None = None) -> Panel:
    """TRADE_COLUMNS of all trades that the warehouse had at the night's clock, on the grid of ``load_bars``.

    Masked where nothing was traded.
    """
    opens, closes = bar_grid(night, last)
    span = {"start": just_after(opens[0]), "end": just_after(closes[-1])}  # as a bar has them: after its open
    bar_us = int(INTERVALS[night.universe.interval].astype(np.int64))
    rows = night.warehouse.query("trade_bars_between", **_had(night), **span, bar_us=bar_us)
    return Panel.from_table(rows, TRADE_COLUMNS, night.universe.symbols, opens)


def windowed_panels(night: Night, rules: Mapping[str, GraphRule], bars: Panel) -> dict[str, Panel]:
    """What the windows of each graph are cut from: ``bars``, or the trades of the same bars."""
    traded = {name for name, rule in rules.items() if isinstance(rule, TradeRule)}
    trades = load_trade_bars(night, bars.ts[-1]) if traded else bars
    return {name: trades if name in traded else bars for name in rules}


def load_bar_events(night: Night, last: np.datetime64 | None = None) -> BarEvents | None:
    """What happened between the bars of ``load_bars``: settlements of funding, and of the view ``events`` all that the
    warehouse had at the night's clock but trades under the interval's LEAST_VALUE, and books unless that is 0.

    None where nothing did.

    An event that came in after its bar was forecast counts as a restated bar does: it is read from then on, and the
    forecasts from that bar on are due again, see ``first_unseen_bar``.
    """
    opens, closes = bar_grid(night, last)
    symbols, until = night.universe.symbols, closes[-1].astype(np.int64)
    found, rates = heard_rows(night, opens[0], just_after(closes[-1])), settlements(load_funding(night), symbols)
    rows = by_time(found, rates[rates["t"] <= until])
    return BarEvents.of(MarketEvents(symbols)(rows), opens, closes) if len(rows) else None


def heard_rows(night: Night, start: np.datetime64, end: datetime) -> np.ndarray:
    """What a night reads of the view ``events`` in [start, end): rows of MARKET_ROW, by time."""
    found = night.warehouse.query("bar_events_between", **_heard(night), start=aware(start), end=end)
    return readable_rows(found, night.universe.symbols)


def settlements(settled: pa.Table, symbols: Sequence[str]) -> np.ndarray:
    """Settlements of funding (symbol, ts, rate), by symbol and ts, as rows of MARKET_ROW."""
    rates = np.zeros(settled.num_rows, MARKET_ROW)
    rates["t"] = rates["next_t"] = instants(settled["ts"]).astype(np.int64)
    rates["kind"], rates["rate"] = EVENT_KINDS.index("funding"), settled["rate"].to_numpy()
    rates["symbol"] = [symbols.index(symbol) for symbol in settled["symbol"].to_pylist()]
    return rates


def by_time(rows: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Both by time and simultaneous ones by key, as a stream hands them over: the order in which a bar hears them."""
    both = np.concatenate([rows, rates])
    return both[np.lexsort((both["key"], both["t"]))]


def first_unseen_bar(night: Night, events: BarEvents) -> int:
    """Position of the first bar with an event that no published night has seen, their number for none."""
    found = night.warehouse.query("first_unseen_event", **_heard(night), universe=night.universe.name)["ts"]
    first = instants(found)[0]
    return len(events.opens) if np.isnat(first) else int(np.searchsorted(events.closes[1:], first))


def _had(night: Night) -> dict[str, object]:
    """Which rows of the view ``events`` there were for a night."""
    universe = night.universe
    of = {"source": night.source, "venue": universe.provider, "symbols": list(universe.symbols)}
    return {**of, "received": night.clock}


def _heard(night: Night) -> dict[str, object]:
    """Which of them its networks read."""
    return {**_had(night), "least_value": LEAST_VALUE[night.universe.interval]}


def _load_bars(night: Night, symbols: tuple[str, ...], last: np.datetime64 | None) -> Panel:
    opens, closes = bar_grid(night, last)
    rows = rows_between(night, "bars_between", symbols, opens)
    if not rows.num_rows:
        raise NoBarsError(
            f"no {night.source} bar of {night.universe.name} ({len(symbols)} symbols) from {opens[0]} to {opens[-1]} "
            f"in {night.warehouse.path}; ingest and validate the night first"
        )
    off = ~np.isin(instants(rows["ts"]), opens)
    if off.any():
        symbol, ts = rows["symbol"][int(off.argmax())], rows["ts"][int(off.argmax())]
        raise NoBarsError(
            f"{symbol} has a bar at {ts}, where {night.universe.calendar} has none, and {off.sum() - 1} more such bars "
            "are stored; validate the night again, it quarantines them"
        )
    prices = Panel.from_table(rows, BAR_COLUMNS[:-1], symbols, opens)
    settled = load_funding(night, symbols) if night.universe.calendar == PERPETUALS else None
    return with_funding(prices, settled, closes)


def with_funding(prices: Panel, settled: pa.Table | None, closes: np.ndarray) -> Panel:
    """BAR_COLUMNS of the bars ``prices``, which lack the last of them: the rate last settled (symbol, ts, rate) at or
    before each close; 0 without ``settled``."""
    funding = np.where(prices.mask, _funding_at(settled, prices.symbols, closes), np.nan)
    values = np.concatenate((prices.values, funding[:, :, None]), axis=2)
    return Panel(prices.ts, prices.symbols, BAR_COLUMNS, values, prices.mask)


def _funding_at(settled: pa.Table | None, symbols: tuple[str, ...], closes: np.ndarray) -> np.ndarray:
    """Funding rate last settled at or before each close, (t, n); NaN before the first known one."""
    rates = np.zeros((len(closes), len(symbols)))
    if settled is None:
        return rates
    of, ts, rate = np.array(settled["symbol"].to_pylist()), instants(settled["ts"]), settled["rate"].to_numpy()
    for j, symbol in enumerate(symbols):
        own = of == symbol
        known = np.concatenate(([np.nan], rate[own]))
        rates[:, j] = known[np.searchsorted(ts[own], closes, side="right")]
    return rates


def rows_between(night: Night, query: str, symbols: tuple[str, ...], opens: np.ndarray) -> pa.Table:
    """What ``query`` has of ``symbols`` from the first to the last of ``opens``."""
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
