"""Bars computed from trades, for markets that serve no bars."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.panel import TS_TYPE
from models.sessions import BAR_LENGTHS
from tasks.markets.recording import OHLC


def bars_from_trades(trades: pa.Table, interval: str, end: np.datetime64) -> pa.Table:
    """Bars of one symbol that closed by ``end`` (UTC), oldest first, with the columns of Bybit.klines.

    ``trades``: at least one row, sorted by time, with the columns symbol, ts, price and size. A bar contains the trades
    with open time < ts ≤ close time, as it does for events. A bar without a trade has the last trade's price as open,
    high, low and close, and volume 0. The bar of the first trade is left out, because the recording may have started
    within it. ``turnover`` is null, because not every market counts sizes in coins.
    """
    length_us = BAR_LENGTHS[interval].astype(np.int64)
    end_us = end.astype("datetime64[us]").astype(np.int64)
    ts_us = trades["ts"].cast(pa.int64()).to_numpy()
    closes_us = -(-ts_us // length_us) * length_us  # rounded up to the close time of the trade's bar
    groups = trades.select(["price", "size"]).to_pandas().groupby(closes_us)
    bars = groups["price"].ohlc().assign(volume=groups["size"].sum())
    bars = bars.reindex(np.arange(closes_us[0], end_us + 1, length_us))
    bars = bars.assign(close=bars["close"].ffill(), volume=bars["volume"].fillna(0.0))
    bars = bars.bfill(axis="columns")  # open, high and low of a bar without a trade are its close
    bars = bars[1:]
    open_times = (bars.index.to_numpy() - length_us).astype("datetime64[us]")
    return pa.table(
        {
            "symbol": pa.repeat(trades["symbol"][0], len(bars)),
            "interval": pa.repeat(interval, len(bars)),
            "ts": pa.array(open_times).cast(TS_TYPE),
            **{name: pa.array(bars[name].to_numpy()) for name in OHLC},
            "close_adjusted": pa.array(bars["close"].to_numpy()),
            "volume": pa.array(bars["volume"].to_numpy()),
            "turnover": pa.nulls(len(bars), pa.float64()),
        }
    )
