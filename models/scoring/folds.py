"""Walk-forward folds: train on a rolling slice, test on the bars after it, with a purge and an embargo between.

A decision at the close of bar t enters at the open of t + 1, so a label of h bars ends at the open of bar t + 1 + h:
on a regular grid the purge is the longest horizon plus one bar. The code derives the purge from the labels' end times
and not from that formula, so it is also right for grids with holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Fold:
    """Bar positions of one fold.

    ``train`` (k,) the training rows left after the purge, one contiguous range. ``train_stop`` = ``test_start`` −
    embargo: no label of a training row ends at or after this bar. ``[test_start, test_stop)`` is the test window;
    ``test_stop`` may lie beyond the panel's end. ``purge_bars``: the number of rows dropped before ``train_stop``.
    """

    index: int
    train: np.ndarray
    train_stop: int
    test_start: int
    test_stop: int
    purge_bars: int


def walk_forward(
    ts: np.ndarray, label_end: np.ndarray, *, warmup_bars: int, train_bars: int, test_bars: int, embargo_bars: int
) -> list[Fold]:
    """Rolling folds, oldest first; a fold exists as soon as the panel has the first bar of its test window.

    ``ts`` (t,) bar opens; ``label_end`` (t, h) the end of each label of a row, NaT while it is unknown (such a row is
    never a training row). Folds are anchored at bar 0, so more bars add folds and never move or change one. Raises
    ValueError for sizes that leave a fold without training rows.
    """
    if min(train_bars, test_bars) < 1 or min(warmup_bars, embargo_bars) < 0:
        raise ValueError(
            f"folds need train_bars and test_bars of at least 1 and no negative warmup or embargo, got "
            f"{train_bars=}, {test_bars=}, {warmup_bars=}, {embargo_bars=}"
        )
    if label_end.shape[:1] != ts.shape:
        raise ValueError(f"{len(ts)} bars but label ends of {len(label_end)} rows")
    last_end = label_end.max(axis=1) if label_end.size else np.full(len(ts), np.datetime64("NaT"))
    folds = []
    for index, test_start in enumerate(range(warmup_bars + train_bars + embargo_bars, len(ts), test_bars)):
        train_stop = test_start - embargo_bars
        ended = last_end[train_stop - train_bars : train_stop] < ts[train_stop]
        unpurged = train_bars if ended.all() else int(ended.argmin())
        if unpurged == 0:
            raise ValueError(
                f"fold {index}: the purge leaves none of {train_bars} training bars; train_bars must exceed the "
                "longest horizon plus one"
            )
        train = np.arange(train_stop - train_bars, train_stop - train_bars + unpurged)
        folds.append(Fold(index, train, train_stop, test_start, test_start + test_bars, train_bars - unpurged))
    return folds
