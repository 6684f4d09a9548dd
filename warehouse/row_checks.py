"""Boolean columns for the rules that no single expectation covers: True where a row passes.

Frames contain one row per raw row, in any order, ``ts`` in UTC without a zone. Jumps, stale prices and broken scales
are looked for in the delta joined with the bars accepted before it. The checks read earlier bars only, with one
exception: a broken scale may be recognised by the bars after it in the same pull.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from warehouse.price_series import is_unit, jumps, off_scale, price_series, split_breaks, with_returns

ROUNDING = 1e-6  # providers round each price on its own
STALE_BARS = 5
MAX_SPLIT = np.log(1000.0)
LARGE_DIVIDEND = 0.25  # of the close before
DIVIDEND_FACTOR = 20.0  # off the usual dividend
MIN_DIVIDENDS = 3
LONGEST_FUNDING_INTERVAL = np.timedelta64(8, "h")


@dataclass(frozen=True)
class CheckContext:
    """The data that rules read besides the rows they check. None of it was received after ``clock``.

    ``opens`` (k,) datetime64[us], ascending: the bar opens of the checked window whose bars had closed by ``clock``.
    ``closed_at`` (rows of the bars delta,): when each of its bars closes; its own ts where it is off the calendar.
    ``memberships``: symbol → end of its membership, NaT while it lasts. ``first_bars``: symbol → the first bar ever
    received. ``bars`` (symbol, ts, close), ``actions`` (symbol, ts, kind, value) and ``settlements`` (symbol, ts): rows
    that earlier nights accepted. ``delta_bars`` and ``delta_actions``: rows that this night received.
    """

    clock: np.datetime64
    interval: str
    opens: np.ndarray
    closed_at: np.ndarray
    memberships: Mapping[str, np.datetime64]
    first_bars: Mapping[str, np.datetime64]
    bars: pd.DataFrame
    actions: pd.DataFrame
    settlements: pd.DataFrame
    delta_bars: pd.DataFrame
    delta_actions: pd.DataFrame


def ordered_prices(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """High ≥ max(open, close) and low ≤ min(open, close), up to rounding; a missing price passes (rule ``null``)."""
    first, high, low, last = bars[["open", "high", "low", "close"]].to_numpy(dtype=float).T
    top = np.fmax(first, last)
    bottom = np.fmin(first, last)
    slack = ROUNDING * np.abs(top)
    return ~((high < top - slack) | (low > bottom + slack) | (high < low - slack))


def unique_bars(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Bars whose key came once; of identical repeats the first passes, of contradicting ones none."""
    return _unique_rows(bars, ["symbol", "interval", "ts"], ["open", "high", "low", "close", "volume"])


def unique_actions(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Like ``unique_bars``, per symbol, ex-date and kind."""
    return _unique_rows(actions, ["symbol", "ts", "kind"], ["value"])


def unique_settlements(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Like ``unique_bars``, per symbol and settlement time."""
    return _unique_rows(funding, ["symbol", "ts"], ["rate"])


def bars_of_interval(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars of the universe's own interval."""
    return (bars["interval"] == context.interval).to_numpy(dtype=bool)


def bars_on_grid(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars that open at an open of the calendar, or that had not closed by the clock (rule ``future``)."""
    return np.isin(bars["ts"].to_numpy(), context.opens) | ~closed_bars(bars, context)


def closed_bars(_: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars that had closed by the clock."""
    return context.closed_at <= context.clock


def past_rows(frame: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Rows stamped at or before the clock."""
    return frame["ts"].to_numpy() <= context.clock


def hourly_settlements(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Settlements on a whole hour. The interval between settlements is 1, 2, 4 or 8 hours and changes."""
    ts = funding["ts"].to_numpy()
    return ts == ts.astype("datetime64[h]")


def consecutive_settlements(funding: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Settlements at most the longest interval after the previous one; a symbol's first passes."""
    rows = pd.concat([_rows(funding, ["symbol", "ts"]), context.settlements.assign(row=-1)])
    rows = rows.drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    late = (rows.groupby("symbol")["ts"].diff() > LONGEST_FUNDING_INTERVAL).to_numpy()
    return _passes(rows["row"].to_numpy()[late], len(funding))


def bars_in_unit(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars on the price level of their symbol, with no high or low a currency unit away from the close."""
    series = _series(bars, context)
    high, low, close = (bars[name].to_numpy(dtype=float) for name in ("high", "low", "close"))
    with np.errstate(all="ignore"):
        has_unit_range = is_unit(np.log(high / close)) | is_unit(np.log(close / low))
    return _passes(series["row"].to_numpy()[off_scale(series)], len(bars)) & ~has_unit_range


def bars_in_split_scale(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars on the right side of every split, among the bars on their price level: see ``split_breaks``."""
    series = _bars_on_scale(_series(bars, context))
    return _passes(series["row"].to_numpy()[split_breaks(series, _actions(context))], len(bars))


def bars_without_jump(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars that are no jump, among the bars on the right scale: see ``jumps``."""
    series = _bars_on_scale(_series(bars, context))
    series = with_returns(series[~split_breaks(series, _actions(context))])
    return _passes(series["row"].to_numpy()[jumps(series)], len(bars))


def moving_bars(bars: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Bars whose close differs from at least one of the four closes before it."""
    series = _series(bars, context)
    is_unchanged = series["log_return"] == 0
    run_length = is_unchanged.groupby((~is_unchanged).cumsum()).cumsum()
    return _passes(series["row"].to_numpy()[(run_length >= STALE_BARS - 1).to_numpy()], len(bars))


def traded_bars(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Bars with a volume other than zero."""
    return (bars["volume"] != 0).to_numpy(dtype=bool)


def possible_splits(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Splits of at most 1000 to 1 or 1 to 1000; other actions pass."""
    with np.errstate(all="ignore"):
        is_too_large = np.abs(np.log(actions["value"].to_numpy(dtype=float))) > MAX_SPLIT
    return ~(is_too_large & (actions["kind"] == "split").to_numpy(dtype=bool))


def possible_dividends(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Dividends below the last close before their ex-date; without such a close they pass."""
    return ~(_is_dividend(actions) & (actions["value"].to_numpy(dtype=float) >= _close_before(actions, context)))


def usual_dividends(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """Dividends of at most a quarter of the close before, within a factor of 20 of the median of the dividends before.

    With fewer than three dividends before, only the first condition counts.
    """
    value = actions["value"].to_numpy(dtype=float)
    history = pd.concat([_rows(actions, ["symbol", "ts", "kind", "value"]), context.actions.assign(row=-1)])
    history = history[history["kind"] == "dividend"].drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    usual = history.groupby("symbol")["value"].transform(lambda v: v.expanding(MIN_DIVIDENDS).median().shift())
    is_off = np.abs(np.log((history["value"] / usual).to_numpy())) > np.log(DIVIDEND_FACTOR)
    is_large = value > LARGE_DIVIDEND * _close_before(actions, context)
    return _passes(history["row"].to_numpy()[is_off], len(actions)) & ~(_is_dividend(actions) & is_large)


def coverage(context: CheckContext, held: pd.DataFrame) -> pd.DataFrame:
    """One row per expected bar (symbol, ts), from the symbol's first bar on; ``present`` is True where ``held`` has it.

    ``held`` has the columns symbol and ts. A symbol that never had a bar has no rows: it is listed later.
    """
    held_ts = {symbol: ts.to_numpy() for symbol, ts in held.groupby("symbol")["ts"]}
    parts = []
    for symbol, end in sorted(context.memberships.items()):
        if symbol in context.first_bars:
            grid = context.opens[context.opens >= context.first_bars[symbol]]
            grid = grid if np.isnat(end) else grid[grid < end]
            parts.append(_expected(symbol, grid, np.isin(grid, held_ts.get(symbol, grid[:0]))))
    return pd.concat(parts, ignore_index=True) if parts else _expected("", context.opens[:0], np.zeros(0, dtype=bool))


def latest(context: CheckContext, covered: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``coverage`` at the last open; every symbol as missing when none has ever had a bar."""
    last = context.opens[-1:]
    if not context.first_bars:
        return pd.concat([_expected(s, last, np.zeros(len(last), dtype=bool)) for s in sorted(context.memberships)])
    return covered[np.isin(covered["ts"].to_numpy(), last)].reset_index(drop=True)


def _close_before(actions: pd.DataFrame, context: CheckContext) -> np.ndarray:
    """(rows,) the symbol's last close before each ex-date, NaN without one."""
    series = _series(context.delta_bars, context)[["symbol", "ts", "close"]].sort_values("ts")
    dates = _rows(actions, ["symbol", "ts"]).sort_values("ts")
    closes = pd.merge_asof(dates, series, on="ts", by="symbol", allow_exact_matches=False)
    return closes.sort_values("row")["close"].to_numpy(dtype=float)


def _series(bars: pd.DataFrame, context: CheckContext) -> pd.DataFrame:
    delta = _rows(bars, ["symbol", "ts", "close"])
    return price_series(delta[bars_of_interval(bars, context)], context.bars)


def _bars_on_scale(series: pd.DataFrame) -> pd.DataFrame:
    return with_returns(series[~off_scale(series)])


def _actions(context: CheckContext) -> pd.DataFrame:
    return pd.concat([context.actions, context.delta_actions])


def _is_dividend(actions: pd.DataFrame) -> np.ndarray:
    return (actions["kind"] == "dividend").to_numpy(dtype=bool)


def _unique_rows(frame: pd.DataFrame, key: list[str], contents: list[str]) -> np.ndarray:
    is_first = ~frame.duplicated(key + contents)
    versions = is_first.groupby([frame[name] for name in key]).transform("sum")
    return (is_first & (versions == 1)).to_numpy(dtype=bool)


def _rows(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The columns, with the position of each row in ``frame`` as ``row``."""
    return frame[columns].assign(row=np.arange(len(frame)))


def _passes(failing: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) False at the failing delta rows; -1, a row of an earlier night, is ignored."""
    passes = np.ones(rows, dtype=bool)
    passes[failing[failing >= 0]] = False
    return passes


def _expected(symbol: str, ts: np.ndarray, held: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"symbol": pd.Series([symbol] * len(ts), dtype="str"), "ts": ts, "present": held})
