"""Test data for the models: a small market with a synthetic signal, random bars, and bars of the recorded tape.

A tape is a folder of recorded market data.
"""

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
from models.features.labels import UNKNOWN_CLASS, Labels
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
    """Random hourly bars, t bars of n assets.

    A fraction ``holes`` of the bars is missing. With ``late`` every second asset has no bar before position t // 3.
    """
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (t, n)), axis=0))
    open_ = close * np.exp(rng.normal(0, 0.01, (t, n)))
    high = np.maximum(open_, close) * 1.005
    low = np.minimum(open_, close) * 0.995
    volume = np.floor(rng.lognormal(8, 1, (t, n))) * (rng.random((t, n)) > 0.02)
    mask = rng.random((t, n)) >= holes
    if late:
        mask &= np.arange(t)[:, None] >= np.where(np.arange(n) % 2, t // 3, 0)
    funding = rng.normal(1e-4, 1e-4, (t, n))
    values = np.stack([open_, high, low, close, volume, np.full((t, n), np.nan), funding], axis=-1)
    total_return = BAR_COLUMNS.index("total_return")
    for j in range(n):
        positions = np.flatnonzero(mask[:, j])
        dividend = np.where(rng.random(len(positions)) < 0.02, 0.5, 0.0)
        growth = (close[positions[1:], j] + dividend[1:]) / close[positions[:-1], j]
        values[positions[1:], j, total_return] = growth - 1
    values[~mask] = np.nan
    ts = np.datetime64("2024-01-01T00:00:00", "us") + np.arange(t) * np.timedelta64(1, "h")
    return Panel(ts, tuple(f"S{k:03d}" for k in range(n)), BAR_COLUMNS, values, mask)


@pytest.fixture(scope="session")
def random_bars() -> Callable[..., Panel]:
    """A function that makes random hourly bars: ``random_bars(t, n, seed=0, holes=0.0, late=False)``."""
    return make_bars


@pytest.fixture(scope="session")
def tape_stocks(shared_data: Path) -> Callable[..., Panel]:
    """A function that reads daily bars of a few recorded stocks up to a date: ``tape_stocks(date(2024, 6, 28))``."""
    table = pq.read_table(shared_data / "tape/yahoo/bars_1d.parquet", filters=[("symbol", "in", STOCKS)])

    def read_until(end: date = date(2024, 6, 28)) -> Panel:
        rows = table.filter(pc.less_equal(table["date"], end))
        opens = bar_opens("XNYS", "1d", date(2019, 1, 2), end + timedelta(days=1))
        days = rows["date"].to_numpy().astype("datetime64[D]")
        ts = opens[np.searchsorted(opens.astype("datetime64[D]"), days)]
        return _make_panel(rows, "adj_close", ts, opens, STOCKS, funding_rate=0.0)

    return read_until


@pytest.fixture(scope="session")
def tape_perpetuals(shared_data: Path) -> Callable[..., Panel]:
    """A function that reads hourly bars of a few recorded perpetuals from 2023-12-01 up to a date."""
    start = date(2023, 12, 1)
    table = pq.read_table(shared_data / "tape/bybit/klines_60.parquet", filters=[("symbol", "in", PERPETUALS)])

    def read_until(end: date = date(2024, 6, 28)) -> Panel:
        opens = bar_opens("24/7", "1h", start, end + timedelta(days=1))
        row_ts = table["ts"].to_numpy().astype("datetime64[us]")
        is_inside = (row_ts >= opens[0]) & (row_ts <= opens[-1])
        rows = table.filter(pa.array(is_inside))
        return _make_panel(rows, "close", row_ts[is_inside], opens, PERPETUALS, funding_rate=1e-4)

    return read_until


def _make_panel(
    rows: pa.Table, index_column: str, ts: np.ndarray, opens: np.ndarray, symbols: tuple[str, ...], funding_rate: float
) -> Panel:
    """A panel of BAR_COLUMNS on the grid ``opens``, from ``rows`` that open at ``ts``.

    The total returns are the simple returns of ``index_column``; the funding rate is the same at every bar.
    """
    symbol = np.array(rows["symbol"].to_pylist())
    index_level = rows[index_column].to_numpy()
    total_return = np.full(len(index_level), np.nan)
    for name in symbols:
        positions = np.flatnonzero(symbol == name)
        positions = positions[np.argsort(ts[positions])]
        total_return[positions[1:]] = index_level[positions[1:]] / index_level[positions[:-1]] - 1
    table = pa.table(
        {
            "symbol": symbol.astype(object),
            "ts": ts,
            **{name: rows[name].cast(pa.float64()) for name in BAR_COLUMNS[:5]},
            "total_return": total_return,
            "funding_rate": np.full(len(ts), funding_rate),
        }
    )
    return Panel.from_table(table, BAR_COLUMNS, symbols, opens)


T, N = 190, 5  # bars and assets of the market
HORIZONS = (1, 5)
CLASS_HORIZON = 5
FOLDS = {"warmup_bars": 20, "train_bars": 110, "test_bars": 25, "embargo_bars": 2}
CONFIG = TrainConfig(
    epochs=3, chunk_bars=24, burn_in_bars=8, context_bars=12, batch_sequences=15, validation_fraction=0.2
)


@dataclass(frozen=True, eq=False)
class Market:
    """Synthetic daily data of N assets at T bars.

    ``features``: signal, noise and volatility_60. ``labels``: returns that are correlated with the signal.
    ``snapshots``: one at every tenth bar from bar 10 on. ``events``: trades and funding settlements.
    """

    features: Panel
    labels: Labels
    snapshots: list[Snapshot]
    events: BarEvents

    @property
    def side_inputs(self) -> SideInputs:
        """The snapshots and the events."""
        return SideInputs(self.snapshots, self.events)

    @property
    def folds(self) -> list[Fold]:
        """The walk-forward folds of the sizes FOLDS."""
        return walk_forward(self.features.ts, self.labels.end, **FOLDS)

    def truncate(self, stop: int) -> Market:
        """The market of the bars before position ``stop``, where a label that ends after the last bar is unknown."""
        labels = self.labels.slice_bars(0, stop)
        is_unknown = np.isnat(labels.end) | (labels.end > self.features.ts[stop - 1])  # (t, horizons)
        is_class_unknown = is_unknown[:, [HORIZONS.index(CLASS_HORIZON)]]
        known_labels = replace(
            labels,
            returns=np.where(is_unknown[:, None, :], np.nan, labels.returns),
            volatility=np.where(is_class_unknown, np.nan, labels.volatility),
            class_5=np.where(is_class_unknown, UNKNOWN_CLASS, labels.class_5),
            end=np.where(is_unknown, np.datetime64("NaT"), labels.end),
        )
        features = self.features.slice_bars(0, stop)
        snapshots = [s for s in self.snapshots if s.as_of <= features.ts[-1]]
        return Market(features, known_labels, snapshots, self.events.for_bars(features.ts))

    def arguments(self, model: str = "s4d", fold_index: int = 0, config: TrainConfig = CONFIG) -> dict:
        """The common arguments of fit_fold and fold_key for a small network; ``fold_index`` counts from 0."""
        return {
            "spec": Spec(model, d_model=8, n_layers=1, d_state=4),
            "config": config,
            "features": self.features,
            "labels": self.labels,
            "side_inputs": self.side_inputs,
            "fold": self.folds[fold_index],
        }


@pytest.fixture(autouse=True, scope="session")
def use_one_thread() -> None:
    """Limits torch to one thread: the tensors of the tests are small, so a second thread would only wait."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def market() -> Market:
    """A market whose returns are 0.8 · signal + 0.3 · noise, in units of the trailing volatility."""
    rng = np.random.default_rng(0)
    ts = np.datetime64("2024-01-01", "us") + np.arange(T) * np.timedelta64(1, "D")
    mask = rng.random((T, N)) < 0.95
    mask[:60, 4] = False  # the last asset is listed late
    signal = rng.normal(size=(T, N))
    sigma = np.exp(rng.normal(-4, 0.3, (T, N)))
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
    class_return = returns[..., HORIZONS.index(CLASS_HORIZON)]
    scaled_return = class_return / scale[..., HORIZONS.index(CLASS_HORIZON)]
    with np.errstate(invalid="ignore"):
        classes = np.where(np.isnan(scaled_return), UNKNOWN_CLASS, np.digitize(scaled_return, [-1, -0.25, 0.25, 1]))
    labels = Labels(
        horizons=HORIZONS,
        returns=returns,
        volatility=np.abs(class_return) + 1e-3,
        class_5=classes.astype(np.int8),
        end=end,
    )
    src, dst = np.triu_indices(N, 2)
    snapshots = [
        Snapshot("correlation", ts[i], ts[i - 10], src, dst, rng.random(len(src)), features.symbols)
        for i in range(10, T, 10)
    ]
    return Market(features, labels, snapshots, make_events(features.symbols, ts))


def make_events(symbols: tuple[str, ...], opens: np.ndarray) -> BarEvents:
    """Trades at random times within daily bars, about five per bar, and a funding settlement at every tenth close."""
    rng = np.random.default_rng(3)
    n_trades = 5 * len(opens)
    day_us = 86_400_000_000
    start = int(opens[0].astype(np.int64))
    columns = {
        "symbol": rng.choice(symbols, n_trades),
        "price": rng.uniform(90, 110, n_trades),
        "size": np.ones(n_trades),
        "t": start + np.sort(rng.integers(1, len(opens) * day_us, n_trades)),
        "side": rng.choice([-1.0, 1.0], n_trades),
    }
    trades = trade_events(symbols, columns)
    settled_at = start + day_us * np.arange(10, len(opens) + 1, 10)
    funding = {
        "t": settled_at,
        "symbol": np.array([symbols[0]] * len(settled_at)),
        "rate": np.full(len(settled_at), 1e-4),
    }
    events = concatenate([trades, funding_events(symbols, funding)])
    return BarEvents.from_events(events, opens, opens + np.timedelta64(1, "D"))
