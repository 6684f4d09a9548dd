"""Walk-forward folds: a rolling training slice, an embargo, then a test window; label overlap is purged.

Glossary: t bars, h horizons, k training rows. The row t is the bar t with its labels.

A decision at the close of bar t enters at the open of bar t + 1, so a label of h bars ends at the open of bar
t + 1 + h. Where every label ends at its own bar, the purge is the longest horizon plus one bar. The purge is computed
from the labels' end times and not by that formula, so it is also correct for labels that end later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Fold:
    """Bar positions of one fold; ``index`` counts the folds from 0.

    ``train`` (k,): the training rows after the purge, a contiguous ascending range. ``train_stop``: the end of the
    training slice, ``embargo_bars`` before ``test_start``; every label of a training row ended before the open of this
    bar. [``test_start``, ``test_stop``): the test window; ``test_stop`` can be after the panel's
    last bar. ``purge_bars``: the
    number of rows dropped from the end of the training slice.
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

    ``ts`` (t,) datetime64: the bars' opens, ascending. ``label_end`` (t, h) datetime64: the end of each label, NaT if
    the panel ends before it. A row whose last label has not ended before the open of ``train_stop``, or is NaT, is
    purged together with all rows of the slice after it. Training slices have ``train_bars`` before the purge, and the
    first one begins at bar ``warmup_bars``. Test windows have ``test_bars`` and follow each other without a gap, so
    more bars add folds and change no existing fold. Raises ValueError for invalid sizes, and for a fold without a
    training row after the purge.
    """
    if min(train_bars, test_bars) < 1 or min(warmup_bars, embargo_bars) < 0:
        raise ValueError(
            f"folds need train_bars and test_bars of at least 1 and no negative warmup or embargo, got "
            f"{train_bars=}, {test_bars=}, {warmup_bars=}, {embargo_bars=}"
        )
    if label_end.shape[:1] != ts.shape:
        raise ValueError(f"{len(ts)} bars but label ends of {len(label_end)} rows")
    last_label_end = label_end.max(axis=1) if label_end.size else np.full(len(ts), np.datetime64("NaT"))
    first_test_start = warmup_bars + train_bars + embargo_bars
    folds = []
    for index, test_start in enumerate(range(first_test_start, len(ts), test_bars)):
        train_stop = test_start - embargo_bars
        train_start = train_stop - train_bars
        has_ended = last_label_end[train_start:train_stop] < ts[train_stop]
        n_train = train_bars if has_ended.all() else int(has_ended.argmin())
        if n_train == 0:
            raise ValueError(
                f"fold {index}: the purge leaves none of {train_bars} training bars; train_bars must exceed the "
                "longest horizon plus one"
            )
        folds.append(
            Fold(
                index=index,
                train=np.arange(train_start, train_start + n_train),
                train_stop=train_stop,
                test_start=test_start,
                test_stop=test_start + test_bars,
                purge_bars=train_bars - n_train,
            )
        )
    return folds
