"""The closes of each symbol as a time series, and two faults of such a series: wrong price scales and jumps.

A night is the run for one as-of date. Its *delta* is the set of received rows that no night has accepted yet. A series
is a data frame with one row per (symbol, ts), sorted by these two columns. Its other columns are ``close`` (finite and
positive), ``delta_position`` (position of the bar in the delta, -1 for a bar that an earlier night accepted) and
``log_return`` (log of the close over the symbol's previous close in the series, NaN on the symbol's first bar).

Constants with LOG in their names are natural logs, so that they compare with log returns.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

RETURN_WINDOW = 60  # bars
MIN_RETURNS = 20  # earlier log returns that a jump needs
MIN_JUMP_DEVIATIONS = 12.0  # in scaled MADs
MAD_SCALE = 1.4826  # makes the median absolute deviation (MAD) of normal data equal their standard deviation
MIN_SCALED_MAD = 0.001  # log return; without it every tick of a symbol that hardly moves would be a jump
MIN_ABS_SPIKE_LOG_RETURN = np.log(5.0)
LOG_UNIT_FACTORS = np.log([100.0, 1000.0])  # pence for pounds, fils for dinars
LOG_UNIT_FACTOR_TOLERANCE = np.log(1.5)  # room for the market's own move on top of the factor
MAX_SPIKE_BARS = 20
MAX_REVERSION_GAP = 0.25  # fraction of the smaller of the two moves
MAX_BARS_FROM_EX_DATE = 10  # providers put the break a few bars before or after the ex-date
SPLIT_RELATIVE_TOLERANCE = 0.1  # fraction of the split's absolute log ratio
MIN_ABS_LOG_SPLIT_RATIO = np.log(1.2)


def price_series(delta: pd.DataFrame, accepted: pd.DataFrame) -> pd.DataFrame:
    """The series of the delta's bars and of the bars that earlier nights accepted.

    ``delta`` has the columns symbol, ts, close and delta_position; ``accepted`` has symbol, ts and close. Bars whose
    close is NaN, infinite or not positive are dropped first. Where both frames then have a bar of the same symbol and
    ts, the series contains the bar of ``delta``.
    """
    columns = ["symbol", "ts", "close"]
    series = pd.concat([delta[[*columns, "delta_position"]], accepted[columns].assign(delta_position=-1)])
    series = series[(series["close"] > 0) & np.isfinite(series["close"])].drop_duplicates(["symbol", "ts"])
    return with_log_returns(series.sort_values(["symbol", "ts"]))


def with_log_returns(series: pd.DataFrame) -> pd.DataFrame:
    """The series with ``log_return`` computed from its consecutive closes, and a new index from 0."""
    log_returns = np.log(series["close"]).groupby(series["symbol"]).diff()
    return series.assign(log_return=log_returns).reset_index(drop=True)


def find_off_scale_bars(series: pd.DataFrame) -> np.ndarray:
    """Boolean mask (n_rows,), True where a bar lies in a spike or on the rejected side of a currency-unit break.

    A large move is a log return of at least ``MIN_ABS_SPIKE_LOG_RETURN`` in absolute value: a factor of 5 up or down. A
    spike runs from a large move up to, but without, the next large move, which must revert the first. A spike lasts at
    most 20 bars, unless its first move is a currency-unit factor (100 or 1000): then its length is not limited.

    A currency-unit break is a move by such a factor that the next large move does not revert. It rejects the shorter
    side of the symbol's series. When an earlier night accepted one of the older bars, or both sides are equally long,
    it rejects the newer side.
    """
    log_returns = series["log_return"].to_numpy()
    delta_positions = series["delta_position"].to_numpy()
    is_off_scale = np.zeros(len(series), dtype=bool)
    for start, stop in _symbol_ranges(series).values():
        move_rows = start + np.flatnonzero(np.abs(log_returns[start:stop]) >= MIN_ABS_SPIKE_LOG_RETURN)
        k = 0
        while k < len(move_rows):
            move_row = move_rows[k]
            is_unit_move = is_currency_unit_factor(log_returns[move_row])
            next_move_row = move_rows[k + 1] if k + 1 < len(move_rows) else stop
            is_reverted = next_move_row < stop and _is_reverted(log_returns[move_row], log_returns[next_move_row])
            if is_reverted and (is_unit_move or next_move_row - move_row <= MAX_SPIKE_BARS):
                is_off_scale[move_row:next_move_row] = True
                k += 1
            elif is_unit_move:
                is_off_scale[_rejected_side(delta_positions, start, move_row, stop)] = True
            k += 1
    return is_off_scale


def find_split_breaks(series: pd.DataFrame, actions: pd.DataFrame) -> np.ndarray:
    """Boolean mask (n_rows,), True where a bar lies on the rejected side of a move by the ratio of a split.

    ``actions`` has the columns symbol, ts (the ex-date), kind and value; only splits with a positive value are read.
    Received prices are split-adjusted, so no bar within ten bars of the ex-date may move by the split's ratio. The
    first such move is the break. When a later move within those ten bars reverts it, the bars between the two moves
    are marked. Otherwise one side of the break is rejected, by the rule of ``find_off_scale_bars``.

    Splits by a factor below 1.2 and splits before the symbol's first bar are ignored.
    """
    log_returns = series["log_return"].to_numpy()
    ts = series["ts"].to_numpy()
    delta_positions = series["delta_position"].to_numpy()
    is_broken = np.zeros(len(series), dtype=bool)
    ranges = _symbol_ranges(series)
    splits = actions[(actions["kind"] == "split") & (actions["value"] > 0) & actions["symbol"].isin(list(ranges))]
    for symbol, ex_date, ratio in zip(splits["symbol"], splits["ts"].to_numpy(), splits["value"], strict=True):
        start, stop = ranges[symbol]
        abs_log_ratio = abs(np.log(ratio))
        if abs_log_ratio < MIN_ABS_LOG_SPLIT_RATIO or ex_date < ts[start]:
            continue
        ex_row = start + int(np.searchsorted(ts[start:stop], ex_date))
        window_rows = np.arange(
            max(start, ex_row - MAX_BARS_FROM_EX_DATE), min(stop, ex_row + MAX_BARS_FROM_EX_DATE + 1)
        )
        ratio_gap = np.abs(np.abs(log_returns[window_rows]) - abs_log_ratio)
        matching_rows = window_rows[ratio_gap <= SPLIT_RELATIVE_TOLERANCE * abs_log_ratio]
        if not len(matching_rows):
            continue
        break_row = matching_rows[0]
        later_rows = window_rows[window_rows > break_row]
        reverting_rows = [row for row in later_rows if _is_reverted(log_returns[break_row], log_returns[row])]
        if reverting_rows:
            is_broken[break_row : reverting_rows[0]] = True
        else:
            is_broken[_rejected_side(delta_positions, start, break_row, stop)] = True
    return is_broken


def find_jumps(series: pd.DataFrame) -> np.ndarray:
    """Boolean mask (n_rows,), True where a bar's log return is a jump.

    A move by a factor of 5 or more is a jump. So is a log return that lies more than 12 scaled median absolute
    deviations from the median of the 60 log returns before it. The second condition needs at least 20 earlier returns
    of the symbol; between 20 and 60, it uses all of them. A symbol's first bar is no jump.
    """
    log_returns = series["log_return"].to_numpy()
    is_jump = np.abs(log_returns) >= MIN_ABS_SPIKE_LOG_RETURN
    for start, stop in _symbol_ranges(series).values():
        is_jump[start:stop] |= _is_outlier(log_returns[start:stop])
    return is_jump


def is_currency_unit_factor(log_return: np.ndarray | float) -> np.ndarray:
    """Boolean mask of the argument's shape, True where a log return is a factor of 100 or 1000, up or down.

    A deviation from either factor by up to another factor of 1.5 is allowed.
    """
    distance = np.abs(np.abs(np.asarray(log_return)[..., None]) - LOG_UNIT_FACTORS)
    return (distance <= LOG_UNIT_FACTOR_TOLERANCE).any(axis=-1)


def _is_outlier(log_returns: np.ndarray) -> np.ndarray:
    """Boolean mask (n_bars,) of one symbol's log returns, True where a return is an outlier by ``find_jumps``."""
    first_judged = MIN_RETURNS + 1  # log_returns[0] is NaN
    if len(log_returns) <= first_judged:
        return np.zeros(len(log_returns), dtype=bool)
    padded = np.concatenate([np.full(RETURN_WINDOW, np.nan), log_returns])
    earlier_returns = np.lib.stride_tricks.sliding_window_view(padded, RETURN_WINDOW)[first_judged : len(log_returns)]
    median = np.nanmedian(earlier_returns, axis=1)
    scaled_mad = MAD_SCALE * np.nanmedian(np.abs(earlier_returns - median[:, None]), axis=1)
    threshold = MIN_JUMP_DEVIATIONS * np.maximum(scaled_mad, MIN_SCALED_MAD)
    is_outlier = np.abs(log_returns[first_judged:] - median) > threshold
    return np.concatenate([np.zeros(first_judged, dtype=bool), is_outlier])


def _rejected_side(delta_positions: np.ndarray, start: int, break_row: int, stop: int) -> slice:
    """Rows of the rejected side of the break before ``break_row``; the symbol's rows are [start, stop).

    The shorter side is rejected. The newer side is rejected when both are equally long, or when an earlier night
    accepted one of the older bars: accepted bars are published and cannot be withdrawn.
    """
    is_older_side_in_delta = bool((delta_positions[start:break_row] >= 0).all())
    is_older_side_shorter = break_row - start < stop - break_row
    return slice(start, break_row) if is_older_side_in_delta and is_older_side_shorter else slice(break_row, stop)


def _is_reverted(log_return: float, later: float) -> bool:
    """True when the log return ``later`` reverts ``log_return``.

    The two have opposite signs, and their sum is at most a quarter of the smaller one, all in absolute value.
    """
    return log_return * later < 0 and abs(log_return + later) <= MAX_REVERSION_GAP * min(abs(log_return), abs(later))


def _symbol_ranges(series: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Symbol → the range [start, stop) of its rows in the series."""
    symbols = series["symbol"].to_numpy()
    if not len(symbols):
        return {}
    starts = np.flatnonzero(np.concatenate([[True], symbols[1:] != symbols[:-1]]))
    stops = [*starts[1:], len(symbols)]
    return {symbols[start]: (int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)}
