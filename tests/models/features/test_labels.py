"""Labels computed by hand: entry at the next open, exit one horizon later.

The arrays of one asset are (bar, asset 0); returns and ends have the horizons as their last axis, here 1 and 2 bars.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.features.indicators import BAR_COLUMNS, FeatureError
from models.features.labels import CLASS_NAMES, UNKNOWN_CLASS, Labels, compute_labels
from models.panel import Panel
from models.sessions import HOUR

MakeBars = Callable[..., Panel]
OPENS = np.array([100.0, 101.0, 104.0, 103.0, 110.0, 108.0])
CLOSES = np.array([100.0, 102.0, 105.0, 104.0, 108.0, 107.0])


def make_bars(
    open_prices: np.ndarray,
    close_prices: np.ndarray,
    dividends: np.ndarray | float = 0.0,
    missing_bar: int | None = None,
) -> Panel:
    """Hourly bars of one asset, without the bar ``missing_bar``; a dividend is paid on the bar's ex-date."""
    n_bars = len(open_prices)
    has_bar = np.full(n_bars, True)
    if missing_bar is not None:
        has_bar[missing_bar] = False
    positions = np.flatnonzero(has_bar)
    dividend_by_bar = np.broadcast_to(dividends, n_bars)
    total_return = np.full(n_bars, np.nan)
    total_return[positions[1:]] = (close_prices + dividend_by_bar)[positions[1:]] / close_prices[positions[:-1]] - 1
    columns = {
        "open": open_prices,
        "high": np.maximum(open_prices, close_prices),
        "low": np.minimum(open_prices, close_prices),
        "close": close_prices,
        "volume": np.ones(n_bars),
        "total_return": total_return,
        "funding_rate": np.zeros(n_bars),
    }
    values = np.stack([columns[name] for name in BAR_COLUMNS], axis=-1)[:, None, :]
    values[~has_bar] = np.nan
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(n_bars) * HOUR
    return Panel(ts, ("A",), BAR_COLUMNS, values, has_bar[:, None])


def make_labels(
    bars: Panel, volatility: float = 0.02, horizons: tuple[int, ...] = (1, 2), class_horizon: int = 2
) -> Labels:
    """Labels of bars whose trailing volatility is ``volatility`` at every bar."""
    return compute_labels(bars, np.full(bars.mask.shape, volatility), horizons, class_horizon)


def test_entry_is_the_next_open_and_exit_the_open_one_horizon_later() -> None:
    """S4-25: a return for each horizon. Field note 17: never the close that made the decision."""
    labels = make_labels(make_bars(OPENS, CLOSES))
    one_bar, two_bars = labels.returns[:, 0].T
    np.testing.assert_allclose(one_bar, [*np.log(OPENS[2:] / OPENS[1:-1]), np.nan, np.nan])
    np.testing.assert_allclose(two_bars, [*np.log(OPENS[3:] / OPENS[1:-2]), np.nan, np.nan, np.nan])


def test_a_dividend_is_earned_only_if_its_ex_date_lies_between_entry_and_exit() -> None:
    """The ex-date is bar 3, so only the position entered at the open of bar 2 (decided in bar 1) earns it."""
    dividends = np.array([0, 0, 0, 6.0, 0, 0])
    labels = make_labels(make_bars(OPENS, CLOSES, dividends))
    factor = (CLOSES[3] + 6) / CLOSES[3]
    expected = np.log(OPENS[2:] / OPENS[1:-1]) + np.log([1, factor, 1, 1])
    np.testing.assert_allclose(labels.returns[:4, 0, 0], expected)


def test_end_is_the_open_of_the_exit_bar() -> None:
    """Field note 12: the purge is computed from the ends."""
    bars = make_bars(OPENS, CLOSES)
    end = make_labels(bars).end
    one_bar, two_bars = end.T
    np.testing.assert_array_equal(one_bar[:4], bars.ts[2:])
    np.testing.assert_array_equal(two_bars[:3], bars.ts[3:])
    assert len(one_bar) == len(two_bars) == len(bars)
    assert np.isnat(one_bar[4:]).all()
    assert np.isnat(two_bars[3:]).all()


def test_the_labels_of_the_last_bars_are_unknown() -> None:
    """With a class horizon of 2 bars: the class needs 3 bars after its own, the volatility needs 2."""
    labels = make_labels(make_bars(OPENS, CLOSES))
    assert (labels.class_5[:3] != UNKNOWN_CLASS).all()
    assert (labels.class_5[3:] == UNKNOWN_CLASS).all()
    assert np.isfinite(labels.volatility[:4]).all()
    assert np.isnan(labels.volatility[4:]).all()


def test_a_label_is_unknown_if_the_bar_of_its_decision_entry_or_exit_is_missing() -> None:
    labels = make_labels(make_bars(OPENS, CLOSES, missing_bar=3))
    one_bar, two_bars = labels.returns[:, 0].T
    assert np.isnan(one_bar).tolist() == [False, True, True, True, True, True]
    assert np.isnan(two_bars).tolist() == [True, False, True, True, True, True]
    assert (labels.class_5[:, 0] == UNKNOWN_CLASS).tolist() == [True, False, True, True, True, True]
    assert np.isnan(labels.volatility[:, 0]).tolist() == [False, True, True, True, True, True]
    assert not np.isnat(labels.end[2, 0])


def test_realised_volatility_is_the_root_mean_square_of_the_returns_after_the_decision() -> None:
    """S4-30."""
    log_returns = np.log(CLOSES[1:] / CLOSES[:-1])
    two_bars = make_labels(make_bars(OPENS, CLOSES), class_horizon=2).volatility[:, 0]
    np.testing.assert_allclose(two_bars[:4], np.sqrt((log_returns[:-1] ** 2 + log_returns[1:] ** 2) / 2))
    one_bar = make_labels(make_bars(OPENS, CLOSES), class_horizon=1).volatility[:, 0]
    np.testing.assert_allclose(one_bar[:5], np.abs(log_returns))


@pytest.mark.parametrize(
    ("scaled_return", "expected"),
    [
        (-1.01, "STRONG_SELL"),
        (-0.99, "SELL"),
        (-0.26, "SELL"),
        (-0.24, "HOLD"),
        (0.0, "HOLD"),
        (0.24, "HOLD"),
        (0.26, "BUY"),
        (0.99, "BUY"),
        (1.01, "STRONG_BUY"),
    ],
)
def test_class_thresholds_are_a_quarter_and_one_volatility(scaled_return: float, expected: str) -> None:
    """MAM-23, S4-27, TRAP-12: a volatility of 2 % per bar is one of 4 % over four bars."""
    prices = np.array([1.0, 1.0, 1.0, 1.0, 1.0, np.exp(0.04 * scaled_return)])
    labels = make_labels(make_bars(prices, prices), volatility=0.02, horizons=(4,), class_horizon=4)
    assert CLASS_NAMES[labels.class_5[0, 0]] == expected


def test_random_bars_have_every_class_and_unknown_classes(random_bars: MakeBars) -> None:
    """S4-27: there are five classes."""
    labels = make_labels(random_bars(400, 5, holes=0.05, late=True))
    assert set(np.unique(labels.class_5)) == {UNKNOWN_CLASS, *range(len(CLASS_NAMES))}


def test_a_constant_price_is_hold_at_volatility_zero_and_unknown_without_volatility() -> None:
    prices = np.full(5, 50.0)
    bars = make_bars(prices, prices)
    assert make_labels(bars, volatility=0.0).class_5[0, 0] == CLASS_NAMES.index("HOLD")
    assert make_labels(bars, volatility=np.nan).class_5[0, 0] == UNKNOWN_CLASS


def test_a_label_that_has_ended_does_not_change_when_bars_are_added(random_bars: MakeBars) -> None:
    bars = random_bars(200, 3, holes=0.05)
    whole = make_labels(bars)
    for cut in (4, 77, 150):
        truncated = make_labels(bars.slice_bars(0, cut))
        n_ended = cut - (1 + max(whole.horizons))
        np.testing.assert_array_equal(truncated.returns[:n_ended], whole.returns[:n_ended])
        np.testing.assert_array_equal(truncated.class_5[:n_ended], whole.class_5[:n_ended])
        np.testing.assert_array_equal(truncated.volatility[:n_ended], whole.volatility[:n_ended])
        np.testing.assert_array_equal(truncated.end[:n_ended], whole.end[:n_ended])


def test_slice_bars_selects_the_same_bars_of_every_array(random_bars: MakeBars) -> None:
    labels = make_labels(random_bars(50, 2))
    selected = labels.slice_bars(10, 30)
    assert selected.horizons == labels.horizons
    np.testing.assert_array_equal(selected.returns, labels.returns[10:30])
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


def test_labels_of_a_horizon_longer_than_the_panel_are_unknown() -> None:
    labels = make_labels(make_bars(OPENS, CLOSES), horizons=(20,), class_horizon=20)
    assert np.isnan(labels.returns).all()
    assert np.isnat(labels.end).all()
    assert (labels.class_5 == UNKNOWN_CLASS).all()


def test_a_volatility_of_another_shape_is_refused() -> None:
    with pytest.raises(FeatureError, match=r"\(2, 2\) does not fit bars \(6, 1\)"):
        compute_labels(make_bars(OPENS, CLOSES), np.ones((2, 2)), horizons=(1,), class_horizon=1)
