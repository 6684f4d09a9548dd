"""Row checks: one function per data rule that no single expectation of great-expectations covers.

A night is the run for one as-of date; its *delta* is the set of received rows that no night has accepted yet. Every
check takes a frame of delta rows and a ``CheckContext``, and returns a boolean mask (n_rows,), True where the row
passes. Delta rows come in any order, one per raw row, with ``ts`` in UTC without a time zone.

Checks of the price sequence (scale, splits, jumps, stale closes) look at the delta joined with the bars that earlier
nights accepted. A check uses no bar after the checked one, with one exception: a broken price scale may be recognised
by later bars of the same delta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from warehouse.price_series import (
    find_jumps,
    find_off_scale_bars,
    find_split_breaks,
    is_currency_unit_factor,
    price_series,
    with_log_returns,
)

ROUNDING_TOLERANCE = 1e-6  # fraction of the price; providers round each price on its own
STALE_BARS = 5
MAX_ABS_LOG_SPLIT_RATIO = np.log(1000.0)
MAX_DIVIDEND_FRACTION = 0.25  # of the last close before the ex-date
MAX_DIVIDEND_FACTOR = 20.0  # above or below the median of the symbol's earlier dividends
MIN_DIVIDENDS = 3
MAX_FUNDING_INTERVAL = np.timedelta64(8, "h")


@dataclass(frozen=True)
class CheckContext:
    """What the checks read besides the rows that they check. All of it was received at or before ``clock``.

    All times are datetime64[us] in UTC.

    open_times        (k,) ascending: the opens of all calendar bars of the checked window that had closed by ``clock``
    close_times       (n_rows of delta_bars,): the close of each delta bar; its own ts where ts is off the calendar
    membership_ends   symbol → first instant after its membership in the universe, NaT for a current member
    first_bars        symbol → open of the first bar that was ever received for it
    accepted_*        rows that earlier nights accepted: bars (symbol, ts, close), actions (symbol, ts, kind, value)
                      and funding settlements (symbol, ts)
    delta_*           the rows of this night's delta, with the columns of the checked frames
    """

    clock: np.datetime64
    interval: str
    open_times: np.ndarray
    close_times: np.ndarray
    membership_ends: Mapping[str, np.datetime64]
    first_bars: Mapping[str, np.datetime64]
    accepted_bars: pd.DataFrame
    accepted_actions: pd.DataFrame
    accepted_settlements: pd.DataFrame
    delta_bars: pd.DataFrame
    delta_actions: pd.DataFrame


def ordered_prices(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True where high ≥ max(open, close), low ≤ min(open, close) and low ≤ high, each up to a rounding tolerance.

    A comparison with a missing price passes; the rule ``null`` reports missing prices.
    """
    open_, high, low, close = bars[["open", "high", "low", "close"]].to_numpy(dtype=float).T
    upper = np.fmax(open_, close)
    lower = np.fmin(open_, close)
    tolerance = ROUNDING_TOLERANCE * np.abs(upper)
    return ~((high < upper - tolerance) | (low > lower + tolerance) | (high < low - tolerance))


def unique_bars(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a bar whose key (symbol, interval, ts) occurs once.

    Of several identical bars, only the first passes. Of several different bars with the same key, none passes.
    """
    return _is_unique(bars, ["symbol", "interval", "ts"], ["open", "high", "low", "close", "volume"])


def unique_actions(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for an action whose key (symbol, ex-date, kind) occurs once, by the rule of ``unique_bars``."""
    return _is_unique(actions, ["symbol", "ts", "kind"], ["value"])


def unique_settlements(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a settlement whose key (symbol, ts) occurs once, by the rule of ``unique_bars``."""
    return _is_unique(funding, ["symbol", "ts"], ["rate"])


def bars_of_interval(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar of the universe's own interval."""
    return (bars["interval"] == context.interval).to_numpy(dtype=bool)


def bars_on_grid(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that opens when a bar of the calendar opens.

    A bar that had not closed by the clock passes too; the rule ``future`` reports it.
    """
    return np.isin(bars["ts"].to_numpy(), context.open_times) | ~closed_bars(bars, context)


def closed_bars(_: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that closes at or before the clock. The frame must be ``context.delta_bars``."""
    return context.close_times <= context.clock


def past_rows(frame: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a row whose ts is at or before the clock."""
    return frame["ts"].to_numpy() <= context.clock


def hourly_settlements(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a settlement on a whole hour. A symbol settles every 1, 2, 4 or 8 hours, which may change over time."""
    ts = funding["ts"].to_numpy()
    return ts == ts.astype("datetime64[h]")


def consecutive_settlements(funding: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a settlement at most 8 hours after the symbol's previous one, in the delta or accepted before.

    A symbol's first settlement passes.
    """
    delta = _with_delta_position(funding, ["symbol", "ts"])
    settlements = pd.concat([delta, context.accepted_settlements.assign(delta_position=-1)])
    settlements = settlements.drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    is_late = (settlements.groupby("symbol")["ts"].diff() > MAX_FUNDING_INTERVAL).to_numpy()
    return _pass_mask(settlements, is_late, len(funding))


def bars_in_unit(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that is on its symbol's price scale and whose high and low are in the unit of its close.

    See ``find_off_scale_bars`` for the scale. A high or low is in another unit when its ratio to the close is a
    currency-unit factor (100 or 1000).
    """
    series = _price_series(bars, context)
    high, low, close = (bars[name].to_numpy(dtype=float) for name in ("high", "low", "close"))
    with np.errstate(all="ignore"):
        has_unit_range = is_currency_unit_factor(np.log(high / close)) | is_currency_unit_factor(np.log(close / low))
    return _pass_mask(series, find_off_scale_bars(series), len(bars)) & ~has_unit_range


def bars_in_split_scale(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that ``find_split_breaks`` does not mark.

    Bars that ``bars_in_unit`` rejects on their scale are left out of the series and pass.
    """
    series = _bars_on_scale(_price_series(bars, context))
    return _pass_mask(series, find_split_breaks(series, _all_actions(context)), len(bars))


def bars_without_jump(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that ``find_jumps`` does not mark.

    Bars that ``bars_in_unit`` or ``bars_in_split_scale`` reject on their scale are left out of the series and pass.
    """
    series = _bars_on_scale(_price_series(bars, context))
    series = with_log_returns(series[~find_split_breaks(series, _all_actions(context))])
    return _pass_mask(series, find_jumps(series), len(bars))


def moving_bars(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar whose close differs from at least one of the symbol's four previous closes.

    A bar with fewer than four previous closes passes.
    """
    series = _price_series(bars, context)
    is_unchanged = series["log_return"] == 0
    n_unchanged = is_unchanged.groupby((~is_unchanged).cumsum()).cumsum()
    return _pass_mask(series, (n_unchanged >= STALE_BARS - 1).to_numpy(), len(bars))


def traded_bars(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a bar whose volume is not zero."""
    return (bars["volume"] != 0).to_numpy(dtype=bool)


def possible_splits(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a split whose ratio lies in [1/1000, 1000]; every other action passes."""
    with np.errstate(all="ignore"):
        is_too_large = np.abs(np.log(actions["value"].to_numpy(dtype=float))) > MAX_ABS_LOG_SPLIT_RATIO
    return ~(is_too_large & (actions["kind"] == "split").to_numpy(dtype=bool))


def possible_dividends(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a dividend below the last close before its ex-date, or without such a close; other actions pass."""
    return ~(_is_dividend(actions) & (actions["value"].to_numpy(dtype=float) >= _close_before(actions, context)))


def usual_dividends(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a dividend of usual size; other actions pass.

    A dividend must be at most a quarter of the last close before its ex-date. It must also lie within a factor of 20
    of the median of the symbol's earlier dividends. The second condition needs three earlier dividends.
    """
    value = actions["value"].to_numpy(dtype=float)
    delta = _with_delta_position(actions, ["symbol", "ts", "kind", "value"])
    dividends = pd.concat([delta, context.accepted_actions.assign(delta_position=-1)])
    dividends = dividends[dividends["kind"] == "dividend"]
    dividends = dividends.drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    earlier_median = dividends.groupby("symbol")["value"].transform(
        lambda values: values.expanding(MIN_DIVIDENDS).median().shift()
    )
    is_off_median = np.abs(np.log((dividends["value"] / earlier_median).to_numpy())) > np.log(MAX_DIVIDEND_FACTOR)
    is_large = value > MAX_DIVIDEND_FRACTION * _close_before(actions, context)
    return _pass_mask(dividends, is_off_median, len(actions)) & ~(_is_dividend(actions) & is_large)


def bar_coverage(context: CheckContext, bars: pd.DataFrame) -> pd.DataFrame:
    """One row (symbol, ts, present) per expected bar; ``present`` is True where ``bars`` (symbol, ts) contains it.

    A symbol's bars are expected at ``context.open_times`` from its first bar to the end of its membership. A symbol
    without any bar so far has no rows: its history may begin later.
    """
    ts_by_symbol = {symbol: ts.to_numpy() for symbol, ts in bars.groupby("symbol")["ts"]}
    parts = []
    for symbol, end in sorted(context.membership_ends.items()):
        if symbol not in context.first_bars:
            continue
        expected = context.open_times[context.open_times >= context.first_bars[symbol]]
        if not np.isnat(end):
            expected = expected[expected < end]
        parts.append(_coverage_rows(symbol, expected, np.isin(expected, ts_by_symbol.get(symbol, expected[:0]))))
    if not parts:
        return _coverage_rows("", context.open_times[:0], np.zeros(0, dtype=bool))
    return pd.concat(parts, ignore_index=True)


def last_bar_coverage(context: CheckContext, coverage: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``bar_coverage`` at the last open.

    When no symbol has ever had a bar, every symbol gets a row with ``present`` False.
    """
    last = context.open_times[-1:]
    if not context.first_bars:
        is_present = np.zeros(len(last), dtype=bool)
        return pd.concat([_coverage_rows(symbol, last, is_present) for symbol in sorted(context.membership_ends)])
    return coverage[np.isin(coverage["ts"].to_numpy(), last)].reset_index(drop=True)


def _close_before(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """(n_rows of ``actions``,) the symbol's last close before each ex-date, NaN without one."""
    series = _price_series(context.delta_bars, context)[["symbol", "ts", "close"]].sort_values("ts")
    ex_dates = _with_delta_position(actions, ["symbol", "ts"]).sort_values("ts")
    closes = pd.merge_asof(ex_dates, series, on="ts", by="symbol", allow_exact_matches=False)
    return closes.sort_values("delta_position")["close"].to_numpy(dtype=float)


def _price_series(bars: pd.DataFrame, context: CheckContext) -> pd.DataFrame:
    """The series of the accepted bars and of those ``bars`` that have the universe's interval."""
    delta = _with_delta_position(bars, ["symbol", "ts", "close"])
    return price_series(delta[bars_of_interval(bars, context)], context.accepted_bars)


def _bars_on_scale(series: pd.DataFrame) -> pd.DataFrame:
    """The series without the bars that are off scale, with log returns between the bars that remain."""
    return with_log_returns(series[~find_off_scale_bars(series)])


def _all_actions(context: CheckContext) -> pd.DataFrame:
    return pd.concat([context.accepted_actions, context.delta_actions])


def _is_dividend(actions: pd.DataFrame) -> np.ndarray:
    return (actions["kind"] == "dividend").to_numpy(dtype=bool)


def _is_unique(frame: pd.DataFrame, key: list[str], contents: list[str]) -> np.ndarray:
    """Boolean mask (n_rows,), True for the first of the rows with one key when their contents are all equal."""
    is_first = ~frame.duplicated(key + contents)
    n_versions = is_first.groupby([frame[name] for name in key]).transform("sum")
    return (is_first & (n_versions == 1)).to_numpy(dtype=bool)


def _with_delta_position(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """These columns of ``frame``, and ``delta_position``: each row's position in ``frame``, from 0."""
    return frame[columns].assign(delta_position=np.arange(len(frame)))


def _pass_mask(rows: pd.DataFrame, is_failing: np.ndarray, n_delta_rows: int) -> np.ndarray:
    """Boolean mask (n_delta_rows,), False at the ``delta_position`` of the failing ``rows``.

    Failing rows of earlier nights, whose position is -1, are ignored.
    """
    failing_positions = rows["delta_position"].to_numpy()[is_failing]
    passes = np.ones(n_delta_rows, dtype=bool)
    passes[failing_positions[failing_positions >= 0]] = False
    return passes


def _coverage_rows(symbol: str, ts: np.ndarray, is_present: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"symbol": pd.Series([symbol] * len(ts), dtype="str"), "ts": ts, "present": is_present})
