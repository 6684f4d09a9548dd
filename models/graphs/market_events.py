"""Events of a market: trades, books, bars, funding, open interest, liquidations and graph edges (TGN-06, 07, 16 to 27).

Every builder takes ``symbols`` and ``rows``, columns by name (arrays (e,), in the order of ``t``, microseconds UTC when
the row became known), and gives Events between ``market_nodes(symbols)`` with the features FEATURES, 0 where a kind has
none. What needs all kinds at once, the clocks, is filled by ``with_clocks`` once they are joined.
Glossary: e events · n symbols · f features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from models.graphs.events import EVENT_KINDS, Events
from models.graphs.snapshot import GraphError, Snapshot

EventColumns = Mapping[str, np.ndarray]

NODE_TYPES = ("asset:{}", "trade:{}", "liquidation:{}", "funding:{}", "book:{}:bid", "book:{}:ask")
EXTERNAL = ("external:market", "external:open_interest")
ASSET, TRADE, LIQUIDATION, FUNDING, BID, ASK = range(len(NODE_TYPES))
FEATURES = (
    "return",  # log price over the asset's last event of the kind, percent
    "log_size",  # log(1 + size in units of the asset)
    "side",  # +1 the taker bought, −1 sold
    "log_value",  # log(1 + size · price)
    "impact",  # side · return: above 0 where the trade moved the price its own way
    "spread",  # ask over bid, hundredths of a percent
    "imbalance",  # (bid depth − ask depth) ÷ their sum
    "log_depth",  # log(1 + both depths)
    "range",  # log(high ÷ low), percent: a bar's volatility
    "trend",  # log(close ÷ open), percent
    "volume_rank",  # share of the asset's bars so far (PAST_BARS at most) with less volume
    "rate",  # funding rate that was settled, hundredths of a percent
    "predicted_rate",  # the same, of the settlement to come
    "countdown",  # hours to the next settlement ÷ 8
    "log_open_interest",
    "open_interest_change",  # log over the asset's last, percent
    "long_short",  # log(long accounts ÷ short accounts); 0 from a stream, whose tickers do not say it
    "weight",  # of a graph's edge
    "log_since_trade",  # log(1 + seconds), from here on see with_clocks
    "log_trade_rate",  # log(1 + trades in the last minute)
    "log_since_funding",
    "log_since_large_trade",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
)
COLUMN = {name: i for i, name in enumerate(FEATURES)}
PAST_BARS = 240
SECOND, MINUTE, HOUR, DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
THURSDAY = 3  # 1970-01-01, where Monday is 0


def market_nodes(symbols: Sequence[str]) -> tuple[str, ...]:
    """All nodes of a market, assets first: type k of symbol i stands at k · n + i, the external ones at the end."""
    return (*(kind.format(symbol) for kind in NODE_TYPES for symbol in symbols), *EXTERNAL)


def trade_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """trade → asset. Rows: t, symbol, price, size, side (+1 the taker bought, −1 sold)."""
    asset, move = _assets(symbols, rows), _log_change(rows, "price")
    return _events(symbols, "trade", rows["t"], (TRADE * len(symbols) + asset, asset), _traded(rows, move))


def liquidation_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """liquidation → asset; which others hear of it, a network knows by its graph. Rows as of trades."""
    asset, move = _assets(symbols, rows), _log_change(rows, "price")
    return _events(symbols, "liquidation", rows["t"], (LIQUIDATION * len(symbols) + asset, asset), _traded(rows, move))


def book_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """The heavier side of the book → asset. Rows: t, symbol, bid, ask (prices), bid_size, ask_size (depths)."""
    asset, depth = _assets(symbols, rows), rows["bid_size"] + rows["ask_size"]
    imbalance = (rows["bid_size"] - rows["ask_size"]) / np.where(depth > 0, depth, 1.0)
    said = {
        "return": _log_change({**rows, "mid": (rows["bid"] + rows["ask"]) / 2}, "mid"),
        "spread": 1e4 * (rows["ask"] / rows["bid"] - 1),
        "imbalance": imbalance,
        "log_depth": np.log1p(depth),
    }
    side = np.where(imbalance >= 0, BID, ASK)
    return _events(symbols, "book", rows["t"], (side * len(symbols) + asset, asset), said)


def bar_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """market → asset at a bar's close. Rows: t (the close), symbol, open, high, low, close, volume."""
    asset = _assets(symbols, rows)
    said = {
        "return": _log_change(rows, "close"),
        "log_size": np.log1p(rows["volume"]),
        "log_value": np.log1p(rows["volume"] * rows["close"]),
        "range": 100 * np.log(rows["high"] / rows["low"]),
        "trend": 100 * np.log(rows["close"] / rows["open"]),
        "volume_rank": _rank(asset, rows["volume"]),
    }
    market = np.full(len(asset), len(NODE_TYPES) * len(symbols) + EXTERNAL.index("external:market"))
    return _events(symbols, "bar", rows["t"], (market, asset), said)


def funding_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """funding → asset. Rows: t, symbol, rate, and where known next_t, the settlement that the rate belongs to: one to
    come, as a ticker says it, where that is after t."""
    asset, t = _assets(symbols, rows), rows["t"]
    next_t = rows.get("next_t", t)
    said = {
        "rate": np.where(next_t > t, 0.0, 1e4 * rows["rate"]),
        "predicted_rate": np.where(next_t > t, 1e4 * rows["rate"], 0.0),
        "countdown": (next_t - t) / (8 * HOUR),
    }
    return _events(symbols, "funding", t, (FUNDING * len(symbols) + asset, asset), said)


def open_interest_events(symbols: Sequence[str], rows: EventColumns) -> Events:
    """open interest → asset. Rows: t, symbol, open_interest, and where known long_short (long ÷ short accounts)."""
    asset = _assets(symbols, rows)
    said = {
        "log_open_interest": np.log1p(rows["open_interest"]),
        "open_interest_change": _log_change(rows, "open_interest"),
        "long_short": np.log(rows.get("long_short", np.ones(len(asset)))),
    }
    source = np.full(len(asset), len(NODE_TYPES) * len(symbols) + EXTERNAL.index("external:open_interest"))
    return _events(symbols, "open_interest", rows["t"], (source, asset), said)


def edge_events(symbols: Sequence[str], snapshots: Sequence[Snapshot], bar_us: int, kind: str) -> Events:
    """asset → asset for every edge of the snapshots, oldest first, when their last bar closes (``bar_us`` after its
    open); an undirected edge goes both ways. ``kind``: correlation or flow. Raises GraphError for other assets."""
    empty = np.empty(0, dtype=np.int64)
    src, dst, t, weight = [empty], [empty], [empty], [empty.astype(np.float64)]
    for snapshot in snapshots:
        place = _positions(symbols, np.array(snapshot.nodes))
        ends, both = (place[snapshot.src], place[snapshot.dst]), not getattr(snapshot, "directed", False)
        src.append(np.concatenate([ends[0], ends[1]]) if both else ends[0])
        dst.append(np.concatenate([ends[1], ends[0]]) if both else ends[1])
        weight.append(np.tile(snapshot.weight, 2) if both else snapshot.weight)
        t.append(np.full(len(src[-1]), snapshot.as_of.astype("datetime64[us]").astype(np.int64) + bar_us))
    ends = np.concatenate(src), np.concatenate(dst)
    return _events(symbols, kind, np.concatenate(t), ends, {"weight": np.concatenate(weight)})


def with_clocks(events: Events, large_value: float = 100_000.0) -> Events:
    """The same events, each told how long ago its asset (its dst) last saw a trade, a funding settlement and a trade of
    ``large_value`` or more, and how many trades the last minute had.

    Only events at earlier times count, so simultaneous ones do not know of each other. Before the first one, the time
    since counts from the first event of all.
    """
    is_trade, is_funding = (events.kind == EVENT_KINDS.index(name) for name in ("trade", "funding"))
    large = is_trade & (events.features[:, COLUMN["log_value"]] >= np.log1p(large_value))
    features = events.features.copy()
    features[:, COLUMN["log_since_trade"]] = _log_since(events, is_trade)
    features[:, COLUMN["log_since_funding"]] = _log_since(events, is_funding)
    features[:, COLUMN["log_since_large_trade"]] = _log_since(events, large)
    recent = _count_before(events, is_trade, events.t) - _count_before(events, is_trade, events.t - MINUTE)
    features[:, COLUMN["log_trade_rate"]] = np.log1p(recent)
    return replace(events, features=features)


def _traded(rows: EventColumns, move: np.ndarray) -> EventColumns:
    """What a trade or a liquidation says, of rows whose prices moved by ``move`` (e,)."""
    return {
        "return": move,
        "log_size": np.log1p(rows["size"]),
        "side": rows["side"],
        "log_value": np.log1p(rows["size"] * rows["price"]),
        "impact": rows["side"] * move,
    }


def _events(
    symbols: Sequence[str], kind: str, t: np.ndarray, ends: tuple[np.ndarray, np.ndarray], said: EventColumns
) -> Events:
    """Events of one kind with the features ``said`` and the calendar's."""
    features = np.zeros((len(t), len(FEATURES)), dtype=np.float32)
    day, week = 2 * np.pi * (t % DAY) / DAY, 2 * np.pi * ((t // DAY + THURSDAY) % 7) / 7
    calendar = {"hour_sin": np.sin(day), "hour_cos": np.cos(day)}
    calendar |= {"weekday_sin": np.sin(week), "weekday_cos": np.cos(week)}
    for name, values in {**said, **calendar}.items():
        features[:, COLUMN[name]] = values
    codes = np.full(len(t), EVENT_KINDS.index(kind), dtype=np.int8)
    src, dst = (end.astype(np.int64) for end in ends)
    return Events(src, dst, t.astype(np.int64), codes, features, market_nodes(symbols))


def _assets(symbols: Sequence[str], rows: EventColumns) -> np.ndarray:
    return _positions(symbols, rows["symbol"])


def _positions(symbols: Sequence[str], names: np.ndarray) -> np.ndarray:
    """Where each name stands in ``symbols``. Raises GraphError."""
    seen, inverse = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    place = {symbol: i for i, symbol in enumerate(symbols)}
    unknown = [name for name in seen.tolist() if name not in place]
    if unknown:
        raise GraphError(f"rows of {', '.join(unknown)}, which is not among the {len(symbols)} symbols; add or drop it")
    return np.array([place[name] for name in seen.tolist()], dtype=np.int64)[inverse]


def _log_change(rows: EventColumns, column: str) -> np.ndarray:
    """Percent log change of a column against the same symbol's row before, 0 for its first."""
    _, asset = np.unique(np.asarray(rows["symbol"], dtype=str), return_inverse=True)
    order = np.argsort(asset, kind="stable")
    logs, same = np.log(rows[column])[order], np.diff(asset[order], prepend=-1) == 0
    change = np.empty(len(order))
    change[order] = np.where(same, 100 * np.diff(logs, prepend=0.0), 0.0)
    return change


def _rank(asset: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """Share of the asset's last PAST_BARS bars with less volume than this one, 0.5 for its first."""
    order, rank = np.argsort(asset, kind="stable"), np.empty(len(asset))
    window = np.lib.stride_tricks.sliding_window_view
    of = window(np.concatenate([np.full(PAST_BARS, -1), asset[order]]), PAST_BARS)[:-1]
    past = window(np.concatenate([np.zeros(PAST_BARS), volume[order]]), PAST_BARS)[:-1]
    own = of == asset[order, None]
    known, less = own.sum(axis=1), (own & (past < volume[order, None])).sum(axis=1)
    rank[order] = np.where(known, less / np.maximum(known, 1), 0.5)
    return rank


def _count_before(events: Events, chosen: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How many ``chosen`` events came before time ``t`` (e,) at each event's dst; up to a constant of the dst."""
    return np.searchsorted(np.sort(_keys(events, events.t)[chosen]), _keys(events, t))


def _log_since(events: Events, chosen: np.ndarray) -> np.ndarray:
    """log(1 + seconds since the dst's last ``chosen`` event before this one)."""
    now, began = (
        _keys(events, events.t),
        _keys(events, np.full_like(events.t, events.t[0]) if len(events) else events.t),
    )
    seen = np.concatenate([[-1], np.sort(now[chosen])])
    last = seen[np.searchsorted(seen, now) - 1]
    return np.log1p((now - np.maximum(last, began)) / SECOND)


def _keys(events: Events, t: np.ndarray) -> np.ndarray:
    """One number that sorts by dst, then by the time ``t`` (e,), a minute before the first event at the earliest."""
    if not len(events):
        return events.dst
    first, last = int(events.t[0]), int(events.t[-1])
    return events.dst * (last - first + 2 * MINUTE) + (t - first) + MINUTE
