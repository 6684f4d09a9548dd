"""Labels computed by hand: entry at the next open, exit one horizon later, and unknown until then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.features.indicators import BAR_COLUMNS, FeatureError
from models.features.labels import CLASS_5, UNKNOWN, Labels, compute_labels
from models.panel import Panel
from models.sessions import HOUR

Bars = Callable[..., Panel]
OPENS = np.array([100.0, 101.0, 104.0, 103.0, 110.0, 108.0])
CLOSES = np.array([100.0, 102.0, 105.0, 104.0, 108.0, 107.0])


def make_bars(
    opens: np.ndarray, closes: np.ndarray, dividends: np.ndarray | float = 0.0, hole: int | None = None
) -> Panel:
    """Hourly bars of one asset, without the bar ``hole``."""
    has_bar = np.arange(len(opens)) != (len(opens) if hole is None else hole)
    paid = np.broadcast_to(dividends, len(opens))
    total_return = np.full(len(opens), np.nan)
    rows = np.flatnonzero(has_bar)
    total_return[rows[1:]] = (closes + paid)[rows[1:]] / closes[rows[:-1]] - 1
    columns = (opens, np.maximum(opens, closes), np.minimum(opens, closes), closes, np.ones(len(opens)), total_return)
    values = np.stack([*columns, np.zeros(len(opens))], axis=-1)[:, None, :]
    values[~has_bar] = np.nan
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(len(opens)) * HOUR
    return Panel(ts, ("A",), BAR_COLUMNS, values, has_bar[:, None])


def make_labels(
    bars: Panel, volatility: float = 0.02, horizons: tuple[int, ...] = (1, 2), class_horizon: int = 2
) -> Labels:
    """Labels of bars whose trailing volatility is ``volatility`` everywhere."""
    return compute_labels(bars, np.full(bars.mask.shape, volatility), horizons, class_horizon)


def test_entry_is_the_next_open_and_exit_the_open_one_horizon_later() -> None:
    """S4-25: a return for each horizon. Field note 17: never the close that made the decision."""
    labels = make_labels(make_bars(OPENS, CLOSES))
    one_bar = labels.returns[:, 0, 0]
    two_bars = labels.returns[:, 0, 1]
    np.testing.assert_allclose(one_bar, [*np.log(OPENS[2:] / OPENS[1:-1]), np.nan, np.nan])
    np.testing.assert_allclose(two_bars, [*np.log(OPENS[3:] / OPENS[1:-2]), np.nan, np.nan, np.nan])


def test_a_dividend_between_entry_and_exit_is_earned_and_others_are_not() -> None:
    dividends = np.array([0, 0, 0, 6.0, 0, 0])
    labels = make_labels(make_bars(OPENS, CLOSES, dividends))
    factor = (104 + 6) / 104  # the ex-date is bar 3: a position held at the close of bar 2 earns the dividend
    expected = np.log(OPENS[2:] / OPENS[1:-1]) + np.log([1, factor, 1, 1])
    np.testing.assert_allclose(labels.returns[:4, 0, 0], expected)


def test_end_is_the_open_of_the_exit() -> None:
    """Field note 12: the purge is derived from these."""
    bars = make_bars(OPENS, CLOSES)
    end = make_labels(bars).end
    assert end.shape == (6, 2)
    np.testing.assert_array_equal(end[:4, 0], bars.ts[2:])
    np.testing.assert_array_equal(end[:3, 1], bars.ts[3:])
    assert np.isnat(end[4:, 0]).all() and np.isnat(end[3:, 1]).all()


def test_the_last_rows_are_unknown() -> None:
    labels = make_labels(make_bars(OPENS, CLOSES))
    assert (labels.class_5[3:] == UNKNOWN).all()
    assert (labels.class_5[:3] != UNKNOWN).all()
    assert np.isnan(labels.volatility[4:]).all() and np.isfinite(labels.volatility[:4]).all()


def test_a_hole_at_decision_entry_or_exit_leaves_the_label_unknown() -> None:
    labels = make_labels(make_bars(OPENS, CLOSES, hole=3))
    assert np.isnan(labels.returns[:, 0, 0]).tolist() == [False, True, True, True, True, True]
    assert np.isnan(labels.returns[:, 0, 1]).tolist() == [True, False, True, True, True, True]
    assert (labels.class_5[:, 0] == UNKNOWN).tolist() == [True, False, True, True, True, True]
    assert np.isnan(labels.volatility[:, 0]).tolist() == [False, True, True, True, True, True]
    assert not np.isnat(labels.end[2, 0])


def test_realised_volatility_is_per_bar_over_the_closes_after_the_decision() -> None:
    """S4-30."""
    step = np.log(CLOSES[1:] / CLOSES[:-1])
    two_bars = make_labels(make_bars(OPENS, CLOSES)).volatility[:, 0]
    np.testing.assert_allclose(two_bars[:4], np.sqrt((step[:-1] ** 2 + step[1:] ** 2) / 2))
    one_bar = make_labels(make_bars(OPENS, CLOSES), class_horizon=1).volatility[:, 0]
    np.testing.assert_allclose(one_bar[:5], np.abs(step))


@pytest.mark.parametrize(
    ("move", "expected"),
    [(-1.01, 0), (-0.99, 1), (-0.26, 1), (-0.24, 2), (0.0, 2), (0.24, 2), (0.26, 3), (0.99, 3), (1.01, 4)],
)
def test_class_thresholds_are_a_quarter_and_one_volatility(move: float, expected: int) -> None:
    """MAM-23, S4-27, TRAP-12: σ of 2% a bar over four bars is 4%."""
    opens = np.array([1.0, 1.0, 1.0, 1.0, 1.0, np.exp(0.04 * move)])
    labels = make_labels(make_bars(opens, opens), horizons=(4,), class_horizon=4)
    assert labels.class_5[0, 0] == expected


def test_random_bars_have_every_class_and_unknown_ones(random_bars: Bars) -> None:
    """S4-27: there are five classes."""
    labels = make_labels(random_bars(400, 5, holes=0.05, late=True))
    assert set(np.unique(labels.class_5)) == {UNKNOWN, *range(len(CLASS_5))}


def test_a_constant_price_is_hold_at_volatility_zero_and_unknown_without_volatility() -> None:
    flat = np.full(5, 50.0)
    assert make_labels(make_bars(flat, flat), volatility=0.0).class_5[0, 0] == CLASS_5.index("HOLD")
    assert make_labels(make_bars(flat, flat), volatility=np.nan).class_5[0, 0] == UNKNOWN


def test_a_label_that_has_ended_does_not_change_when_bars_are_added(random_bars: Bars) -> None:
    bars = random_bars(200, 3, holes=0.05)
    whole = make_labels(bars)
    for cut in (4, 77, 150):
        truncated = make_labels(bars.rows(0, cut))
        ended = cut - 3
        np.testing.assert_array_equal(truncated.returns[:ended], whole.returns[:ended])
        np.testing.assert_array_equal(truncated.class_5[:ended], whole.class_5[:ended])
        np.testing.assert_array_equal(truncated.volatility[:ended], whole.volatility[:ended])
        np.testing.assert_array_equal(truncated.end[:ended], whole.end[:ended])


def test_rows_selects_the_same_bars_of_every_array(random_bars: Bars) -> None:
    labels = make_labels(random_bars(50, 2))
    selected = labels.rows(10, 30)
    assert selected.returns.shape == (20, 2, 2) and selected.horizons == labels.horizons
    np.testing.assert_array_equal(selected.class_5, labels.class_5[10:30])
    np.testing.assert_array_equal(selected.volatility, labels.volatility[10:30])
    np.testing.assert_array_equal(selected.end, labels.end[10:30])


@pytest.mark.parametrize(
    ("horizons", "class_horizon", "message"),
    [((0, 1), 1, "at least 1"), ((), 1, "at least 1"), ((1, 1), 1, "distinct"), ((1, 5), 20, "20 is not one of")],
)
def test_invalid_horizons_are_refused(horizons: tuple[int, ...], class_horizon: int, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        make_labels(make_bars(OPENS, CLOSES), horizons=horizons, class_horizon=class_horizon)


def test_labels_of_a_horizon_beyond_the_panel_are_unknown_and_no_error() -> None:
    labels = make_labels(make_bars(OPENS, CLOSES), horizons=(20,), class_horizon=20)
    assert np.isnan(labels.returns).all() and np.isnat(labels.end).all() and (labels.class_5 == UNKNOWN).all()


def test_a_volatility_of_another_shape_is_refused() -> None:
    with pytest.raises(FeatureError, match=r"\(2, 2\) does not fit bars \(6, 1\)"):
        compute_labels(make_bars(OPENS, CLOSES), np.ones((2, 2)), (1,), 1)
