"""Bars computed from trades, for markets that serve no bars."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.panel import TS_TYPE
from models.sessions import INTERVALS
from tasks.markets.recording import OHLC


def bars_from_trades(trades: pa.Table, interval: str, end: np.datetime64) -> pa.Table:
    """Bars of one symbol that had closed by ``end``, with the columns of Bybit.klines; ``trades`` are sorted by time.

    A bar holds the trades with open < ts ≤ close, as events do; a bar without a trade repeats the last price and has
    volume 0. The bar of the first trade is left out, because the recording may have started within it. ``turnover`` is
    null, since not every market counts sizes in coins.
    """
    length = INTERVALS[interval].astype(np.int64)
    ts = trades["ts"].cast(pa.int64()).to_numpy()
    closes = -(-ts // length) * length
    groups = trades.select(["price", "size"]).to_pandas().groupby(closes)
    bars = groups["price"].ohlc().assign(volume=groups["size"].sum())
    bars = bars.reindex(np.arange(closes[0], end.astype("datetime64[us]").astype(np.int64) + 1, length))
    bars = bars.assign(close=bars["close"].ffill(), volume=bars["volume"].fillna(0.0)).bfill(axis="columns")[1:]
    opens = (bars.index.to_numpy() - length).astype("datetime64[us]")
    return pa.table(
        {
            "symbol": pa.repeat(trades["symbol"][0], len(bars)),
            "interval": pa.repeat(interval, len(bars)),
            "ts": pa.array(opens).cast(TS_TYPE),
            **{name: pa.array(bars[name].to_numpy()) for name in OHLC},
            "close_adjusted": pa.array(bars["close"].to_numpy()),
            "volume": pa.array(bars["volume"].to_numpy()),
            "turnover": pa.nulls(len(bars), pa.float64()),
        }
    )
