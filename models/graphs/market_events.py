"""Events of a market: trades, books, bars, funding, open interest and liquidations (TGN-06, 07, 16 to 27).

Every builder receives ``symbols`` and ``rows``, columns by name: arrays (e,) ordered by ``t``, the time at which a row
became known, in microseconds UTC. It returns Events between ``market_nodes(symbols)`` with the features FEATURES, 0
where a kind has no such feature. Features that depend on events of other kinds (see ``with_clocks``) stay 0 until the
events of all kinds are joined.
Glossary: e events · n symbols · f features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from models.graphs.events import EVENT_KINDS, Events
from models.graphs.snapshot import GraphError

EventColumns = Mapping[str, np.ndarray]

NODE_TYPES = ("asset:{}", "trade:{}", "liquidation:{}", "funding:{}", "book:{}:bid", "book:{}:ask")
EXTERNAL = ("external:market", "external:open_interest")
ASSET, TRADE, LIQUIDATION, FUNDING, BID, ASK = range(len(NODE_TYPES))
FEATURES = (
    "return",  # log price over the asset's last event of the kind, percent
    "log_size",  # log(1 + size in units of the asset)
    "side",  # +1 the taker bought, −1 sold
    "log_value",  # log(1 + size · price)
    "impact",  # side · return: above 0 where the price moved in the direction of the trade
    "spread",  # ask over bid, hundredths of a percent
    "imbalance",  # (bid depth − ask depth) ÷ their sum
    "log_depth",  # log(1 + both depths)
    "range",  # log(high ÷ low), percent: a bar's volatility
    "trend",  # log(close ÷ open), percent
    "volume_rank",  # share of the asset's bars so far with less volume
    "rate",  # funding rate of a settlement, hundredths of a percent
    "predicted_rate",  # the rate predicted for the next settlement, hundredths of a percent
    "countdown",  # hours to the next settlement ÷ 8
    "log_open_interest",
    "open_interest_change",  # log change since the asset's last, percent
    "long_short",  # log(long accounts ÷ short accounts); 0 from a stream, whose tickers do not contain it
    "weight",  # of a graph's edge, for the kinds correlation and flow; no builder makes them, fitted models read it
    "log_since_trade",  # log(1 + seconds); this and the following are computed by with_clocks
    "log_trade_rate",  # log(1 + trades in the last minute)
    "log_since_funding",
    "log_since_large_trade",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
)
COLUMN = {name: i for i, name in enumerate(FEATURES)}
SECOND_US = 1_000_000
MINUTE_US = 60_000_000
HOUR_US = 3_600_000_000
DAY_US = 86_400_000_000
THURSDAY = 3  # the weekday of 1970-01-01, where Monday is 0


def market_nodes(symbols: Sequence[str]) -> tuple[str, ...]:
    """All nodes of a market: node type k of symbol i is at position k · n + i, the external nodes are last."""
    return (*(kind.format(symbol) for kind in NODE_TYPES for symbol in symbols), *EXTERNAL)


def trade_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """Events trade → asset. Rows: t, symbol, price, size, side (+1 the taker bought, −1 sold)."""
    asset = _asset_positions(symbols, rows)
    return _events(symbols, "trade", rows["t"], (TRADE * len(symbols) + asset, asset), _trade_features(rows))


def liquidation_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """Events liquidation → asset. Rows as for ``trade_events``. A network passes them on to correlated assets by its
    own graph."""
    asset = _asset_positions(symbols, rows)
    ends = (LIQUIDATION * len(symbols) + asset, asset)
    return _events(symbols, "liquidation", rows["t"], ends, _trade_features(rows))


def book_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """Events from the heavier side of the book → asset. Rows: t, symbol, bid, ask (prices), bid_size, ask_size
    (depths)."""
    asset = _asset_positions(symbols, rows)
    depth = rows["bid_size"] + rows["ask_size"]
    imbalance = (rows["bid_size"] - rows["ask_size"]) / np.where(depth > 0, depth, 1.0)
    features = {
        "return": _log_change({**rows, "mid": (rows["bid"] + rows["ask"]) / 2}, "mid"),
        "spread": 1e4 * (rows["ask"] / rows["bid"] - 1),
        "imbalance": imbalance,
        "log_depth": np.log1p(depth),
    }
    side = np.where(imbalance >= 0, BID, ASK)
    return _events(symbols, "book", rows["t"], (side * len(symbols) + asset, asset), features)


def funding_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """Events funding → asset. Rows: t, symbol, rate, and optionally next_t, the time of the settlement that the rate
    belongs to.

    Where next_t is after t, as in a ticker, the rate is the predicted one of that settlement; otherwise it is the
    settled one.
    """
    asset = _asset_positions(symbols, rows)
    t = rows["t"]
    next_t = rows.get("next_t", t)
    features = {
        "rate": np.where(next_t > t, 0.0, 1e4 * rows["rate"]),
        "predicted_rate": np.where(next_t > t, 1e4 * rows["rate"], 0.0),
        "countdown": (next_t - t) / (8 * HOUR_US),
    }
    return _events(symbols, "funding", t, (FUNDING * len(symbols) + asset, asset), features)


def open_interest_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """Events open interest → asset. Rows: t, symbol, open_interest, and optionally long_short (long ÷ short
    accounts)."""
    asset = _asset_positions(symbols, rows)
    features = {
        "log_open_interest": np.log1p(rows["open_interest"]),
        "open_interest_change": _log_change(rows, "open_interest"),
        "long_short": np.log(rows.get("long_short", np.ones(len(asset)))),
    }
    source = np.full(len(asset), len(NODE_TYPES) * len(symbols) + EXTERNAL.index("external:open_interest"))
    return _events(symbols, "open_interest", rows["t"], (source, asset), features)


def with_clocks(events: Events, large_value: float = 100_000.0) -> Events:
    """The same events with the features that count time: how long ago the event's asset (its dst) had its last trade,
    its last funding settlement and its last trade of ``large_value`` or more, and how many trades the asset had in the
    minute before.

    Only events at earlier times count, so simultaneous events do not affect each other. Where an asset has no earlier
    one, the time counts from the first event of all.
    """
    is_trade, is_funding = (events.kind == EVENT_KINDS.index(name) for name in ("trade", "funding"))
    is_large = is_trade & (events.features[:, COLUMN["log_value"]] >= np.log1p(large_value))
    features = events.features.copy()
    features[:, COLUMN["log_since_trade"]] = _log_since(events, is_trade)
    features[:, COLUMN["log_since_funding"]] = _log_since(events, is_funding)
    features[:, COLUMN["log_since_large_trade"]] = _log_since(events, is_large)
    recent = _count_before(events, is_trade, events.t) - _count_before(events, is_trade, events.t - MINUTE_US)
    features[:, COLUMN["log_trade_rate"]] = np.log1p(recent)
    return replace(events, features=features)


def _trade_features(rows: EventColumns) -> EventColumns:
    """The features of trades or liquidations, by name."""
    move = _log_change(rows, "price")
    return {
        "return": move,
        "log_size": np.log1p(rows["size"]),
        "side": rows["side"],
        "log_value": np.log1p(rows["size"] * rows["price"]),
        "impact": rows["side"] * move,
    }


def _events(
    symbols: Sequence[str], kind: str, t: np.ndarray, ends: tuple[np.ndarray, np.ndarray], columns: EventColumns
) -> Events:
    """Events of one kind from src to dst, the two arrays of ``ends``, with the features ``columns`` and those of the
    calendar."""
    features = np.zeros((len(t), len(FEATURES)), dtype=np.float32)
    day = 2 * np.pi * (t % DAY_US) / DAY_US
    week = 2 * np.pi * ((t // DAY_US + THURSDAY) % 7) / 7
    calendar = {"hour_sin": np.sin(day), "hour_cos": np.cos(day)}
    calendar |= {"weekday_sin": np.sin(week), "weekday_cos": np.cos(week)}
    for name, values in {**columns, **calendar}.items():
        features[:, COLUMN[name]] = values
    codes = np.full(len(t), EVENT_KINDS.index(kind), dtype=np.int8)
    src, dst = (end.astype(np.int64) for end in ends)
    return Events(src, dst, t.astype(np.int64), codes, features, market_nodes(symbols))


def _asset_positions(symbols: Sequence[str], rows: EventColumns) -> np.ndarray:
    """Position (e,) of each row's symbol in ``symbols``. Raises GraphError for a symbol that is not among them."""
    names, inverse = np.unique(np.asarray(rows["symbol"], dtype=str), return_inverse=True)
    position = {symbol: i for i, symbol in enumerate(symbols)}
    unknown = [name for name in names.tolist() if name not in position]
    if unknown:
        raise GraphError(f"rows of {', '.join(unknown)}, which is not among the {len(symbols)} symbols; add or drop it")
    return np.array([position[name] for name in names.tolist()], dtype=np.int64)[inverse]


def _log_change(rows: EventColumns, column: str) -> np.ndarray:
    """Log change (e,) of a column since the same symbol's row before, in percent; 0 for a symbol's first row."""
    _, asset = np.unique(np.asarray(rows["symbol"], dtype=str), return_inverse=True)
    order = np.argsort(asset, kind="stable")
    logs = np.log(rows[column])[order]
    has_previous = np.diff(asset[order], prepend=-1) == 0
    change = np.empty(len(order))
    change[order] = np.where(has_previous, 100 * np.diff(logs, prepend=0.0), 0.0)
    return change


def _count_before(events: Events, mask: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How many events of ``mask`` (e,) each event's dst had before time ``t`` (e,), plus a constant of the dst."""
    return np.searchsorted(np.sort(_sort_keys(events, events.t)[mask]), _sort_keys(events, t))


def _log_since(events: Events, mask: np.ndarray) -> np.ndarray:
    """log(1 + seconds) (e,) since the last event of ``mask`` (e,) that each event's dst had before it."""
    keys = _sort_keys(events, events.t)
    start_keys = _sort_keys(events, np.full_like(events.t, events.t[0]) if len(events) else events.t)
    masked_keys = np.concatenate([[-1], np.sort(keys[mask])])
    last = masked_keys[np.searchsorted(masked_keys, keys) - 1]
    return np.log1p((keys - np.maximum(last, start_keys)) / SECOND_US)


def _sort_keys(events: Events, t: np.ndarray) -> np.ndarray:
    """One integer (e,) for each event that sorts by its dst, then by the time ``t`` (e,), which is at the earliest a
    minute before the first event."""
    if not len(events):
        return events.dst
    first = int(events.t[0])
    last = int(events.t[-1])
    return events.dst * (last - first + 2 * MINUTE_US) + (t - first) + MINUTE_US
