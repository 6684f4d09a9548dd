"""Indicators against their written-out definitions, and the main rule: later bars never change earlier rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from models.features.indicators import BAR_COLUMNS, FEATURES, FeatureError, compute_features, log_total_return_index
from models.panel import Panel
from models.sessions import HOUR, bar_closes, bar_opens

Bars = Callable[..., Panel]
WARM_UP = {  # the number of a symbol's bars before the first value, by definition
    "return_1": 1,
    "return_5": 5,
    "return_20": 20,
    "return_60": 60,
    "volatility_20": 20,
    "volatility_60": 60,
    "rsi_14": 14,
    "macd": 33,
    "macd_signal": 33,
    "macd_histogram": 33,
    "bollinger_percent_b": 19,
    "bollinger_width": 19,
    "atr_14": 14,
    "obv_20": 20,
    "volume_z_20": 19,
    "range_1": 0,
    "gap_1": 1,
    "hour_sin": 0,
    "hour_cos": 0,
    "weekday_sin": 0,
    "weekday_cos": 0,
    "funding_rate": 0,
}


def hourly_features(bars: Panel) -> Panel:
    """Features of hourly bars."""
    return compute_features(bars, bars.ts + HOUR)


def make_bars(close: list[float] | np.ndarray, **columns: list[float] | np.ndarray) -> Panel:
    """Hourly bars of one asset without dividends; every price is the close unless ``columns`` contains it."""
    close = np.asarray(close, dtype=float)
    by_column = {
        **dict.fromkeys(("open", "high", "low", "close"), close),
        "volume": np.full(len(close), 100.0),
        "total_return": np.concatenate(([np.nan], close[1:] / close[:-1] - 1)),
        "funding_rate": np.zeros(len(close)),
        **columns,
    }
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(len(close)) * HOUR
    values = np.stack([np.asarray(by_column[name], dtype=float) for name in BAR_COLUMNS], axis=-1)[:, None, :]
    return Panel(ts, ("A",), BAR_COLUMNS, values, np.ones((len(close), 1), dtype=bool))


def feature(bars: Panel, name: str) -> np.ndarray:
    """One feature of the first asset, (t,)."""
    return hourly_features(bars).column(name)[:, 0]


def assert_later_bars_change_no_row_before(bars: Panel, cut: int) -> None:
    whole = hourly_features(bars).rows(0, cut)
    truncated = hourly_features(bars.rows(0, cut))
    np.testing.assert_array_equal(truncated.values, whole.values)
    np.testing.assert_array_equal(truncated.mask, whole.mask)


def test_returns_gap_and_range_by_hand() -> None:
    """S4-28: a dividend of 5 counts as return and not as a gap."""
    bars = make_bars(
        [100, 110, 99],
        open=[100, 105, 104],
        high=[101, 112, 106],
        low=[98, 104, 97],
        total_return=[np.nan, 0.1, (99 + 5) / 110 - 1],
    )
    np.testing.assert_allclose(feature(bars, "return_1"), [np.nan, np.log(1.1), np.log(104 / 110)])
    np.testing.assert_allclose(feature(bars, "gap_1"), [np.nan, np.log(105 / 100), np.log(104 / 99 * 104 / 110)])
    np.testing.assert_allclose(feature(bars, "range_1"), [3 / 100, 8 / 110, 9 / 99])


def test_longer_returns_are_sums_of_single_ones(random_bars: Bars) -> None:
    features = hourly_features(random_bars(90, 1))
    single = features.column("return_1")[:, 0]
    for k in (5, 20, 60):
        np.testing.assert_allclose(features.column(f"return_{k}")[89, 0], single[90 - k :].sum())


def test_volatility_is_the_standard_deviation_of_the_last_returns(random_bars: Bars) -> None:
    features = hourly_features(random_bars(90, 1))
    single = features.column("return_1")[:, 0]
    for k in (20, 60):
        np.testing.assert_allclose(features.column(f"volatility_{k}")[75, 0], single[76 - k : 76].std(), rtol=1e-9)


def test_rsi_is_wilders_smoothed_share_of_gains(random_bars: Bars) -> None:
    """HYB-18."""
    price = np.exp(log_total_return_index(random_bars(60, 1)))[:, 0]
    change = np.diff(price)
    gain = np.maximum(change, 0)
    loss = np.maximum(-change, 0)
    mean_gain = gain[:14].mean()
    mean_loss = loss[:14].mean()
    expected = [mean_gain / (mean_gain + mean_loss)]
    for k in range(14, len(change)):
        mean_gain = (13 * mean_gain + gain[k]) / 14
        mean_loss = (13 * mean_loss + loss[k]) / 14
        expected.append(mean_gain / (mean_gain + mean_loss))
    np.testing.assert_allclose(feature(random_bars(60, 1), "rsi_14")[14:], expected, rtol=1e-9)


def test_rsi_of_a_price_that_only_rises_is_one() -> None:
    np.testing.assert_allclose(feature(make_bars(np.arange(100, 120)), "rsi_14")[14:], 1.0)


def test_macd_is_fast_less_slow_average_over_the_price(random_bars: Bars) -> None:
    """HYB-18: each average starts as the simple mean over its period; both start at the first bar of the slow one."""

    def smooth(x: np.ndarray, period: int, first: int) -> np.ndarray:
        out = np.full(len(x), np.nan)
        out[first] = x[first - period + 1 : first + 1].mean()
        for k in range(first + 1, len(x)):
            out[k] = out[k - 1] + 2 / (period + 1) * (x[k] - out[k - 1])
        return out

    bars = random_bars(80, 1)
    price = np.exp(log_total_return_index(bars))[:, 0]
    line = smooth(price, 12, 25) - smooth(price, 26, 25)
    signal = smooth(line, 9, 33)
    np.testing.assert_allclose(feature(bars, "macd")[33:], (line / price)[33:], rtol=1e-9)
    np.testing.assert_allclose(feature(bars, "macd_signal")[33:], (signal / price)[33:], rtol=1e-9)
    np.testing.assert_allclose(feature(bars, "macd_histogram")[33:], ((line - signal) / price)[33:], rtol=1e-7)


def test_bollinger_bands_are_two_deviations_around_the_mean() -> None:
    """HYB-18: nineteen bars at 100 and one at 120 have mean 101 and deviation √19."""
    bars = make_bars([100.0] * 19 + [120.0])
    np.testing.assert_allclose(feature(bars, "bollinger_percent_b")[-1], (19 + 2 * 19**0.5) / (4 * 19**0.5))
    np.testing.assert_allclose(feature(bars, "bollinger_width")[-1], 4 * 19**0.5 / 101)


def test_true_range_counts_the_gap_from_the_close_before() -> None:
    """HYB-26: bars of width 2 that each open 10 above the last have a true range of 11."""
    close = 100.0 + 10 * np.arange(20)
    bars = make_bars(close, high=close + 1, low=close - 1)
    np.testing.assert_allclose(feature(bars, "atr_14")[14:], 11 / close[14:])


def test_on_balance_volume_is_the_share_of_volume_that_rose() -> None:
    """HYB-18: of 20 bars with 100 each, 15 rise and 5 fall."""
    steps = np.array([1, 1, 1, -1] * 5)
    bars = make_bars(100 + np.concatenate(([0], np.cumsum(steps))))
    np.testing.assert_allclose(feature(bars, "obv_20")[20], (15 - 5) / 20)
    assert np.isnan(feature(bars, "obv_20")[19])


def test_bars_without_volume_give_exact_zeros() -> None:
    volume = np.concatenate((np.random.default_rng(1).lognormal(20, 2, 40), np.zeros(40)))
    bars = make_bars(np.random.default_rng(2).lognormal(0, 0.1, 80), volume=volume)
    np.testing.assert_array_equal(feature(bars, "obv_20")[60:], 0.0)
    np.testing.assert_allclose(feature(bars, "volume_z_20")[60:], 0.0, atol=1e-6)


def test_volume_score_is_in_deviations_of_log_volume() -> None:
    log_volume = np.concatenate((np.zeros(19), [5.0]))
    bars = make_bars(np.full(20, 100.0), volume=np.expm1(log_volume))
    np.testing.assert_allclose(feature(bars, "volume_z_20")[-1], (5 - log_volume.mean()) / log_volume.std())


def test_a_constant_price_is_in_the_middle_of_its_bands() -> None:
    bars = make_bars([100.0] * 40)
    np.testing.assert_array_equal(feature(bars, "bollinger_percent_b")[19:], 0.5)
    assert np.isfinite(
        hourly_features(bars).values[39, 0, [FEATURES.index(n) for n in ("rsi_14", "atr_14", "macd")]]
    ).all()


def test_each_feature_starts_after_its_warm_up(random_bars: Bars) -> None:
    """MAM-21, TGN-16: the set of a bar's features is fixed, and each starts where its definition has enough bars."""
    features = hourly_features(random_bars(70, 1))
    first = {name: int(np.isfinite(features.column(name)[:, 0]).argmax()) for name in FEATURES}
    assert first == WARM_UP
    assert np.isfinite(features.values[60:]).all()


def test_hour_and_weekday_are_those_of_the_close() -> None:
    """TGN-20: the bar from 23:00 on Sunday closes at 00:00 on Monday; six hours later is a quarter of the day."""
    bars = replace(make_bars(np.full(8, 100.0)), ts=np.datetime64("2024-01-07T23:00", "us") + np.arange(8) * HOUR)
    for name, at_midnight, at_six in (("hour_sin", 0, 1), ("hour_cos", 1, 0), ("weekday_sin", 0, 0)):
        np.testing.assert_allclose(feature(bars, name)[[0, 6]], [at_midnight, at_six], atol=1e-12)
    wednesday = replace(bars, ts=bars.ts + np.timedelta64(2, "D"))
    np.testing.assert_allclose(feature(wednesday, "weekday_sin"), np.sin(2 * np.pi * 2 / 7))
    np.testing.assert_allclose(feature(wednesday, "weekday_cos"), np.cos(2 * np.pi * 2 / 7))


def test_hour_of_daily_bars_does_not_move_with_daylight_saving() -> None:
    opens = bar_opens("XNYS", "1d", date(2024, 3, 7), date(2024, 3, 13))
    bars = replace(make_bars(np.full(len(opens), 100.0)), ts=opens)
    features = compute_features(bars, bar_closes("XNYS", "1d", opens))
    np.testing.assert_array_equal(features.column("hour_sin"), 0.0)
    np.testing.assert_array_equal(features.column("hour_cos"), 1.0)
    assert len(np.unique(features.column("weekday_sin"))) > 1


def test_an_unknown_funding_rate_is_nan_and_not_zero() -> None:
    bars = make_bars([100, 101, 102], funding_rate=[np.nan, 0.0, -0.0003])
    np.testing.assert_array_equal(feature(bars, "funding_rate"), [np.nan, 0.0, -0.0003])


def test_prices_adjusted_for_a_split_give_the_same_features(random_bars: Bars) -> None:
    bars = random_bars(120, 1)
    prices = [BAR_COLUMNS.index(name) for name in ("open", "high", "low", "close")]
    split = replace(bars, values=bars.values.copy())
    split.values[:, :, prices] /= 8
    np.testing.assert_allclose(hourly_features(split).values, hourly_features(bars).values, rtol=1e-9, atol=1e-12)


def test_holes_are_skipped_and_not_filled(random_bars: Bars) -> None:
    bars = random_bars(200, 1, seed=3, holes=0.2)
    mask = bars.mask[:, 0]
    packed = Panel(bars.ts[mask], bars.symbols, bars.columns, bars.values[mask], bars.mask[mask])
    np.testing.assert_array_equal(hourly_features(bars).values[mask], hourly_features(packed).values)
    assert np.isnan(hourly_features(bars).values[~mask]).all()


def test_the_index_of_an_asset_listed_late_is_one_at_its_first_bar(random_bars: Bars) -> None:
    bars = random_bars(90, 2, late=True)
    index = np.exp(log_total_return_index(bars))
    assert np.isnan(index[:30, 1]).all()
    np.testing.assert_array_equal(index[[0, 30], [0, 1]], 1.0)
    features = hourly_features(bars).column("return_1")
    assert np.isnan(features[:31, 1]).all() and np.isfinite(features[31:, 1]).all()


def test_an_asset_with_one_bar_or_none_has_no_indicators() -> None:
    bars = make_bars([100.0, 101.0])
    for has_bar in ([False, False], [True, False]):
        mask = np.array(has_bar)[:, None]
        values = np.where(mask[:, :, None], bars.values, np.nan)
        short = Panel(bars.ts, bars.symbols, bars.columns, values, mask)
        assert np.isnan(hourly_features(short).column("return_1")).all()


def test_the_features_of_an_asset_do_not_depend_on_other_assets(random_bars: Bars) -> None:
    bars = random_bars(150, 5, seed=4, holes=0.1, late=True)
    alone = Panel(bars.ts, bars.symbols[3:4], bars.columns, bars.values[:, 3:4], bars.mask[:, 3:4])
    np.testing.assert_array_equal(hourly_features(alone).values[:, 0], hourly_features(bars).values[:, 3])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), cut=st.integers(1, 239), holes=st.sampled_from([0.0, 0.05, 0.5]), late=st.booleans()
)
def test_later_bars_never_change_a_row(random_bars: Bars, seed: int, cut: int, holes: float, late: bool) -> None:
    assert_later_bars_change_no_row_before(random_bars(240, 3, seed=seed, holes=holes, late=late), cut)


def test_later_bars_never_change_a_row_of_the_recorded_stocks(tape_stocks: Bars) -> None:
    bars = tape_stocks()
    whole = compute_features(bars, bar_closes("XNYS", "1d", bars.ts))
    assert np.isfinite(whole.values[-1]).all()
    for end in (date(2019, 1, 2), date(2020, 12, 15), date(2021, 5, 31), date(2023, 11, 24), date(2024, 6, 27)):
        cut = tape_stocks(end)
        truncated = compute_features(cut, bar_closes("XNYS", "1d", cut.ts))
        assert 0 < len(cut) < len(bars)
        np.testing.assert_array_equal(truncated.values, whole.rows(0, len(cut)).values)


def test_later_bars_never_change_a_row_of_the_recorded_perpetuals(tape_perpetuals: Bars) -> None:
    bars = tape_perpetuals()
    assert not bars.mask.all() and bars.mask[-1].all()
    for cut in np.random.default_rng(0).integers(1, len(bars), 6):
        assert_later_bars_change_no_row_before(bars, int(cut))


@pytest.mark.parametrize(
    ("column", "value"), [("close", np.nan), ("open", 0.0), ("low", -1.0), ("volume", -5.0), ("total_return", -1.0)]
)
def test_the_error_of_an_impossible_bar_names_symbol_time_and_column(
    random_bars: Bars, column: str, value: float
) -> None:
    bars = random_bars(5, 2)
    bars.values[2:4, 1, BAR_COLUMNS.index(column)] = value
    with pytest.raises(FeatureError, match=f"S001 at 2024-01-01T02:00:00.000000: {column} is {value}, and 1 more"):
        hourly_features(bars)


def test_the_error_of_a_missing_column_names_it(random_bars: Bars) -> None:
    bars = random_bars(5, 1)
    with pytest.raises(FeatureError, match="no column funding_rate"):
        hourly_features(Panel(bars.ts, bars.symbols, BAR_COLUMNS[:-1], bars.values[:, :, :-1], bars.mask))


def test_changed_global_settings_of_ta_lib_are_refused(random_bars: Bars) -> None:
    talib.set_unstable_period("RSI", 30)
    try:
        with pytest.raises(FeatureError, match="unstable period"):
            hourly_features(random_bars(5, 1))
    finally:
        talib.set_unstable_period("RSI", 0)
