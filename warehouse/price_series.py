"""Closes of each symbol in order of time, and the faults of their sequence: broken scales and jumps.

A series has one row per (symbol, ts), sorted: ``symbol``, ``ts``, ``close`` (finite, positive), ``row`` (position in
the night's delta, -1 for a bar an earlier night accepted) and ``log_return`` (NaN on a symbol's first bar).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

RETURN_WINDOW = 60
MIN_RETURNS = 20
JUMP_DEVIATIONS = 12.0
MIN_DEVIATION = 0.001  # log return; without it every tick of a symbol that hardly moves would be a jump
SPIKE = np.log(5.0)
UNITS = np.log([100.0, 1000.0])  # pence for pounds, fils for dinars
UNIT_TOLERANCE = np.log(1.5)  # the market's own move on top of the factor
SPIKE_BARS = 20
REVERSION = 0.25  # of the smaller of the two moves
SPLIT_BARS = 10  # providers put the break a few bars off the ex-date
SPLIT_TOLERANCE = 0.1
MIN_SPLIT = np.log(1.2)


def price_series(delta: pd.DataFrame, accepted: pd.DataFrame) -> pd.DataFrame:
    """The series of the delta's bars (symbol, ts, close, row) and those accepted by earlier nights (symbol, ts, close).

    Of a bar in both, the delta's.
    """
    series = pd.concat([delta[["symbol", "ts", "close", "row"]], accepted[["symbol", "ts", "close"]].assign(row=-1)])
    series = series[(series["close"] > 0) & np.isfinite(series["close"])].drop_duplicates(["symbol", "ts"])
    return with_returns(series.sort_values(["symbol", "ts"]))


def with_returns(series: pd.DataFrame) -> pd.DataFrame:
    """The series with each bar's log return from the bar before it in the series."""
    moves = np.log(series["close"]).groupby(series["symbol"]).diff()
    return series.assign(log_return=moves).reset_index(drop=True)


def off_scale(series: pd.DataFrame) -> np.ndarray:
    """(rows of the series,) True for bars on a wrong level: in a spike, or on the wrong side of a currency-unit break.

    A spike is a move by a factor of 5 or more that the next such move reverts within 20 bars (at any time for factors
    of 100 and 1000). It lasts from the first move to the one that reverts it. A break by 100 or 1000 that is not
    reverted marks the shorter side, or the newer side when older bars are published already.
    """
    moves = series["log_return"].to_numpy()
    rows = series["row"].to_numpy()
    off = np.zeros(len(series), dtype=bool)
    for start, stop in _spans(series).values():
        big = start + np.flatnonzero(np.abs(moves[start:stop]) >= SPIKE)
        k = 0
        while k < len(big):
            first = big[k]
            is_unit_move = is_unit(moves[first])
            following = big[k + 1] if k + 1 < len(big) else stop
            is_spike = following < stop and _reverts(moves[first], moves[following])
            if is_spike and (is_unit_move or following - first <= SPIKE_BARS):
                off[first:following] = True
                k += 1
            elif is_unit_move:
                off[_wrong_side(rows, start, first, stop)] = True
            k += 1
    return off


def split_breaks(series: pd.DataFrame, actions: pd.DataFrame) -> np.ndarray:
    """(rows of the series,) True for bars on the wrong side of a move by the ratio of a split within ten bars.

    Received prices are split-adjusted, so a split must leave no such move. When a later move within those ten bars
    reverts it, the bars between the two are marked; otherwise one side is, chosen as in ``off_scale``.
    """
    moves, ts, rows = (series[name].to_numpy() for name in ("log_return", "ts", "row"))
    broken = np.zeros(len(series), dtype=bool)
    spans = _spans(series)
    splits = actions[(actions["kind"] == "split") & (actions["value"] > 0) & actions["symbol"].isin(list(spans))]
    for symbol, day, ratio in zip(splits["symbol"], splits["ts"].to_numpy(), splits["value"], strict=True):
        start, stop = spans[symbol]
        size = abs(np.log(ratio))
        if size < MIN_SPLIT or day < ts[start]:
            continue
        near = start + int(np.searchsorted(ts[start:stop], day))
        window = np.arange(max(start, near - SPLIT_BARS), min(stop, near + SPLIT_BARS + 1))
        hits = window[np.abs(np.abs(moves[window]) - size) <= SPLIT_TOLERANCE * size]
        if len(hits):
            reverting = [bar for bar in window[window > hits[0]] if _reverts(moves[hits[0]], moves[bar])]
            broken[slice(hits[0], reverting[0]) if reverting else _wrong_side(rows, start, hits[0], stop)] = True
    return broken


def jumps(series: pd.DataFrame) -> np.ndarray:
    """(rows of the series,) True where a return is over 12 scaled median absolute deviations off the median of the 60
    returns before it, or is a move by a factor of 5 or more. With fewer than 20 returns before it, only the second
    condition counts.
    """
    moves = series["log_return"].to_numpy()
    is_jump = np.abs(moves) >= SPIKE
    for start, stop in _spans(series).values():
        is_jump[start:stop] |= _is_outlier(moves[start:stop])
    return is_jump


def is_unit(move: np.ndarray | float) -> np.ndarray:
    """True where a log move is by a currency unit (a factor of 100 or 1000), give or take a day's usual move."""
    return (np.abs(np.abs(np.asarray(move)[..., None]) - UNITS) <= UNIT_TOLERANCE).any(axis=-1)


def _is_outlier(moves: np.ndarray) -> np.ndarray:
    """(bars of one symbol,) True where a return is an outlier among the returns before it."""
    first = MIN_RETURNS + 1  # moves[0] is NaN
    if len(moves) <= first:
        return np.zeros(len(moves), dtype=bool)
    padded = np.concatenate([np.full(RETURN_WINDOW, np.nan), moves])
    before = np.lib.stride_tricks.sliding_window_view(padded, RETURN_WINDOW)[first : len(moves)]
    center = np.nanmedian(before, axis=1)
    deviation = 1.4826 * np.nanmedian(np.abs(before - center[:, None]), axis=1)
    far = np.abs(moves[first:] - center) > JUMP_DEVIATIONS * np.maximum(deviation, MIN_DEVIATION)
    return np.concatenate([np.zeros(first, dtype=bool), far])


def _wrong_side(rows: np.ndarray, start: int, break_at: int, stop: int) -> slice:
    """The shorter side of a break; the newer one when older bars are published, for those cannot be withdrawn."""
    is_unpublished = bool((rows[start:break_at] >= 0).all())
    is_older_shorter = break_at - start < stop - break_at
    return slice(start, break_at) if is_unpublished and is_older_shorter else slice(break_at, stop)


def _reverts(move: float, later: float) -> bool:
    """True when a later move undoes a move, up to a quarter of the smaller of the two."""
    return move * later < 0 and abs(move + later) <= REVERSION * min(abs(move), abs(later))


def _spans(series: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Symbol → positions [start, stop) of its rows in the series."""
    symbols = series["symbol"].to_numpy()
    if not len(symbols):
        return {}
    starts = np.flatnonzero(np.concatenate([[True], symbols[1:] != symbols[:-1]]))
    return {symbols[a]: (int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(symbols)], strict=True)}
