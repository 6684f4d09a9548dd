"""Folds against the end times of their training labels (TRAP-03: alignment; field note 12: the purge)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.folds import walk_forward
from models.sessions import HOUR


def make_opens(gaps: list[int]) -> np.ndarray:
    """Bar opens that are ``gaps`` hours apart."""
    return np.datetime64("2024-01-01T00", "us") + np.cumsum([0, *gaps[1:]]) * HOUR


def label_ends(ts: np.ndarray, horizons: tuple[int, ...]) -> np.ndarray:
    """The open of bar t + 1 + h for every bar t and horizon h, NaT after the panel's end."""
    out = np.full((len(ts), len(horizons)), np.datetime64("NaT"), dtype="datetime64[us]")
    for k, h in enumerate(horizons):
        out[: max(len(ts) - 1 - h, 0), k] = ts[1 + h :]
    return out


sizes = st.fixed_dictionaries(
    {
        "warmup_bars": st.integers(0, 10),
        "train_bars": st.integers(12, 40),
        "test_bars": st.integers(1, 15),
        "embargo_bars": st.integers(0, 6),
    }
)
grids = st.lists(st.integers(1, 90), min_size=5, max_size=150)
horizon_sets = st.sets(st.integers(1, 9), min_size=1, max_size=3).map(lambda h: tuple(sorted(h)))


@given(gaps=grids, horizons=horizon_sets, size=sizes)
def test_no_training_label_ends_at_or_after_train_stop(gaps, horizons, size):
    ts = make_opens(gaps)
    label_end = label_ends(ts, horizons)
    for fold in walk_forward(ts, label_end, **size):
        assert (label_end[fold.train] < ts[fold.train_stop]).all()
        assert fold.test_start - fold.train_stop == size["embargo_bars"]
        assert (np.diff(fold.train) == 1).all()


@given(gaps=grids, horizons=horizon_sets, size=sizes)
def test_purge_is_the_longest_horizon_plus_one_bar(gaps, horizons, size):
    ts = make_opens(gaps)
    for fold in walk_forward(ts, label_ends(ts, horizons), **size):
        assert fold.purge_bars == max(horizons) + 1
        assert len(fold.train) + fold.purge_bars == size["train_bars"]


@given(gaps=grids, cut=st.integers(1, 150), horizons=horizon_sets, size=sizes)
def test_more_bars_never_move_or_change_a_fold(gaps, cut, horizons, size):
    ts = make_opens(gaps)
    early_ts = ts[:cut]
    early_folds = walk_forward(early_ts, label_ends(early_ts, horizons), **size)
    folds = walk_forward(ts, label_ends(ts, horizons), **size)
    assert len(early_folds) <= len(folds)
    for a, b in zip(early_folds, folds, strict=False):
        assert (a.train == b.train).all()
        assert (a.index, a.train_stop, a.test_start, a.test_stop) == (b.index, b.train_stop, b.test_start, b.test_stop)


@given(gaps=grids, horizons=horizon_sets, size=sizes)
def test_test_windows_cover_every_bar_after_the_first_training_slice_once(gaps, horizons, size):
    ts = make_opens(gaps)
    folds = walk_forward(ts, label_ends(ts, horizons), **size)
    first = size["warmup_bars"] + size["train_bars"] + size["embargo_bars"]
    tested = [t for f in folds for t in range(f.test_start, min(f.test_stop, len(ts)))]
    assert tested == list(range(first, len(ts)))


def test_three_folds_by_hand():
    ts = make_opens([1] * 24)
    folds = walk_forward(ts, label_ends(ts, (1, 3)), warmup_bars=2, train_bars=10, test_bars=5, embargo_bars=1)
    assert [(f.test_start, f.test_stop, f.train_stop) for f in folds] == [(13, 18, 12), (18, 23, 17), (23, 28, 22)]
    # rows 8..11 are dropped: row 8 enters at bar 9 and its three-bar label ends at the open of bar 12 = train_stop
    assert folds[0].train.tolist() == [2, 3, 4, 5, 6, 7]
    assert folds[0].purge_bars == 4


def test_a_fold_exists_from_the_first_bar_of_its_test_window_on():
    ts = make_opens([1] * 13)
    size = {"warmup_bars": 2, "train_bars": 10, "test_bars": 5, "embargo_bars": 1}
    assert walk_forward(ts, label_ends(ts, (1,)), **size) == []
    ts = make_opens([1] * 14)
    assert len(walk_forward(ts, label_ends(ts, (1,)), **size)) == 1


def test_a_label_that_ends_late_ends_the_training_rows_before_it():
    ts = make_opens([1] * 20)
    label_end = label_ends(ts, (1,))
    label_end[5, 0] = ts[19]
    (fold,) = walk_forward(ts, label_end, warmup_bars=0, train_bars=15, test_bars=9, embargo_bars=0)
    assert fold.train.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("wrong", [{"train_bars": 0}, {"test_bars": 0}, {"embargo_bars": -1}, {"warmup_bars": -1}])
def test_invalid_sizes_are_refused(wrong):
    ts = make_opens([1] * 30)
    size = {"warmup_bars": 0, "train_bars": 10, "test_bars": 5, "embargo_bars": 0} | wrong
    with pytest.raises(ValueError, match="folds need"):
        walk_forward(ts, label_ends(ts, (1,)), **size)


def test_a_training_slice_shorter_than_the_purge_is_refused():
    ts = make_opens([1] * 30)
    with pytest.raises(ValueError, match="purge leaves none of 9 training bars"):
        walk_forward(ts, label_ends(ts, (8,)), warmup_bars=0, train_bars=9, test_bars=5, embargo_bars=0)
