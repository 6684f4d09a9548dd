"""Row checks: one function per data rule that no single expectation of great-expectations covers.

A night is the run for one as-of date; its *delta* is the set of received rows that no night has accepted yet. Every
check takes a frame of delta rows and a ``CheckContext``, and returns a boolean mask (n_rows,), True where the row
passes. Delta rows come in any order, one per raw row, with ``ts`` (datetime64[us]) in UTC without a time zone.

The checks of scale, splits, jumps and stale closes read a price series: the delta's closes together with the closes
that earlier nights accepted, sorted by symbol and ts. A bar without a finite positive close is not in the series and
passes these checks. A broken scale may be recognised by later bars of the same delta. Apart from that, a check uses no
bar after the checked one.
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

ROUNDING_TOLERANCE = 1e-6  # fraction of the price; providers round each price separately
STALE_BARS = 5  # consecutive bars with equal closes; the fifth and later bars fail
MAX_ABS_LOG_SPLIT_RATIO = np.log(1000.0)
MAX_DIVIDEND_FRACTION = 0.25  # of the last close before the ex-date
MAX_DIVIDEND_FACTOR = 20.0  # above or below the median of the symbol's earlier dividends
MIN_DIVIDENDS = 3  # earlier dividends that the median needs
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


def has_ordered_prices(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True where high ≥ max(open, close), low ≤ min(open, close) and low ≤ high, each up to a rounding tolerance.

    A comparison with a missing price passes; the rule ``null`` reports missing prices.
    """
    open_, high, low, close = bars[["open", "high", "low", "close"]].to_numpy(dtype=float).T
    max_open_close = np.fmax(open_, close)
    min_open_close = np.fmin(open_, close)
    tolerance = ROUNDING_TOLERANCE * np.abs(max_open_close)
    return ~((high < max_open_close - tolerance) | (low > min_open_close + tolerance) | (high < low - tolerance))


def has_unique_bar_key(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a bar whose key (symbol, interval, ts) occurs once in the delta.

    Of several identical bars, only the first passes. Of several different bars with the same key, none passes.
    """
    return _has_unique_key(bars, ["symbol", "interval", "ts"], ["open", "high", "low", "close", "volume"])


def has_unique_action_key(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for an action whose key (symbol, ex-date, kind) occurs once, by the rule of ``has_unique_bar_key``."""
    return _has_unique_key(actions, ["symbol", "ts", "kind"], ["value"])


def has_unique_settlement_key(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a settlement whose key (symbol, ts) occurs once, by the rule of ``has_unique_bar_key``."""
    return _has_unique_key(funding, ["symbol", "ts"], ["rate"])


def has_universe_interval(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar whose interval (such as 1d) is the interval of the universe."""
    return (bars["interval"] == context.interval).to_numpy(dtype=bool)


def is_on_calendar(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar whose ts is the open of a calendar bar of the checked window.

    A bar that had not closed by the clock passes too; the rule ``future`` reports it.
    """
    return np.isin(bars["ts"].to_numpy(), context.open_times) | ~is_closed(bars, context)


def is_closed(_: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that closes at or before the clock. The frame must be ``context.delta_bars``."""
    return context.close_times <= context.clock


def is_not_after_clock(frame: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a row whose ts is at or before the clock."""
    return frame["ts"].to_numpy() <= context.clock


def is_on_whole_hour(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a settlement on a whole hour. A symbol settles every 1, 2, 4 or 8 hours, which may change over time."""
    ts = funding["ts"].to_numpy()
    return ts == ts.astype("datetime64[h]")


def follows_without_gap(funding: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a settlement at most 8 hours after the symbol's previous settlement.

    The previous settlement may be in the delta or accepted earlier. A symbol's first settlement passes.
    """
    delta = _with_delta_position(funding, ["symbol", "ts"])
    settlements = pd.concat([delta, context.accepted_settlements.assign(delta_position=-1)])
    settlements = settlements.drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    is_late = (settlements.groupby("symbol")["ts"].diff() > MAX_FUNDING_INTERVAL).to_numpy()
    return _pass_mask(settlements, is_late, len(funding))


def is_on_price_scale(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that is on its symbol's price scale and whose high and low are in the unit of its close.

    ``find_off_scale_bars`` defines the scale. A high or low is in another unit when its ratio to the close is a
    currency-unit factor: about 100 or 1000, up or down.
    """
    series = _price_series(bars, context)
    high, low, close = (bars[name].to_numpy(dtype=float) for name in ("high", "low", "close"))
    with np.errstate(all="ignore"):
        has_mixed_units = is_currency_unit_factor(np.log(high / close)) | is_currency_unit_factor(np.log(close / low))
    return _pass_mask(series, find_off_scale_bars(series), len(bars)) & ~has_mixed_units


def is_on_split_scale(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar that does not lie on the rejected side of a split-sized move, see ``find_split_breaks``.

    Bars that ``is_on_price_scale`` rejects on their scale are left out of the series and pass.
    """
    series = _bars_on_scale(_price_series(bars, context))
    return _pass_mask(series, find_split_breaks(series, _all_actions(context)), len(bars))


def has_no_jump(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar whose log return is not an extreme one, see ``find_jumps``.

    Bars that ``is_on_price_scale`` or ``is_on_split_scale`` reject on their scale are left out of the series and pass.
    """
    series = _bars_on_scale(_price_series(bars, context))
    series = with_log_returns(series[~find_split_breaks(series, _all_actions(context))])
    return _pass_mask(series, find_jumps(series), len(bars))


def has_moving_close(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a bar whose close differs from at least one of the symbol's four previous closes.

    A bar with fewer than four previous closes passes.
    """
    series = _price_series(bars, context)
    is_unchanged = series["log_return"] == 0
    n_unchanged = is_unchanged.groupby((~is_unchanged).cumsum()).cumsum()
    return _pass_mask(series, (n_unchanged >= STALE_BARS - 1).to_numpy(), len(bars))


def has_nonzero_volume(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a bar whose volume is not zero; a missing volume (NaN) passes."""
    return (bars["volume"] != 0).to_numpy(dtype=bool)


def has_possible_split_ratio(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """True for a split whose ratio lies in [1/1000, 1000]; every other action passes."""
    with np.errstate(all="ignore"):
        is_too_large = np.abs(np.log(actions["value"].to_numpy(dtype=float))) > MAX_ABS_LOG_SPLIT_RATIO
    return ~(is_too_large & (actions["kind"] == "split").to_numpy(dtype=bool))


def has_possible_dividend(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """True for a dividend per share below the symbol's last close before the ex-date.

    A dividend without such a close, a missing value and every other action pass.
    """
    return ~(_is_dividend(actions) & (actions["value"].to_numpy(dtype=float) >= _close_before(actions, context)))


def has_usual_dividend(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
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
    is_far_from_median = np.abs(np.log((dividends["value"] / earlier_median).to_numpy())) > np.log(MAX_DIVIDEND_FACTOR)
    is_large = value > MAX_DIVIDEND_FRACTION * _close_before(actions, context)
    return _pass_mask(dividends, is_far_from_median, len(actions)) & ~(_is_dividend(actions) & is_large)


def bar_coverage(context: CheckContext, bars: pd.DataFrame) -> pd.DataFrame:
    """One row (symbol, ts, present) per expected bar; ``present`` is True where ``bars`` (symbol, ts) contains it.

    A symbol's bars are expected at ``context.open_times`` from its first bar to the end of its membership. A symbol
    without any bar so far has no rows: its history may begin later.
    """
    ts_by_symbol = {symbol: ts.to_numpy() for symbol, ts in bars.groupby("symbol")["ts"]}
    coverage_frames = []
    for symbol, membership_end in sorted(context.membership_ends.items()):
        if symbol not in context.first_bars:
            continue
        expected = context.open_times[context.open_times >= context.first_bars[symbol]]
        if not np.isnat(membership_end):
            expected = expected[expected < membership_end]
        is_present = np.isin(expected, ts_by_symbol.get(symbol, expected[:0]))
        coverage_frames.append(_coverage_rows(symbol, expected, is_present))
    if not coverage_frames:
        return _coverage_rows("", context.open_times[:0], np.zeros(0, dtype=bool))
    return pd.concat(coverage_frames, ignore_index=True)


def last_bar_coverage(context: CheckContext, coverage: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``coverage`` (a result of ``bar_coverage``) at the last open time of the context.

    When no symbol has ever had a bar, every symbol gets a row with ``present`` False.
    """
    last_open = context.open_times[-1:]  # (1,), or (0,) without any calendar bar
    if not context.first_bars:
        is_present = np.zeros(len(last_open), dtype=bool)
        return pd.concat([_coverage_rows(symbol, last_open, is_present) for symbol in sorted(context.membership_ends)])
    return coverage[np.isin(coverage["ts"].to_numpy(), last_open)].reset_index(drop=True)


def _close_before(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """The symbol's last close before each action's ex-date, NaN without such a close: float (n_rows of actions,)."""
    series = _price_series(context.delta_bars, context)[["symbol", "ts", "close"]].sort_values("ts")
    ex_dates = _with_delta_position(actions, ["symbol", "ts"]).sort_values("ts")
    closes = pd.merge_asof(ex_dates, series, on="ts", by="symbol", allow_exact_matches=False)
    return closes.sort_values("delta_position")["close"].to_numpy(dtype=float)


def _price_series(bars: pd.DataFrame, context: CheckContext) -> pd.DataFrame:
    """The price series of the accepted bars and of the ``bars`` that have the universe's interval."""
    delta = _with_delta_position(bars, ["symbol", "ts", "close"])
    return price_series(delta[has_universe_interval(bars, context)], context.accepted_bars)


def _bars_on_scale(series: pd.DataFrame) -> pd.DataFrame:
    """The series without the bars that are off scale, with log returns between the bars that remain."""
    return with_log_returns(series[~find_off_scale_bars(series)])


def _all_actions(context: CheckContext) -> pd.DataFrame:
    return pd.concat([context.accepted_actions, context.delta_actions])


def _is_dividend(actions: pd.DataFrame) -> np.ndarray:
    return (actions["kind"] == "dividend").to_numpy(dtype=bool)


def _has_unique_key(frame: pd.DataFrame, key: list[str], contents: list[str]) -> np.ndarray:
    """Boolean mask (n_rows,), True for the first row of each key whose rows all have equal contents."""
    is_first = ~frame.duplicated(key + contents)
    n_versions = is_first.groupby([frame[name] for name in key]).transform("sum")
    return (is_first & (n_versions == 1)).to_numpy(dtype=bool)


def _with_delta_position(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """These columns of ``frame``, and ``delta_position``: each row's position in ``frame``, from 0."""
    return frame[columns].assign(delta_position=np.arange(len(frame)))


def _pass_mask(rows: pd.DataFrame, is_failing: np.ndarray, n_delta_rows: int) -> np.ndarray:
    """Boolean mask (n_delta_rows,), False at the ``delta_position`` of the failing ``rows`` and True elsewhere.

    ``is_failing`` is a boolean mask of ``rows``. Failing rows of earlier nights, whose position is -1, are ignored.
    """
    failing_positions = rows["delta_position"].to_numpy()[is_failing]
    passes = np.ones(n_delta_rows, dtype=bool)
    passes[failing_positions[failing_positions >= 0]] = False
    return passes


def _coverage_rows(symbol: str, ts: np.ndarray, is_present: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"symbol": pd.Series([symbol] * len(ts), dtype="str"), "ts": ts, "present": is_present})
