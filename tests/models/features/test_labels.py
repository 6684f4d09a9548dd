"""Labels by hand: entered at the next open, left an horizon later, and unknown until then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.features.indicators import BAR_COLUMNS, FeatureError
from models.features.labels import CLASS_3, CLASS_5, UNKNOWN, Labels, compute_labels
from models.panel import Panel
from models.sessions import HOUR

Bars = Callable[..., Panel]
OPENS = np.array([100.0, 101.0, 104.0, 103.0, 110.0, 108.0])
CLOSES = np.array([100.0, 102.0, 105.0, 104.0, 108.0, 107.0])


def bars_of(
    opens: np.ndarray, closes: np.ndarray, dividends: np.ndarray | float = 0.0, hole: int | None = None
) -> Panel:
    """Hourly bars of one asset, ``hole`` left out."""
    there = np.arange(len(opens)) != (len(opens) if hole is None else hole)
    paid = np.broadcast_to(dividends, len(opens))
    total_return = np.full(len(opens), np.nan)
    own = np.flatnonzero(there)
    total_return[own[1:]] = (closes + paid)[own[1:]] / closes[own[:-1]] - 1
    columns = (opens, np.maximum(opens, closes), np.minimum(opens, closes), closes, np.ones(len(opens)), total_return)
    values = np.stack([*columns, np.zeros(len(opens))], axis=-1)[:, None, :]
    values[~there] = np.nan
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(len(opens)) * HOUR
    return Panel(ts, ("A",), BAR_COLUMNS, values, there[:, None])


def labelled(
    bars: Panel, volatility: float = 0.02, horizons: tuple[int, ...] = (1, 2), class_horizon: int = 2
) -> Labels:
    """Labels of one asset whose trailing volatility is the same at every bar."""
    return compute_labels(bars, np.full(bars.mask.shape, volatility), horizons, class_horizon)


def test_entry_is_the_next_open_and_exit_the_open_an_horizon_later() -> None:
    """Field note 17: never the close that made the decision."""
    labels = labelled(bars_of(OPENS, CLOSES))
    one, two = labels.returns[:, 0, 0], labels.returns[:, 0, 1]
    np.testing.assert_allclose(one, [*np.log(OPENS[2:] / OPENS[1:-1]), np.nan, np.nan])
    np.testing.assert_allclose(two, [*np.log(OPENS[3:] / OPENS[1:-2]), np.nan, np.nan, np.nan])


def test_a_dividend_between_entry_and_exit_is_earned_and_others_are_not() -> None:
    dividends = np.array([0, 0, 0, 6.0, 0, 0])
    labels = labelled(bars_of(OPENS, CLOSES, dividends))
    factor = (104 + 6) / 104  # ex-date at bar 3: who holds at the close of bar 2 gets it
    expected = np.log(OPENS[2:] / OPENS[1:-1]) + np.log([1, factor, 1, 1])
    np.testing.assert_allclose(labels.returns[:4, 0, 0], expected)


def test_end_is_the_open_at_which_the_position_is_left() -> None:
    """Field note 12: the purge is derived from these."""
    bars = bars_of(OPENS, CLOSES)
    end = labelled(bars).end
    assert end.shape == (6, 2)
    np.testing.assert_array_equal(end[:4, 0], bars.ts[2:])
    np.testing.assert_array_equal(end[:3, 1], bars.ts[3:])
    assert np.isnat(end[4:, 0]).all() and np.isnat(end[3:, 1]).all()


def test_the_last_rows_are_unknown() -> None:
    labels = labelled(bars_of(OPENS, CLOSES))
    assert (labels.class_5[3:] == UNKNOWN).all() and (labels.class_3[3:] == UNKNOWN).all()
    assert (labels.class_5[:3] != UNKNOWN).all()
    assert np.isnan(labels.volatility[4:]).all() and np.isfinite(labels.volatility[:4]).all()


def test_a_hole_at_decision_entry_or_exit_leaves_the_label_unknown() -> None:
    labels = labelled(bars_of(OPENS, CLOSES, hole=3))
    assert np.isnan(labels.returns[:, 0, 0]).tolist() == [False, True, True, True, True, True]
    assert np.isnan(labels.returns[:, 0, 1]).tolist() == [True, False, True, True, True, True]
    assert (labels.class_5[:, 0] == UNKNOWN).tolist() == [True, False, True, True, True, True]
    assert np.isnan(labels.volatility[:, 0]).tolist() == [False, True, True, True, True, True]
    assert not np.isnat(labels.end[2, 0])


def test_realised_volatility_is_per_bar_over_the_closes_after_the_decision() -> None:
    """HYB-16, S4-30."""
    step = np.log(CLOSES[1:] / CLOSES[:-1])
    two = labelled(bars_of(OPENS, CLOSES)).volatility[:, 0]
    np.testing.assert_allclose(two[:4], np.sqrt((step[:-1] ** 2 + step[1:] ** 2) / 2))
    one = labelled(bars_of(OPENS, CLOSES), class_horizon=1).volatility[:, 0]
    np.testing.assert_allclose(one[:5], np.abs(step))


@pytest.mark.parametrize(
    ("move", "name"),
    [(-1.01, 0), (-0.99, 1), (-0.26, 1), (-0.24, 2), (0.0, 2), (0.24, 2), (0.26, 3), (0.99, 3), (1.01, 4)],
)
def test_classes_part_at_a_quarter_and_at_one_volatility(move: float, name: int) -> None:
    """S4-27, TRAP-12: σ of 2% a bar over four bars is 4%."""
    opens = np.array([1.0, 1.0, 1.0, 1.0, 1.0, np.exp(0.04 * move)])
    labels = labelled(bars_of(opens, opens), horizons=(4,), class_horizon=4)
    assert labels.class_5[0, 0] == name
    assert CLASS_3[labels.class_3[0, 0]] == CLASS_5[name].removeprefix("STRONG_")


def test_three_and_five_classes_agree_everywhere(random_bars: Bars) -> None:
    """HYB-17, MAM-15."""
    bars = random_bars(400, 5, holes=0.05, late=True)
    labels = labelled(bars)
    assert set(np.unique(labels.class_5)) == {UNKNOWN, 0, 1, 2, 3, 4}
    for five, three in ((0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (UNKNOWN, UNKNOWN)):
        assert (labels.class_3[labels.class_5 == five] == three).all()


def test_a_price_that_does_not_move_holds_even_without_volatility() -> None:
    flat = np.full(5, 50.0)
    assert labelled(bars_of(flat, flat), volatility=0.0).class_5[0, 0] == CLASS_5.index("HOLD")
    assert labelled(bars_of(flat, flat), volatility=np.nan).class_5[0, 0] == UNKNOWN


def test_a_label_that_has_ended_does_not_change_when_bars_are_added(random_bars: Bars) -> None:
    bars = random_bars(200, 3, holes=0.05)
    whole = labelled(bars)
    for cut in (4, 77, 150):
        truncated = labelled(bars.rows(0, cut))
        known = cut - 3
        np.testing.assert_array_equal(truncated.returns[:known], whole.returns[:known])
        np.testing.assert_array_equal(truncated.class_5[:known], whole.class_5[:known])
        np.testing.assert_array_equal(truncated.volatility[:known], whole.volatility[:known])
        np.testing.assert_array_equal(truncated.end[:known], whole.end[:known])


def test_rows_cut_every_part_alike(random_bars: Bars) -> None:
    labels = labelled(random_bars(50, 2))
    cut = labels.rows(10, 30)
    assert cut.returns.shape == (20, 2, 2) and cut.horizons == labels.horizons
    np.testing.assert_array_equal(cut.class_3, labels.class_3[10:30])
    np.testing.assert_array_equal(cut.volatility, labels.volatility[10:30])
    np.testing.assert_array_equal(cut.end, labels.end[10:30])


@pytest.mark.parametrize(
    ("horizons", "class_horizon", "message"),
    [((0, 1), 1, "at least 1"), ((), 1, "at least 1"), ((1, 1), 1, "distinct"), ((1, 5), 20, "20 is not one of")],
)
def test_horizons_that_make_no_sense_are_named(horizons: tuple[int, ...], class_horizon: int, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        labelled(bars_of(OPENS, CLOSES), horizons=horizons, class_horizon=class_horizon)


def test_a_horizon_beyond_the_panel_is_unknown_and_no_error() -> None:
    labels = labelled(bars_of(OPENS, CLOSES), horizons=(20,), class_horizon=20)
    assert np.isnan(labels.returns).all() and np.isnat(labels.end).all() and (labels.class_5 == UNKNOWN).all()


def test_volatility_of_another_panel_is_refused() -> None:
    with pytest.raises(FeatureError, match=r"\(2, 2\) does not fit bars \(6, 1\)"):
        compute_labels(bars_of(OPENS, CLOSES), np.ones((2, 2)), (1,), 1)
