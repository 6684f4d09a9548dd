"""Indicators known at the close of each bar, most of them computed by TA-Lib.

Glossary: t bars, n assets, f features, m bars of one symbol.

Prices are put on a forward total-return index (1 at a symbol's first bar, times 1 + total return at each later one):
adjusting backwards from the last bar, as data vendors do, would change every past row with the next dividend. The
indicators of a symbol are computed on its bars alone, without its gaps, because one NaN inside TA-Lib's recursions
(EMA, RSI, ATR) makes all later values NaN; gaps are skipped, not filled. Every value is a ratio, so no feature depends
on the price level.
"""

from __future__ import annotations

import numpy as np
import talib

from models.panel import Panel
from models.sessions import DAY, HOUR

BAR_COLUMNS = ("open", "high", "low", "close", "volume", "total_return", "funding_rate")
INDICATORS = (
    "return_1",
    "return_5",
    "return_20",
    "return_60",
    "volatility_20",
    "volatility_60",
    "rsi_14",
    "macd",
    "macd_signal",
    "macd_histogram",
    "bollinger_percent_b",
    "bollinger_width",
    "atr_14",
    "obv_20",
    "volume_z_20",
    "range_1",
    "gap_1",
)
CALENDAR = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
FEATURES = (*INDICATORS, *CALENDAR, "funding_rate")
MONDAY = np.datetime64("1970-01-05T00:00:00", "us")
SMOOTHED = ("ATR", "EMA", "RSI")  # the functions that TA-Lib's process-wide unstable period would change


class FeatureError(ValueError):
    """Features cannot be computed from these bars, horizons or settings; the message names them.

    FeatureError ← ValueError
    """


def compute_features(bars: Panel, closes: np.ndarray) -> Panel:
    """The panel of FEATURES on the grid of ``bars``, float64; a row contains only what was known when its bar closed.

    ``bars`` has BAR_COLUMNS; ``closes`` (t,) datetime64 is the close of each bar. NaN while an indicator warms up, and
    in ``funding_rate`` before the first known settlement. Raises FeatureError for bars with missing or impossible
    numbers.
    """
    if any(talib.get_unstable_period(name) for name in SMOOTHED) or talib.get_compatibility():
        raise FeatureError("TA-Lib's unstable period or compatibility was changed in this process; set both back to 0")
    log_index = log_total_return_index(bars)
    t, n = bars.mask.shape
    # one contiguous row per asset and column: TA-Lib reads and writes (m,) rows
    rows = np.ascontiguousarray(bars.values.transpose(2, 1, 0))
    open_, high, low, close, volume, _, funding_rate = (rows[bars.columns.index(c)] for c in BAR_COLUMNS)
    log_close = np.ascontiguousarray(log_index.T)
    values = np.full((len(FEATURES), n, t), np.nan)
    for j in range(n):
        index = _bar_index(bars.mask[:, j])
        values[: len(INDICATORS), j, index] = _indicators(
            open_[j, index], high[j, index], low[j, index], close[j, index], volume[j, index], log_close[j, index]
        )
    values[len(INDICATORS) : -1] = _calendar(bars.ts, np.asarray(closes, dtype="datetime64[us]"))[:, None, :]
    values[-1] = funding_rate
    values[:, ~bars.mask.T] = np.nan
    return Panel(bars.ts, bars.symbols, FEATURES, values.transpose(2, 1, 0), bars.mask)


def log_total_return_index(bars: Panel) -> np.ndarray:
    """Log of the forward total-return index at each close, (t, n): 0 at a symbol's first bar, NaN without a bar."""
    returns = log_returns(bars)
    return np.where(bars.mask, np.cumsum(np.nan_to_num(returns, nan=0.0), axis=0), np.nan)


def log_returns(bars: Panel) -> np.ndarray:
    """Log total return of each bar since the symbol's previous bar, (t, n); NaN at its first bar and without a bar."""
    _check_bars(bars)
    return np.log1p(bars.column("total_return"), where=_has_return(bars), out=np.full(bars.mask.shape, np.nan))


def _has_return(bars: Panel) -> np.ndarray:
    """True at every bar of a symbol except its first one, (t, n)."""
    return bars.mask & (np.cumsum(bars.mask, axis=0) > 1)


def _check_bars(bars: Panel) -> None:
    """Raises FeatureError at the first bar with a missing or impossible number, naming its symbol, time and column."""
    missing = sorted(set(BAR_COLUMNS) - set(bars.columns))
    if missing:
        raise FeatureError(f"bars have no column {', '.join(missing)}; features need {', '.join(BAR_COLUMNS)}")
    with np.errstate(invalid="ignore"):
        for name in BAR_COLUMNS[:6]:
            value = bars.column(name)
            if name == "total_return":
                bad = _has_return(bars) & ~(np.isfinite(value) & (value > -1))
            else:
                bad = bars.mask & ~(np.isfinite(value) & ((value >= 0) if name == "volume" else (value > 0)))
            if bad.any():
                i, j = np.argwhere(bad)[0]
                raise FeatureError(
                    f"{bars.symbols[j]} at {bars.ts[i]}: {name} is {value[i, j]}, "
                    f"and {bad.sum() - 1} more such bars; validate the bars before computing features"
                )


def _bar_index(mask: np.ndarray) -> slice | np.ndarray:
    """The positions of one symbol's bars: a slice (no copy) if they are consecutive, else an integer array."""
    positions = np.flatnonzero(mask)
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        return slice(positions[0], positions[-1] + 1)
    return positions


def _indicators(
    open_: np.ndarray, high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray, log_index: np.ndarray
) -> np.ndarray:
    """INDICATORS of one symbol over its bars, (len(INDICATORS), m)."""
    price = np.exp(log_index)
    scale = price / close
    returns = _lag_difference(log_index, 1)
    macd, macd_signal, macd_histogram = talib.MACD(price, fastperiod=12, slowperiod=26, signalperiod=9)
    upper, middle, lower = talib.BBANDS(price, timeperiod=20, nbdevup=2, nbdevdn=2)
    log_volume = np.log1p(volume)
    # differences of running sums are exactly 0 over bars without volume; TA-Lib's moving sum is not
    flow = _lag_difference(talib.OBV(price, volume), 20)
    traded = _lag_difference(np.cumsum(volume), 20)
    return np.stack(
        (
            returns,
            *(_lag_difference(log_index, k) for k in (5, 20, 60)),
            *(talib.STDDEV(returns, timeperiod=k) for k in (20, 60)),
            talib.RSI(price, timeperiod=14) / 100,
            macd / price,
            macd_signal / price,
            macd_histogram / price,
            _ratio(price - lower, upper - lower, flat=0.5),
            (upper - lower) / middle,
            talib.ATR(high * scale, low * scale, price, timeperiod=14) / price,
            _ratio(flow, traded, flat=0.0),
            _ratio(log_volume - talib.SMA(log_volume, 20), talib.STDDEV(log_volume, 20), flat=0.0),
            (high - low) / close,
            np.log(open_ / close) + returns,
        )
    )


def _lag_difference(x: np.ndarray, k: int) -> np.ndarray:
    """x_t − x_{t−k}, NaN for the first k."""
    out = np.full(len(x), np.nan)
    out[k:] = x[k:] - x[:-k]
    return out


def _ratio(numerator: np.ndarray, denominator: np.ndarray, flat: float) -> np.ndarray:
    """numerator / denominator, and ``flat`` where the denominator is 0; NaN where it is NaN."""
    out = np.where(denominator == 0, flat, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _calendar(ts: np.ndarray, closes: np.ndarray) -> np.ndarray:
    """CALENDAR of each bar's close, (4, t).

    The hour is used only for bars of at most an hour: the UTC close of a daily bar varies only with daylight saving.
    """
    since_monday = closes - MONDAY
    hour = 2 * np.pi * np.where(closes - ts <= HOUR, (since_monday % DAY) / DAY, 0.0)
    weekday = 2 * np.pi * ((since_monday // DAY) % 7) / 7
    return np.stack((np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)))
