"""Closes of each symbol in order, and what is wrong with their sequence: broken scales and jumps.

A series has one row per (symbol, ts), sorted: ``symbol``, ``ts``, ``close`` (finite, positive), ``row`` (position in
the night's delta, -1 for a bar an earlier night accepted) and ``log_return`` (NaN on a symbol's first bar).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

RETURN_WINDOW, MIN_RETURNS = 60, 20
JUMP_DEVIATIONS = 12.0
MIN_DEVIATION = 0.001  # log return; without it every tick of a symbol that hardly moves would be a jump
SPIKE = np.log(5.0)
UNITS = np.log([100.0, 1000.0])  # pence for pounds, fils for dinars
UNIT_TOLERANCE = np.log(1.5)  # the market's own move on top of the factor
SPIKE_BARS = 20
REVERSION = 0.25  # of the smaller of the two moves
SPLIT_BARS, SPLIT_TOLERANCE = 10, 0.1  # providers put the break a few bars off the ex-date
MIN_SPLIT = np.log(1.2)


def price_series(delta: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The series of the delta's bars (symbol, ts, close, row) and the known ones; of a bar in both, the delta's."""
    series = pd.concat([delta[["symbol", "ts", "close", "row"]], known[["symbol", "ts", "close"]].assign(row=-1)])
    series = series[(series["close"] > 0) & np.isfinite(series["close"])].drop_duplicates(["symbol", "ts"])
    return with_returns(series.sort_values(["symbol", "ts"]))


def with_returns(series: pd.DataFrame) -> pd.DataFrame:
    """The series with each bar's log return from the bar before it in the series."""
    moves = np.log(series["close"]).groupby(series["symbol"]).diff()
    return series.assign(log_return=moves).reset_index(drop=True)


def off_scale(series: pd.DataFrame) -> np.ndarray:
    """(rows of the series,) True for bars on a wrong level: a spike up to its way back, or a break by a currency unit.

    A spike is a move by 5 or more that the next such move takes back within 20 bars (any time for 100 and 1000). A
    break by 100 or 1000 that stays condemns the shorter side; the newer one when older bars are published already.
    """
    moves, rows = series["log_return"].to_numpy(), series["row"].to_numpy()
    off = np.zeros(len(series), dtype=bool)
    for start, stop in _spans(series).values():
        big = start + np.flatnonzero(np.abs(moves[start:stop]) >= SPIKE)
        k = 0
        while k < len(big):
            here, unit = big[k], is_unit(moves[big[k]])
            back = big[k + 1] if k + 1 < len(big) else stop
            if back < stop and _takes_back(moves[here], moves[back]) and (unit or back - here <= SPIKE_BARS):
                off[here:back] = True
                k += 1
            elif unit:
                off[_wrong_side(rows, start, here, stop)] = True
            k += 1
    return off


def split_breaks(series: pd.DataFrame, actions: pd.DataFrame) -> np.ndarray:
    """(rows of the series,) True from a move by the ratio of a split within ten bars to its way back, or on one side.

    Received prices are split-adjusted, so a split must leave no trace. Sides as in ``off_scale``.
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
            back = [bar for bar in window[window > hits[0]] if _takes_back(moves[hits[0]], moves[bar])]
            broken[slice(hits[0], back[0]) if back else _wrong_side(rows, start, hits[0], stop)] = True
    return broken


def jumps(series: pd.DataFrame) -> np.ndarray:
    """(rows of the series,) True where a return is over 12 scaled median absolute deviations off the median of the 60
    returns before it, or is a move by 5 or more; under 20 returns before it only the latter counts.
    """
    moves = series["log_return"].to_numpy()
    beyond = np.abs(moves) >= SPIKE
    for start, stop in _spans(series).values():
        beyond[start:stop] |= _beyond(moves[start:stop])
    return beyond


def is_unit(move: np.ndarray | float) -> np.ndarray:
    """True where a log move is by a currency unit, up to a day's own move."""
    return (np.abs(np.abs(np.asarray(move)[..., None]) - UNITS) <= UNIT_TOLERANCE).any(axis=-1)


def _beyond(moves: np.ndarray) -> np.ndarray:
    first = MIN_RETURNS + 1  # moves[0] is NaN
    if len(moves) <= first:
        return np.zeros(len(moves), dtype=bool)
    padded = np.concatenate([np.full(RETURN_WINDOW, np.nan), moves])
    before = np.lib.stride_tricks.sliding_window_view(padded, RETURN_WINDOW)[first : len(moves)]
    center = np.nanmedian(before, axis=1)
    deviation = 1.4826 * np.nanmedian(np.abs(before - center[:, None]), axis=1)
    far = np.abs(moves[first:] - center) > JUMP_DEVIATIONS * np.maximum(deviation, MIN_DEVIATION)
    return np.concatenate([np.zeros(first, dtype=bool), far])


def _wrong_side(rows: np.ndarray, start: int, here: int, stop: int) -> slice:
    """Published bars cannot be taken back: then the newer side, else the shorter one."""
    unpublished = bool((rows[start:here] >= 0).all())
    return slice(start, here) if unpublished and here - start < stop - here else slice(here, stop)


def _takes_back(move: float, back: float) -> bool:
    return move * back < 0 and abs(move + back) <= REVERSION * min(abs(move), abs(back))


def _spans(series: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """symbol → its positions [start, stop)."""
    symbols = series["symbol"].to_numpy()
    if not len(symbols):
        return {}
    starts = np.flatnonzero(np.concatenate([[True], symbols[1:] != symbols[:-1]]))
    return {symbols[a]: (int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(symbols)], strict=True)}
