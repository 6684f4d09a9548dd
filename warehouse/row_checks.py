"""Boolean columns behind the rules that no single expectation says: True where a row passes.

Frames hold one row per raw row, in any order, ``ts`` in UTC without a zone. Jumps, stale prices and broken scales are
sought in the delta joined with the bars known before it. They look back only, with one exception: a broken scale may
be told by the bars that came after it in the same pull.
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
LARGE_DIVIDEND, DIVIDEND_FACTOR, MIN_DIVIDENDS = 0.25, 20.0, 3
LONGEST_FUNDING_INTERVAL = np.timedelta64(8, "h")


@dataclass(frozen=True)
class CheckContext:
    """What rules may look at beside the rows they judge; nothing in it became known after ``clock``.

    ``opens`` (k,) datetime64[us], ascending: the bar opens of the checked window whose bars had closed by ``clock``.
    ``closed_at`` (rows of the bars delta,): when each of its bars closes; its own ts where it is off the calendar.
    ``memberships``: symbol → end of its membership, NaT while it lasts. ``first_bars``: symbol → the first bar ever
    received. ``bars`` (symbol, ts, close), ``actions`` (symbol, ts, kind, value) and ``settlements`` (symbol, ts): what
    earlier nights accepted. ``delta_bars`` and ``delta_actions``: what this night brought.
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


def ordered(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """High ≥ max(open, close) and low ≤ min(open, close), up to rounding; a missing price is the null rule's."""
    first, high, low, last = bars[["open", "high", "low", "close"]].to_numpy(dtype=float).T
    top, bottom = np.fmax(first, last), np.fmin(first, last)
    slack = ROUNDING * np.abs(top)
    return ~((high < top - slack) | (low > bottom + slack) | (high < low - slack))


def unique_bars(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Keys that came once; of equal repeats the first passes, of contradicting ones none does."""
    return _unique(bars, ["symbol", "interval", "ts"], ["open", "high", "low", "close", "volume"])


def unique_actions(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Like ``unique_bars``, per symbol, ex-date and kind."""
    return _unique(actions, ["symbol", "ts", "kind"], ["value"])


def unique_settlements(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Like ``unique_bars``, per symbol and settlement time."""
    return _unique(funding, ["symbol", "ts"], ["rate"])


def of_interval(bars: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars of the universe's own interval."""
    return (bars["interval"] == evidence.interval).to_numpy(dtype=bool)


def on_grid(bars: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars that open when the calendar says, or that had not closed: those are the future rule's."""
    return np.isin(bars["ts"].to_numpy(), evidence.opens) | ~closed(bars, evidence)


def closed(_: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars that had closed at the clock."""
    return evidence.closed_at <= evidence.clock


def past(frame: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Rows stamped at or before the clock."""
    return frame["ts"].to_numpy() <= evidence.clock


def on_the_hour(funding: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Settlements on a whole hour; the interval itself may be 1, 2, 4 or 8 hours and changes."""
    ts = funding["ts"].to_numpy()
    return ts == ts.astype("datetime64[h]")


def follows_on(funding: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Settlements at most the longest interval after the one before; a symbol's first has none before it."""
    rows = pd.concat([_rows(funding, ["symbol", "ts"]), evidence.settlements.assign(row=-1)])
    rows = rows.drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    late = (rows.groupby("symbol")["ts"].diff() > LONGEST_FUNDING_INTERVAL).to_numpy()
    return _passes(rows["row"].to_numpy()[late], len(funding))


def in_unit(bars: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars on their own symbol's price level, with no high or low a currency unit away from the close."""
    series = _series(bars, evidence)
    high, low, close = (bars[name].to_numpy(dtype=float) for name in ("high", "low", "close"))
    with np.errstate(all="ignore"):
        wick = is_unit(np.log(high / close)) | is_unit(np.log(close / low))
    return _passes(series["row"].to_numpy()[off_scale(series)], len(bars)) & ~wick


def in_split_scale(bars: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars on the right side of every split, among those in their unit: see ``split_breaks``."""
    series = _in_unit(_series(bars, evidence))
    return _passes(series["row"].to_numpy()[split_breaks(series, _actions(evidence))], len(bars))


def no_jump(bars: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars that are no jump among those on the right scale: see ``jumps``."""
    series = _in_unit(_series(bars, evidence))
    series = with_returns(series[~split_breaks(series, _actions(evidence))])
    return _passes(series["row"].to_numpy()[jumps(series)], len(bars))


def moving(bars: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Bars whose close differs from one of the four closes before it."""
    series = _series(bars, evidence)
    still = series["log_return"] == 0
    run = still.groupby((~still).cumsum()).cumsum()
    return _passes(series["row"].to_numpy()[(run >= STALE_BARS - 1).to_numpy()], len(bars))


def traded(bars: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Bars with a volume other than zero."""
    return (bars["volume"] != 0).to_numpy(dtype=bool)


def possible_split(actions: pd.DataFrame, _: CheckContext) -> np.ndarray:
    """Splits of at most 1000 to 1 either way; other actions pass."""
    with np.errstate(all="ignore"):
        far = np.abs(np.log(actions["value"].to_numpy(dtype=float))) > MAX_SPLIT
    return ~(far & (actions["kind"] == "split").to_numpy(dtype=bool))


def possible_dividend(actions: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Dividends below the last close before their ex-date; those without one pass."""
    return ~(_is_dividend(actions) & (actions["value"].to_numpy(dtype=float) >= _close_before(actions, evidence)))


def usual_dividend(actions: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """Dividends up to a quarter of the close before and within a factor of 20 of the median of three or more before."""
    value = actions["value"].to_numpy(dtype=float)
    history = pd.concat([_rows(actions, ["symbol", "ts", "kind", "value"]), evidence.actions.assign(row=-1)])
    history = history[history["kind"] == "dividend"].drop_duplicates(["symbol", "ts"]).sort_values(["symbol", "ts"])
    usual = history.groupby("symbol")["value"].transform(lambda v: v.expanding(MIN_DIVIDENDS).median().shift())
    off = np.abs(np.log((history["value"] / usual).to_numpy())) > np.log(DIVIDEND_FACTOR)
    large = value > LARGE_DIVIDEND * _close_before(actions, evidence)
    return _passes(history["row"].to_numpy()[off], len(actions)) & ~(_is_dividend(actions) & large)


def coverage(evidence: CheckContext, held: pd.DataFrame) -> pd.DataFrame:
    """One row per (symbol, ts) that a full market prints from the symbol's first bar on; ``present`` where it is held.

    ``held`` has the columns symbol and ts. A symbol that never had a bar has no rows: it lists later.
    """
    at = {symbol: ts.to_numpy() for symbol, ts in held.groupby("symbol")["ts"]}
    parts = []
    for symbol, end in sorted(evidence.memberships.items()):
        if symbol in evidence.first_bars:
            grid = evidence.opens[evidence.opens >= evidence.first_bars[symbol]]
            grid = grid if np.isnat(end) else grid[grid < end]
            parts.append(_expected(symbol, grid, np.isin(grid, at.get(symbol, grid[:0]))))
    return pd.concat(parts, ignore_index=True) if parts else _expected("", evidence.opens[:0], np.zeros(0, dtype=bool))


def latest(evidence: CheckContext, covered: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``coverage`` at the last open; all symbols as missing when none has ever had a bar."""
    last = evidence.opens[-1:]
    if not evidence.first_bars:
        return pd.concat([_expected(s, last, np.zeros(len(last), dtype=bool)) for s in sorted(evidence.memberships)])
    return covered[np.isin(covered["ts"].to_numpy(), last)].reset_index(drop=True)


def _close_before(actions: pd.DataFrame, evidence: CheckContext) -> np.ndarray:
    """(rows,) the symbol's last close before each ex-date, NaN without one."""
    series = _series(evidence.delta_bars, evidence)[["symbol", "ts", "close"]].sort_values("ts")
    wanted = _rows(actions, ["symbol", "ts"]).sort_values("ts")
    found = pd.merge_asof(wanted, series, on="ts", by="symbol", allow_exact_matches=False)
    return found.sort_values("row")["close"].to_numpy(dtype=float)


def _series(bars: pd.DataFrame, evidence: CheckContext) -> pd.DataFrame:
    delta = _rows(bars, ["symbol", "ts", "close"])
    return price_series(delta[of_interval(bars, evidence)], evidence.bars)


def _in_unit(series: pd.DataFrame) -> pd.DataFrame:
    return with_returns(series[~off_scale(series)])


def _actions(evidence: CheckContext) -> pd.DataFrame:
    return pd.concat([evidence.actions, evidence.delta_actions])


def _is_dividend(actions: pd.DataFrame) -> np.ndarray:
    return (actions["kind"] == "dividend").to_numpy(dtype=bool)


def _unique(frame: pd.DataFrame, key: list[str], contents: list[str]) -> np.ndarray:
    first = ~frame.duplicated(key + contents)
    versions = first.groupby([frame[name] for name in key]).transform("sum")
    return (first & (versions == 1)).to_numpy(dtype=bool)


def _rows(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return frame[columns].assign(row=np.arange(len(frame)))


def _passes(failing: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) False at the failing delta rows; -1, a row of an earlier night, is nobody's to fail."""
    passes = np.ones(rows, dtype=bool)
    passes[failing[failing >= 0]] = False
    return passes


def _expected(symbol: str, ts: np.ndarray, held: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"symbol": pd.Series([symbol] * len(ts), dtype="str"), "ts": ts, "present": held})
