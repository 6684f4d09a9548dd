"""Walk-forward folds: training labels end before the test window begins.

Tests TRAP-03 (ids: .github/sources.md), the alignment, and field note 12, the purge.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scoring.folds import walk_forward
from models.sessions import HOUR

Sizes = dict[str, int]  # keyword arguments of walk_forward


def make_opens(gaps: list[int]) -> np.ndarray:
    """One bar open per gap, (len(gaps),): each is ``gaps`` hours after the one before; the first gap is not used."""
    return np.datetime64("2024-01-01T00", "us") + np.cumsum([0, *gaps[1:]]) * HOUR


def make_label_ends(ts: np.ndarray, horizons: tuple[int, ...]) -> np.ndarray:
    """The open of bar t + 1 + h for every bar t and horizon h, (t, h); NaT after the panel's end."""
    out = np.full((len(ts), len(horizons)), np.datetime64("NaT"), dtype="datetime64[us]")
    for k, h in enumerate(horizons):
        out[: max(len(ts) - 1 - h, 0), k] = ts[1 + h :]
    return out


SIZES = st.fixed_dictionaries(
    {
        "warmup_bars": st.integers(0, 10),
        "train_bars": st.integers(12, 40),
        "test_bars": st.integers(1, 15),
        "embargo_bars": st.integers(0, 6),
    }
)
GAPS = st.lists(st.integers(1, 90), min_size=5, max_size=150)
HORIZONS = st.sets(st.integers(1, 9), min_size=1, max_size=3).map(lambda h: tuple(sorted(h)))


@given(gaps=GAPS, horizons=HORIZONS, sizes=SIZES)
def test_no_training_label_ends_at_or_after_train_stop(
    gaps: list[int], horizons: tuple[int, ...], sizes: Sizes
) -> None:
    ts = make_opens(gaps)
    label_end = make_label_ends(ts, horizons)
    for fold in walk_forward(ts, label_end, **sizes):
        assert (label_end[fold.train] < ts[fold.train_stop]).all()
        assert fold.test_start - fold.train_stop == sizes["embargo_bars"]
        assert (np.diff(fold.train) == 1).all()


@given(gaps=GAPS, horizons=HORIZONS, sizes=SIZES)
def test_purge_is_the_longest_horizon_plus_one_bar(gaps: list[int], horizons: tuple[int, ...], sizes: Sizes) -> None:
    ts = make_opens(gaps)
    for fold in walk_forward(ts, make_label_ends(ts, horizons), **sizes):
        assert fold.purge_bars == max(horizons) + 1
        assert len(fold.train) + fold.purge_bars == sizes["train_bars"]


@given(gaps=GAPS, n_early_bars=st.integers(1, 150), horizons=HORIZONS, sizes=SIZES)
def test_more_bars_never_move_or_change_a_fold(
    gaps: list[int], n_early_bars: int, horizons: tuple[int, ...], sizes: Sizes
) -> None:
    ts = make_opens(gaps)
    early_ts = ts[:n_early_bars]
    early_folds = walk_forward(early_ts, make_label_ends(early_ts, horizons), **sizes)
    folds = walk_forward(ts, make_label_ends(ts, horizons), **sizes)
    assert len(early_folds) <= len(folds)
    for early, fold in zip(early_folds, folds, strict=False):
        assert (early.train == fold.train).all()
        for name in ("index", "train_stop", "test_start", "test_stop", "purge_bars"):
            assert getattr(early, name) == getattr(fold, name)


@given(gaps=GAPS, horizons=HORIZONS, sizes=SIZES)
def test_test_windows_cover_every_bar_after_the_first_training_slice_once(
    gaps: list[int], horizons: tuple[int, ...], sizes: Sizes
) -> None:
    ts = make_opens(gaps)
    folds = walk_forward(ts, make_label_ends(ts, horizons), **sizes)
    first_test_start = sizes["warmup_bars"] + sizes["train_bars"] + sizes["embargo_bars"]
    tested_bars = [bar for fold in folds for bar in range(fold.test_start, min(fold.test_stop, len(ts)))]
    assert tested_bars == list(range(first_test_start, len(ts)))


def test_three_folds_have_the_expected_windows_and_training_rows() -> None:
    ts = make_opens([1] * 24)
    folds = walk_forward(ts, make_label_ends(ts, (1, 3)), warmup_bars=2, train_bars=10, test_bars=5, embargo_bars=1)
    assert [(f.train_stop, f.test_start, f.test_stop) for f in folds] == [(12, 13, 18), (17, 18, 23), (22, 23, 28)]
    # the training slice is rows 2 to 11; rows 8 to 11 are purged: row 8 enters at the open of bar 9, and its three-bar
    # label ends at the open of bar 12, which is train_stop
    assert folds[0].train.tolist() == [2, 3, 4, 5, 6, 7]
    assert folds[0].purge_bars == 4


def test_a_fold_exists_from_the_first_bar_of_its_test_window_on() -> None:
    sizes = {"warmup_bars": 2, "train_bars": 10, "test_bars": 5, "embargo_bars": 1}
    first_test_start = 2 + 10 + 1
    ts = make_opens([1] * first_test_start)
    assert walk_forward(ts, make_label_ends(ts, (1,)), **sizes) == []
    ts = make_opens([1] * (first_test_start + 1))
    assert len(walk_forward(ts, make_label_ends(ts, (1,)), **sizes)) == 1


def test_a_label_that_ends_late_purges_its_row_and_all_rows_after_it() -> None:
    ts = make_opens([1] * 20)
    label_end = make_label_ends(ts, (1,))
    label_end[5, 0] = ts[19]
    (fold,) = walk_forward(ts, label_end, warmup_bars=0, train_bars=15, test_bars=9, embargo_bars=0)
    assert fold.train.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "invalid_size", [{"train_bars": 0}, {"test_bars": 0}, {"embargo_bars": -1}, {"warmup_bars": -1}]
)
def test_invalid_sizes_are_refused(invalid_size: Sizes) -> None:
    ts = make_opens([1] * 30)
    sizes = {"warmup_bars": 0, "train_bars": 10, "test_bars": 5, "embargo_bars": 0} | invalid_size
    with pytest.raises(ValueError, match="folds need"):
        walk_forward(ts, make_label_ends(ts, (1,)), **sizes)


def test_a_training_slice_shorter_than_the_purge_is_refused() -> None:
    ts = make_opens([1] * 30)
    with pytest.raises(ValueError, match="purge leaves none of 9 training bars"):
        walk_forward(ts, make_label_ends(ts, (8,)), warmup_bars=0, train_bars=9, test_bars=5, embargo_bars=0)
