"""What the tests of the models compute on: a small market with a planted signal, random bars, and the recorded tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from models.features.indicators import BAR_COLUMNS
from models.features.labels import Labels
from models.graphs.context import BarEvents, SideInputs
from models.graphs.events import concatenate
from models.graphs.market_events import funding_events, trade_events
from models.graphs.snapshot import Snapshot
from models.panel import Panel
from models.scoring.folds import Fold, walk_forward
from models.sessions import bar_opens
from models.training.config import TrainConfig
from models.zoo import Spec

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


T, N, HORIZONS = 190, 5, (1, 5)
FOLDS = {"warmup_bars": 20, "train_bars": 110, "test_bars": 25, "embargo_bars": 2}
CONFIG = TrainConfig(
    epochs=3, chunk_bars=24, burn_in_bars=8, context_bars=12, batch_sequences=15, validation_fraction=0.2
)


@dataclass(frozen=True, eq=False)
class Market:
    """``features`` (signal, noise, volatility_60), labels that follow the signal, snapshots every ten bars, trades."""

    features: Panel
    labels: Labels
    snapshots: list[Snapshot]
    events: BarEvents

    @property
    def side_inputs(self) -> SideInputs:
        return SideInputs(self.snapshots, self.events)

    @property
    def folds(self) -> list[Fold]:
        return walk_forward(self.features.ts, self.labels.end, **FOLDS)

    def until(self, stop: int) -> Market:
        """The market as it looked at the close of bar ``stop`` − 1: labels that had not ended are unknown."""
        labels = self.labels.rows(0, stop)
        unknown = np.isnat(labels.end) | (labels.end > self.features.ts[stop - 1])
        cut = replace(
            labels,
            returns=np.where(unknown[:, None, :], np.nan, labels.returns),
            volatility=np.where(unknown[:, 1:], np.nan, labels.volatility),
            class_5=np.where(unknown[:, 1:], -1, labels.class_5),
            end=np.where(unknown, np.datetime64("NaT"), labels.end),
        )
        features = self.features.rows(0, stop)
        snapshots = [s for s in self.snapshots if s.as_of <= features.ts[-1]]
        return Market(features, cut, snapshots, self.events.of_bars(features.ts))

    def arguments(self, model: str = "s4d", fold: int = 0, config: TrainConfig = CONFIG) -> dict:
        """What fit_fold and fold_key take, for a small network."""
        spec = Spec(model, d_model=8, n_layers=1, d_state=4)
        return {
            "spec": spec,
            "config": config,
            "features": self.features,
            "labels": self.labels,
            "side_inputs": self.side_inputs,
            "fold": self.folds[fold],
        }


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tensors of tests are small: a second thread only waits for the first."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def market() -> Market:
    rng = np.random.default_rng(0)
    ts = np.datetime64("2024-01-01", "us") + np.arange(T) * np.timedelta64(1, "D")
    mask = rng.random((T, N)) < 0.95
    mask[:60, 4] = False  # lists late
    signal, sigma = rng.normal(size=(T, N)), np.exp(rng.normal(-4, 0.3, (T, N)))
    sigma[:25, :4] = np.nan  # warming up
    values = np.stack([signal, rng.normal(size=(T, N)), sigma], axis=-1)
    features = Panel(
        ts, tuple("ABCDE"), ("signal", "noise", "volatility_60"), np.where(mask[..., None], values, np.nan), mask
    )
    end = np.full((T, 2), np.datetime64("NaT"), dtype="datetime64[us]")
    for k, h in enumerate(HORIZONS):
        end[: T - 1 - h, k] = ts[1 + h :]
    scale = np.nan_to_num(sigma, nan=0.02)[..., None] * np.sqrt(HORIZONS)
    returns = scale * (0.8 * signal[..., None] + 0.3 * rng.normal(size=(T, N, 2)))
    returns[np.isnat(end)[:, None].repeat(N, axis=1) | (rng.random((T, N, 2)) < 0.02)] = np.nan
    ratio = returns[..., 1] / scale[..., 1]
    with np.errstate(invalid="ignore"):
        classes = np.where(np.isnan(ratio), -1, np.digitize(ratio, [-1, -0.25, 0.25, 1]))
    labels = Labels(HORIZONS, returns, np.abs(returns[..., 1]) + 1e-3, classes.astype(np.int8), end)
    snapshots = [
        Snapshot("correlation", ts[i], ts[i - 10], *np.triu_indices(N, 2), rng.random(6), tuple("ABCDE"))
        for i in range(10, T, 10)
    ]
    return Market(features, labels, snapshots, make_events(features.symbols, ts))


def make_events(symbols: tuple[str, ...], opens: np.ndarray) -> BarEvents:
    """Trades at any time of daily bars, about five a bar, and a settlement at every tenth close."""
    draw, count, day = np.random.default_rng(3), 5 * len(opens), 86_400_000_000
    start = int(opens[0].astype(np.int64))
    rows = {"symbol": draw.choice(symbols, count), "price": draw.uniform(90, 110, count), "size": np.ones(count)}
    t = start + np.sort(draw.integers(1, len(opens) * day, count))
    trades = trade_events(symbols, rows | {"t": t, "side": draw.choice([-1.0, 1.0], count)})
    settled = start + day * np.arange(10, len(opens) + 1, 10)
    funding = {"t": settled, "symbol": np.array([symbols[0]] * len(settled)), "rate": np.full(len(settled), 1e-4)}
    closes = opens + np.timedelta64(1, "D")
    return BarEvents.of(concatenate([trades, funding_events(symbols, funding)]), opens, closes)
