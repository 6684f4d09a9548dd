"""Events of a market: trades, order books, funding, open interest and liquidations (TGN-06, 07, 16 to 27).

Each kind of event has a builder. It receives ``symbols`` and ``columns``, a table as arrays (e,) by name, in ascending
order of ``t``: the time at which a row became known, in microseconds since 1970 in UTC. It returns Events between
``market_nodes(symbols)``, one per row, with the features FEATURES. A feature that the kind does not have is 0. The
features that count from events of other kinds are 0 too, until ``with_clock_features`` is applied to the joined events
of all kinds.
Glossary: e events · n symbols · f features. TGN ids: .github/sources.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from models.graphs.events import EVENT_KINDS, Events
from models.graphs.snapshot import GraphError

EventColumns = Mapping[str, np.ndarray]  # a table: its columns (e,) by name

NODE_TYPES = ("asset:{}", "trade:{}", "liquidation:{}", "funding:{}", "book:{}:bid", "book:{}:ask")
EXTERNAL_NODES = ("external:market", "external:open_interest")
ASSET, TRADE, LIQUIDATION, FUNDING, BID, ASK = range(len(NODE_TYPES))  # positions in NODE_TYPES
FEATURES = (
    "return",  # log change of the price (of a book: of the mid) since the asset's last event of the kind, percent
    "log_size",  # log(1 + size in units of the asset)
    "side",  # +1 the taker bought, −1 sold
    "log_value",  # log(1 + size · price)
    "impact",  # side · return: positive where the price moved in the direction of the trade
    "spread",  # ask ÷ bid − 1, basis points
    "imbalance",  # (bid depth − ask depth) ÷ their sum
    "log_depth",  # log(1 + bid depth + ask depth)
    "range",  # log(high ÷ low), percent: a bar's volatility
    "trend",  # log(close ÷ open), percent
    "volume_rank",  # share of the asset's bars so far with less volume
    "rate",  # settled funding rate, basis points
    "predicted_rate",  # funding rate predicted for the next settlement, basis points
    "countdown",  # hours to the next settlement ÷ 8
    "log_open_interest",  # log(1 + open interest in units of the asset)
    "open_interest_change",  # log change since the asset's last open-interest event, percent
    "long_short",  # log(long accounts ÷ short accounts); 0 in a live stream, whose tickers lack the counts
    "weight",  # of a graph's edge, for the kinds correlation and flow; networks fill it, the builders here do not
    "log_since_trade",  # log(1 + seconds since the asset's last trade); with_clock_features fills these four
    "log_trade_rate",  # log(1 + the asset's trades in the minute before)
    "log_since_funding",  # log(1 + seconds since the asset's last funding event)
    "log_since_large_trade",  # log(1 + seconds since the asset's last large trade)
    "hour_sin",  # time of day on a circle of 24 hours, UTC
    "hour_cos",
    "weekday_sin",  # weekday on a circle of 7 days, UTC
    "weekday_cos",
)
FEATURE_COLUMN = {name: i for i, name in enumerate(FEATURES)}  # position of a feature by its name
SECOND_US = 1_000_000
MINUTE_US = 60_000_000
HOUR_US = 3_600_000_000
DAY_US = 86_400_000_000
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def market_nodes(symbols: Sequence[str]) -> tuple[str, ...]:
    """The names of all nodes of a market: type k of symbol i is at position k · n + i, then come EXTERNAL_NODES."""
    return (*(node_type.format(symbol) for node_type in NODE_TYPES for symbol in symbols), *EXTERNAL_NODES)


def trade_events(symbols: Sequence[str], columns: EventColumns) -> Events:
    """Events trade → asset. Columns: t, symbol, price, size (units of the asset), side (+1 taker bought, −1 sold)."""
    asset = _asset_positions(symbols, columns)
    source = TRADE * len(symbols) + asset
    return _build_events(symbols, "trade", columns["t"], source, asset, _trade_features(columns))


def liquidation_events(symbols: Sequence[str], columns: EventColumns) -> Events:
    """Events liquidation → asset, with the columns of ``trade_events``.

    There are no events to correlated assets: a network reaches these through its own graph.
    """
    asset = _asset_positions(symbols, columns)
    source = LIQUIDATION * len(symbols) + asset
    return _build_events(symbols, "liquidation", columns["t"], source, asset, _trade_features(columns))


def book_events(symbols: Sequence[str], columns: EventColumns) -> Events:
    """Events book → asset, from the node of the deeper side; from the bid node if both sides are equal.

    Columns: t, symbol, bid and ask (prices), bid_size and ask_size (depths, units of the asset).
    """
    asset = _asset_positions(symbols, columns)
    depth = columns["bid_size"] + columns["ask_size"]
    imbalance = (columns["bid_size"] - columns["ask_size"]) / np.where(depth > 0, depth, 1.0)
    features = {
        "return": _log_change({**columns, "mid": (columns["bid"] + columns["ask"]) / 2}, "mid"),
        "spread": 1e4 * (columns["ask"] / columns["bid"] - 1),
        "imbalance": imbalance,
        "log_depth": np.log1p(depth),
    }
    source = np.where(imbalance >= 0, BID, ASK) * len(symbols) + asset
    return _build_events(symbols, "book", columns["t"], source, asset, features)


def funding_events(symbols: Sequence[str], columns: EventColumns) -> Events:
    """Events funding → asset. Columns: t, symbol, rate (a fraction) and optionally next_t (microseconds, as t).

    ``next_t`` is the time of the settlement at which the rate is paid. If it is after t, as in a ticker, the rate is a
    prediction and becomes the feature predicted_rate. Otherwise the rate has been settled and becomes the feature rate.
    """
    asset = _asset_positions(symbols, columns)
    t = columns["t"]
    next_t = columns.get("next_t", t)
    features = {
        "rate": np.where(next_t > t, 0.0, 1e4 * columns["rate"]),
        "predicted_rate": np.where(next_t > t, 1e4 * columns["rate"], 0.0),
        "countdown": (next_t - t) / (8 * HOUR_US),
    }
    return _build_events(symbols, "funding", t, FUNDING * len(symbols) + asset, asset, features)


def open_interest_events(symbols: Sequence[str], columns: EventColumns) -> Events:
    """Events open interest → asset. Columns: t, symbol, open_interest (units of the asset), and optionally long_short
    (long ÷ short accounts; 1 by default)."""
    asset = _asset_positions(symbols, columns)
    features = {
        "log_open_interest": np.log1p(columns["open_interest"]),
        "open_interest_change": _log_change(columns, "open_interest"),
        "long_short": np.log(columns.get("long_short", np.ones(len(asset)))),
    }
    source = np.full(len(asset), len(NODE_TYPES) * len(symbols) + EXTERNAL_NODES.index("external:open_interest"))
    return _build_events(symbols, "open_interest", columns["t"], source, asset, features)


def with_clock_features(events: Events, min_large_value: float = 100_000.0) -> Events:
    """A copy of ``events``, of all kinds, with the features that count time and trades before an event.

    They describe the event's asset, its dst: the time since its last trade, its last funding event and its last large
    trade, and the number of its trades in the minute before. A trade is large if its value is ``min_large_value``
    or more, in the quote currency. Only events at strictly earlier times count, so simultaneous events do not affect
    each other. If the asset has no such earlier event, the time counts from the first event of ``events``.
    """
    is_trade = events.kind == EVENT_KINDS.index("trade")
    is_funding = events.kind == EVENT_KINDS.index("funding")
    is_large = is_trade & (events.features[:, FEATURE_COLUMN["log_value"]] >= np.log1p(min_large_value))
    features = events.features.copy()
    features[:, FEATURE_COLUMN["log_since_trade"]] = _log_since(events, is_trade)
    features[:, FEATURE_COLUMN["log_since_funding"]] = _log_since(events, is_funding)
    features[:, FEATURE_COLUMN["log_since_large_trade"]] = _log_since(events, is_large)
    n_recent = _count_before(events, is_trade, events.t) - _count_before(events, is_trade, events.t - MINUTE_US)
    features[:, FEATURE_COLUMN["log_trade_rate"]] = np.log1p(n_recent)
    return replace(events, features=features)


def _trade_features(columns: EventColumns) -> EventColumns:
    """The features (e,) of trades or liquidations, by name."""
    log_return = _log_change(columns, "price")
    return {
        "return": log_return,
        "log_size": np.log1p(columns["size"]),
        "side": columns["side"],
        "log_value": np.log1p(columns["size"] * columns["price"]),
        "impact": columns["side"] * log_return,
    }


def _build_events(
    symbols: Sequence[str], kind: str, t: np.ndarray, src: np.ndarray, dst: np.ndarray, kind_features: EventColumns
) -> Events:
    """Events of one kind from ``src`` to ``dst`` (e,), with the features of the kind and those of the calendar."""
    day_angle = 2 * np.pi * (t % DAY_US) / DAY_US
    week_angle = 2 * np.pi * ((t // DAY_US + EPOCH_WEEKDAY) % 7) / 7
    calendar_features = {
        "hour_sin": np.sin(day_angle),
        "hour_cos": np.cos(day_angle),
        "weekday_sin": np.sin(week_angle),
        "weekday_cos": np.cos(week_angle),
    }
    features = np.zeros((len(t), len(FEATURES)), dtype=np.float32)
    for name, values in {**kind_features, **calendar_features}.items():
        features[:, FEATURE_COLUMN[name]] = values
    return Events(
        src=src.astype(np.int64),
        dst=dst.astype(np.int64),
        t=t.astype(np.int64),
        kind=np.full(len(t), EVENT_KINDS.index(kind), dtype=np.int8),
        features=features,
        nodes=market_nodes(symbols),
    )


def _asset_positions(symbols: Sequence[str], columns: EventColumns) -> np.ndarray:
    """Position (e,) int64 of each row's symbol in ``symbols``. Raises GraphError for a symbol that is not in it."""
    names, inverse = np.unique(np.asarray(columns["symbol"], dtype=str), return_inverse=True)
    position_by_symbol = {symbol: i for i, symbol in enumerate(symbols)}
    unknown = [name for name in names.tolist() if name not in position_by_symbol]
    if unknown:
        raise GraphError(
            f"rows of {', '.join(unknown)}, not among the {len(symbols)} symbols; add the symbol or drop its rows"
        )
    return np.array([position_by_symbol[name] for name in names.tolist()], dtype=np.int64)[inverse]


def _log_change(columns: EventColumns, name: str) -> np.ndarray:
    """Log change (e,) of a column since the previous row of the same symbol, in percent; 0 in a symbol's first row."""
    _, asset = np.unique(np.asarray(columns["symbol"], dtype=str), return_inverse=True)
    order = np.argsort(asset, kind="stable")
    log_values = np.log(columns[name])[order]
    has_previous = np.diff(asset[order], prepend=-1) == 0
    change = np.empty(len(order))
    change[order] = np.where(has_previous, 100 * np.diff(log_values, prepend=0.0), 0.0)
    return change


def _count_before(events: Events, counts: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Number (e,) of events with True in ``counts`` (e,) bool that each event's dst had before ``t`` (e,), plus a
    constant.

    The constant depends on the dst alone, so only the difference of two such numbers has a meaning.
    """
    return np.searchsorted(np.sort(_sort_keys(events, events.t)[counts]), _sort_keys(events, t))


def _log_since(events: Events, counts: np.ndarray) -> np.ndarray:
    """log(1 + seconds) (e,) to each event from the last earlier event with the same dst and True in ``counts`` (e,)
    bool.

    If the dst has no such event, the seconds count from the first of all events.
    """
    keys = _sort_keys(events, events.t)
    start_keys = _sort_keys(events, np.full_like(events.t, events.t[0]) if len(events) else events.t)
    masked_keys = np.concatenate([[-1], np.sort(keys[counts])])
    last_key = masked_keys[np.searchsorted(masked_keys, keys) - 1]
    return np.log1p((keys - np.maximum(last_key, start_keys)) / SECOND_US)


def _sort_keys(events: Events, t: np.ndarray) -> np.ndarray:
    """One integer (e,) per event: sorting by it sorts by the event's dst, then by the time ``t`` (e,).

    ``t`` must not be earlier than a minute before the first event, nor later than the last event.
    """
    if not len(events):
        return events.dst
    first_t = int(events.t[0])
    last_t = int(events.t[-1])
    return events.dst * (last_t - first_t + 2 * MINUTE_US) + (t - first_t) + MINUTE_US
