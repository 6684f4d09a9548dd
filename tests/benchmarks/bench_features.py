"""Speed of the features of 500 assets over 2,500 days, compared with TA-Lib in a pandas groupby, the usual way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import talib

from models.features.indicators import BAR_COLUMNS, FEATURES, INDICATORS, compute_features
from models.panel import Panel
from models.sessions import DAY
from tests.benchmarks.contest import contest

ASSETS = 500
DAYS = 2500
ROUNDS = 5


@pytest.fixture(scope="module")
def bars() -> Panel:
    """Random daily bars without a missing bar, with BAR_COLUMNS."""
    rng = np.random.default_rng(0)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (DAYS, ASSETS)), axis=0))
    open_ = close * np.exp(rng.normal(0, 0.005, close.shape))
    high = np.maximum(open_, close) * 1.01
    low = np.minimum(open_, close) * 0.99
    total_return = np.vstack((np.full((1, ASSETS), np.nan), close[1:] / close[:-1] - 1))
    columns = (open_, high, low, close, rng.lognormal(12, 1, close.shape), total_return, np.zeros_like(close))
    ts = np.datetime64("2015-01-01T14:30", "us") + np.arange(DAYS) * DAY
    symbols = tuple(f"S{k:03d}" for k in range(ASSETS))
    return Panel(ts, symbols, BAR_COLUMNS, np.stack(columns, axis=-1), np.ones(close.shape, dtype=bool))


def indicators_by_groupby(table: pd.DataFrame) -> pd.DataFrame:
    """INDICATORS computed by TA-Lib in a pandas groupby over the long table."""

    def symbol_indicators(bar: pd.DataFrame) -> pd.DataFrame:  # the bars of one symbol
        log_close = np.log(bar["close"])
        log_volume = np.log1p(bar["volume"])
        returns = log_close.diff()
        macd, signal, histogram = talib.MACD(bar["close"], 12, 26, 9)
        upper, middle, lower = talib.BBANDS(bar["close"], 20, 2, 2)
        volume_mean = talib.SMA(log_volume, 20)
        volume_std = talib.STDDEV(log_volume, 20)
        columns = (
            *(log_close.diff(k) for k in (1, 5, 20, 60)),
            *(talib.STDDEV(returns, k) for k in (20, 60)),
            talib.RSI(bar["close"], 14) / 100,
            *(line / bar["close"] for line in (macd, signal, histogram)),
            (bar["close"] - lower) / (upper - lower),
            (upper - lower) / middle,
            talib.ATR(bar["high"], bar["low"], bar["close"], 14) / bar["close"],
            talib.OBV(bar["close"], bar["volume"]).diff(20) / talib.SUM(bar["volume"], 20),
            (log_volume - volume_mean) / volume_std,
            (bar["high"] - bar["low"]) / bar["close"],
            np.log(bar["open"] / bar["close"].shift()),
        )
        return pd.DataFrame(dict(zip(INDICATORS, columns, strict=True)), index=bar.index)

    return table.groupby("symbol", sort=False, group_keys=False).apply(symbol_indicators)


def run_talib_on_arrays(series: np.ndarray) -> None:
    """Computes 9 indicators by TA-Lib: RSI, MACD, Bollinger bands, ATR and OBV. It is a lower bound for TA-Lib's time.

    ``series`` (5, n, t) are open, high, low, close and volume, each asset's series contiguous.
    """
    for _, high, low, close, volume in series.transpose(1, 0, 2):
        talib.RSI(close, 14), talib.MACD(close), talib.BBANDS(close, 20), talib.ATR(high, low, close, 14)
        talib.OBV(close, volume)


@pytest.mark.benchmark
def test_features_are_faster_than_a_pandas_groupby(bars: Panel) -> None:
    table = bars.to_table().to_pandas().sort_values(["symbol", "ts"], ignore_index=True)
    series = np.ascontiguousarray(bars.values[:, :, :5].transpose(2, 1, 0))
    close_times = bars.ts + DAY
    contenders: dict[str, Callable[[], object]] = {
        f"compute_features, {len(FEATURES)} columns": lambda: compute_features(bars, close_times),
        f"TA-Lib in a pandas groupby, {len(INDICATORS)} of them": lambda: indicators_by_groupby(table),
        "TA-Lib over contiguous arrays, 9 of them": lambda: run_talib_on_arrays(series),
    }
    result = contest(contenders, ROUNDS)
    ours_name, groupby_name, _ = contenders
    result.report(f"{ASSETS} x {DAYS} bars", ours_name)

    ours = compute_features(bars, close_times).values[:, :, : len(INDICATORS)]
    expected = indicators_by_groupby(table).to_numpy().reshape(ASSETS, DAYS, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-8)
    assert result.ratio(groupby_name, ours_name) > 1.5
