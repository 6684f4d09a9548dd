"""Panels of bars to compute on: synthetic ones with holes and late listings, and the recorded tape."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from models.features.indicators import BAR_COLUMNS
from models.panel import Panel
from models.sessions import bar_opens

STOCKS = ("AAPL", "ABNB", "CRWD", "JPM", "NVDA", "XOM")
PERPETUALS = ("BTCUSDT", "SOLUSDT", "WIFUSDT")


def make_bars(t: int, n: int, seed: int = 0, holes: float = 0.0, late: bool = False) -> Panel:
    """Random hourly bars; a share ``holes`` of them missing, and half of the assets listed late when ``late``."""
    draw = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(draw.normal(0, 0.02, (t, n)), axis=0))
    open_ = close * np.exp(draw.normal(0, 0.01, (t, n)))
    high, low = np.maximum(open_, close) * 1.005, np.minimum(open_, close) * 0.995
    volume = np.floor(draw.lognormal(8, 1, (t, n))) * (draw.random((t, n)) > 0.02)
    mask = draw.random((t, n)) >= holes
    if late:
        mask &= np.arange(t)[:, None] >= np.where(np.arange(n) % 2, t // 3, 0)
    funding = draw.normal(1e-4, 1e-4, (t, n))
    values = np.stack([open_, high, low, close, volume, np.full((t, n), np.nan), funding], axis=-1)
    for j in range(n):
        own = np.flatnonzero(mask[:, j])
        dividend = np.where(draw.random(len(own)) < 0.02, 0.5, 0.0)
        values[own[1:], j, 5] = (close[own[1:], j] + dividend[1:]) / close[own[:-1], j] - 1
    values[~mask] = np.nan
    ts = np.datetime64("2024-01-01T00:00:00", "us") + np.arange(t) * np.timedelta64(1, "h")
    return Panel(ts, tuple(f"S{k:03d}" for k in range(n)), BAR_COLUMNS, values, mask)


@pytest.fixture(scope="session")
def random_bars() -> Callable[..., Panel]:
    """Makes random hourly bars: ``random_bars(t, n, seed=0, holes=0.0, late=False)``."""
    return make_bars


@pytest.fixture(scope="session")
def tape_stocks(shared_data: Path) -> Callable[..., Panel]:
    """Daily bars of a few recorded stocks from a tape that ends on a date: ``tape_stocks(date(2024, 6, 28))``."""
    table = pq.read_table(shared_data / "tape/yahoo/bars_1d.parquet", filters=[("symbol", "in", STOCKS)])

    def until(end: date = date(2024, 6, 28)) -> Panel:
        rows = table.filter(pc.less_equal(table["date"], end))
        opens = bar_opens("XNYS", "1d", date(2019, 1, 2), end + timedelta(days=1))
        days = rows["date"].to_numpy().astype("datetime64[D]")
        ts = opens[np.searchsorted(opens.astype("datetime64[D]"), days)]
        return _panel(rows, "adj_close", ts, opens, STOCKS, 0.0)

    return until


@pytest.fixture(scope="session")
def tape_perpetuals(shared_data: Path) -> Callable[..., Panel]:
    """Hourly bars of a few recorded perpetuals from a tape that ends on a date, from 2023-12-01 on."""
    start = date(2023, 12, 1)
    table = pq.read_table(shared_data / "tape/bybit/klines_60.parquet", filters=[("symbol", "in", PERPETUALS)])

    def until(end: date = date(2024, 6, 28)) -> Panel:
        opens = bar_opens("24/7", "1h", start, end + timedelta(days=1))
        row_ts = table["ts"].to_numpy().astype("datetime64[us]")
        kept = (row_ts >= opens[0]) & (row_ts <= opens[-1])
        return _panel(table.filter(pa.array(kept)), "close", row_ts[kept], opens, PERPETUALS, 1e-4)

    return until


def _panel(
    rows: pa.Table, total: str, ts: np.ndarray, opens: np.ndarray, symbols: tuple[str, ...], funding: float
) -> Panel:
    symbol, level = np.array(rows["symbol"].to_pylist()), rows[total].to_numpy()
    total_return = np.full(len(level), np.nan)
    for name in symbols:
        own = np.flatnonzero(symbol == name)
        own = own[np.argsort(ts[own])]
        total_return[own[1:]] = level[own[1:]] / level[own[:-1]] - 1
    table = pa.table(
        {
            "symbol": symbol.astype(object),
            "ts": ts,
            **{name: rows[name].cast(pa.float64()) for name in BAR_COLUMNS[:5]},
            "total_return": total_return,
            "funding_rate": np.full(len(ts), funding),
        }
    )
    return Panel.from_table(table, BAR_COLUMNS, symbols, opens)
