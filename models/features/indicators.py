"""Features of bars: technical indicators, most of them computed by TA-Lib, the calendar, and the funding rate.

Glossary: t bars, n assets, f features, m existing bars of one symbol.

Prices are put on a forward total-return index: 1 at a symbol's first bar, multiplied by 1 + total return at each later
bar. An adjustment backwards from the last bar, as data vendors do it, would change every past row with the next
dividend. The indicators of a symbol are computed on its existing bars alone. Missing bars are skipped and not filled,
because one NaN inside TA-Lib's recursions (EMA, RSI, ATR) makes all later values NaN. Every indicator is independent of
the price level.
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
CALENDAR_FEATURES = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
FEATURES = (*INDICATORS, *CALENDAR_FEATURES, "funding_rate")
FIRST_MONDAY = np.datetime64("1970-01-05T00:00:00", "us")  # after the epoch
RECURSIVE_FUNCTIONS = ("ATR", "EMA", "RSI")  # TA-Lib's process-wide unstable period would change their results


class FeatureError(ValueError):
    """Features, labels or a scaler cannot be computed from these values or settings; the message names the cause."""


def compute_features(bars: Panel, close_times: np.ndarray) -> Panel:
    """The panel of FEATURES on the grid of ``bars``, float64; each row depends only on bars that had closed by then.

    ``bars`` has BAR_COLUMNS. Its ``total_return`` is the simple return since the symbol's previous bar, with dividends
    and splits. ``close_times`` (t,) datetime64, UTC: the close of each bar. A feature is NaN without a bar, while its
    indicator warms up, and for ``funding_rate`` where the bars' funding rate is NaN. Raises FeatureError for a missing
    column and for bars with missing or impossible numbers.
    """
    if any(talib.get_unstable_period(name) for name in RECURSIVE_FUNCTIONS) or talib.get_compatibility():
        raise FeatureError("TA-Lib's unstable period or compatibility was changed in this process; set both back to 0")
    log_index = log_total_return_index(bars)
    t, n = bars.mask.shape
    # the bars of an asset are contiguous in each column, because TA-Lib reads and writes contiguous arrays (m,)
    columns = np.ascontiguousarray(bars.values.transpose(2, 1, 0))  # (f, n, t)
    open_, high, low, close, volume, _, funding_rate = (columns[bars.columns.index(name)] for name in BAR_COLUMNS)
    log_index = np.ascontiguousarray(log_index.T)
    values = np.full((len(FEATURES), n, t), np.nan)
    for j in range(n):
        index = _existing_bars(bars.mask[:, j])
        values[: len(INDICATORS), j, index] = _compute_indicators(
            open_[j, index], high[j, index], low[j, index], close[j, index], volume[j, index], log_index[j, index]
        )
    calendar = _compute_calendar(bars.ts, np.asarray(close_times, dtype="datetime64[us]"))
    values[len(INDICATORS) : -1] = calendar[:, None, :]
    values[-1] = funding_rate
    values[:, ~bars.mask.T] = np.nan
    return Panel(bars.ts, bars.symbols, FEATURES, values.transpose(2, 1, 0), bars.mask)


def log_total_return_index(bars: Panel) -> np.ndarray:
    """Log of the forward total-return index at each close, (t, n): 0 at a symbol's first bar, NaN without a bar."""
    returns = log_returns(bars)
    return np.where(bars.mask, np.cumsum(np.nan_to_num(returns, nan=0.0), axis=0), np.nan)


def log_returns(bars: Panel) -> np.ndarray:
    """Log total return of each bar since the symbol's previous existing bar, (t, n).

    NaN at a symbol's first bar and without a bar. Raises FeatureError for a missing column or an impossible number.
    """
    _check_bars(bars)
    return np.log1p(bars.column("total_return"), where=_has_return(bars), out=np.full(bars.mask.shape, np.nan))


def _has_return(bars: Panel) -> np.ndarray:
    """True at every existing bar of a symbol except its first one, (t, n) bool."""
    return bars.mask & (np.cumsum(bars.mask, axis=0) > 1)


def _check_bars(bars: Panel) -> None:
    """Raises FeatureError for a missing column, and for a missing or impossible number, with its symbol, time, column.

    The funding rate is not checked: it can be missing and can have either sign.
    """
    missing_columns = sorted(set(BAR_COLUMNS) - set(bars.columns))
    if missing_columns:
        raise FeatureError(f"bars have no column {', '.join(missing_columns)}; features need {', '.join(BAR_COLUMNS)}")
    with np.errstate(invalid="ignore"):
        for name in BAR_COLUMNS[:-1]:
            column = bars.column(name)
            if name == "total_return":
                is_invalid = _has_return(bars) & ~(np.isfinite(column) & (column > -1))
            elif name == "volume":
                is_invalid = bars.mask & ~(np.isfinite(column) & (column >= 0))
            else:
                is_invalid = bars.mask & ~(np.isfinite(column) & (column > 0))
            if is_invalid.any():
                i, j = np.argwhere(is_invalid)[0]
                raise FeatureError(
                    f"{bars.symbols[j]} at {bars.ts[i]}: {name} is {column[i, j]}, "
                    f"and {is_invalid.sum() - 1} more such bars; validate the bars before computing features"
                )


def _existing_bars(mask: np.ndarray) -> slice | np.ndarray:
    """The positions of one symbol's existing bars: a slice (no copy) if they are consecutive, else an int array (m,).

    ``mask`` (t,) bool is True where the bar exists.
    """
    positions = np.flatnonzero(mask)
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        return slice(positions[0], positions[-1] + 1)
    return positions


def _compute_indicators(
    open_: np.ndarray, high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray, log_index: np.ndarray
) -> np.ndarray:
    """INDICATORS of one symbol over its existing bars, (len(INDICATORS), m); each argument (m,).

    The prices are not adjusted for dividends. ``log_index`` is the logarithm of the total-return index.
    """
    price = np.exp(log_index)
    scale = price / close
    returns = _lag_difference(log_index, 1)
    macd, macd_signal, macd_histogram = talib.MACD(price, fastperiod=12, slowperiod=26, signalperiod=9)
    upper, middle, lower = talib.BBANDS(price, timeperiod=20, nbdevup=2, nbdevdn=2)
    log_volume = np.log1p(volume)
    # a difference of running sums is exactly 0 over bars without volume; TA-Lib's moving sum is not
    signed_volume = _lag_difference(talib.OBV(price, volume), 20)
    total_volume = _lag_difference(np.cumsum(volume), 20)
    return np.stack(
        (
            returns,
            *(_lag_difference(log_index, k) for k in (5, 20, 60)),
            *(talib.STDDEV(returns, timeperiod=k) for k in (20, 60)),
            talib.RSI(price, timeperiod=14) / 100,
            macd / price,
            macd_signal / price,
            macd_histogram / price,
            _divide(price - lower, upper - lower, if_zero=0.5),
            (upper - lower) / middle,
            talib.ATR(high * scale, low * scale, price, timeperiod=14) / price,
            _divide(signed_volume, total_volume, if_zero=0.0),
            _divide(log_volume - talib.SMA(log_volume, 20), talib.STDDEV(log_volume, 20), if_zero=0.0),
            (high - low) / close,
            np.log(open_ / close) + returns,
        )
    )


def _lag_difference(x: np.ndarray, k: int) -> np.ndarray:
    """x_t − x_{t−k} for x (m,), (m,); NaN for the first k values."""
    out = np.full(len(x), np.nan)
    out[k:] = x[k:] - x[:-k]
    return out


def _divide(numerator: np.ndarray, denominator: np.ndarray, if_zero: float) -> np.ndarray:
    """numerator / denominator where the denominator is above 0, ``if_zero`` where it is 0, NaN elsewhere."""
    out = np.where(denominator == 0, if_zero, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _compute_calendar(open_times: np.ndarray, close_times: np.ndarray) -> np.ndarray:
    """CALENDAR_FEATURES of each bar's close in UTC, (4, t): sine and cosine of the hour's and the weekday's angle.

    The hour's angle is 0 for bars longer than an hour: the close of a daily bar moves only with daylight saving.
    """
    since_monday = close_times - FIRST_MONDAY
    hour_angle = 2 * np.pi * np.where(close_times - open_times <= HOUR, (since_monday % DAY) / DAY, 0.0)
    weekday_angle = 2 * np.pi * ((since_monday // DAY) % 7) / 7
    return np.stack((np.sin(hour_angle), np.cos(hour_angle), np.sin(weekday_angle), np.cos(weekday_angle)))
